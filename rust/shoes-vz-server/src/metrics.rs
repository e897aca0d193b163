//! Prometheus: every name and label of the Go server, and more of our own. Gauges are set at each scrape from the fleet
//! as it is; counters and histograms are fed as things happen.

use std::{sync::Mutex, sync::PoisonError, time::Duration};

use prometheus::{
    Encoder as _, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts,
    Registry, TextEncoder, core::Collector,
};
use shoes_vz_model::{Stage, StartPath};
use shoes_vz_process::log;
use shoes_vz_proto::{agent as wire, fleet::AgentView};

use crate::fleet::{
    core::Snapshot,
    types::{Observation, Refusal},
};

/// The Go server's buckets.
const STARTUP: [f64; 6] = [10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
const JOB: [f64; 6] = [60.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0];
/// From a millisecond to ten minutes.
const STAGE: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
    600.0,
];

/// Which call of ShoesService.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// AddInstance.
    Add,
    /// DeleteInstance.
    Delete,
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// As wanted.
    Success,
    /// The caller did not wait.
    CallerGone,
    /// No slot.
    NoAgent,
    /// Not in time.
    Timeout,
    /// The agent is away.
    AgentAway,
    /// The runner failed.
    Runner,
    /// Can never work.
    Invalid,
    /// Deleted meanwhile.
    Aborted,
    /// The server cannot write its state.
    Unwritable,
    /// Never known.
    NotFound,
    /// The server ends.
    Stopping,
}

impl Outcome {
    /// The outcome a refusal is.
    pub fn of(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::Invalid(_) => Self::Invalid,
            Refusal::Exhausted(_) => Self::NoAgent,
            Refusal::Failed(_) => Self::Runner,
            Refusal::Aborted(_) => Self::Aborted,
            Refusal::Deadline(_) => Self::Timeout,
            Refusal::Unavailable(_) => Self::AgentAway,
            Refusal::Unwritable(_) => Self::Unwritable,
            Refusal::NotFound(_) => Self::NotFound,
            Refusal::Ambiguous(_) => Self::Invalid,
            Refusal::Stopping => Self::Stopping,
        }
    }

    /// The Go server's words where it has one.
    fn label(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::CallerGone => "cancelled",
            Self::NoAgent => "failed_no_agent",
            Self::Timeout => "failed_timeout",
            Self::AgentAway => "failed_get_agent",
            Self::Runner => "failed_get_runner",
            Self::Invalid => "failed_invalid",
            Self::Aborted => "aborted",
            Self::Unwritable => "failed_store",
            Self::NotFound => "failed_not_found",
            Self::Stopping => "failed_stopping",
        }
    }
}

/// Where a panic was caught.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A gRPC call.
    Call,
    /// What streams down to a caller or an agent.
    Stream,
    /// What listens to an agent.
    Agent,
    /// An HTTP request.
    Http,
}

impl Place {
    const ALL: [Self; 4] = [Self::Call, Self::Stream, Self::Agent, Self::Http];

    fn label(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Stream => "stream",
            Self::Agent => "agent",
            Self::Http => "http",
        }
    }
}

/// Every metric, in a registry of its own.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    startup: Histogram,
    job: Histogram,
    add_duration: Histogram,
    stages: HistogramVec,
    failures: IntCounterVec,
    adds: IntCounterVec,
    deletes: IntCounterVec,
    ended: IntCounterVec,
    starts: HistogramVec,
    started: IntCounterVec,
    fallbacks: IntCounterVec,
    resent: IntCounter,
    elsewhere: IntCounter,
    store_failures: IntCounter,
    lost_log_lines: IntCounter,
    without_token: IntCounter,
    panics: IntCounterVec,
    /// Locked for a whole scrape, so that two at once do not mix.
    gauges: Mutex<Gauges>,
}

#[derive(Debug)]
struct Gauges {
    runners: GaugeVec,
    idle: Gauge,
    busy: Gauge,
    errors: Gauge,
    agents: GaugeVec,
    online: Gauge,
    cordoned: Gauge,
    takes_none: Gauge,
    agent_capacity: GaugeVec,
    agent_runners: GaugeVec,
    hot: GaugeVec,
    total: Gauge,
    available: Gauge,
    utilization: Gauge,
    queue: Gauge,
    writable: Gauge,
}

impl Metrics {
    /// Registers everything.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let gauges = Gauges::new(&registry)?;
        let r = &registry;
        let metrics = Self {
            startup: histogram(
                r,
                "shoesvz_runner_startup_duration_seconds",
                "From AddInstance to SSH.",
                &STARTUP,
            )?,
            job: histogram(
                r,
                "shoesvz_runner_job_duration_seconds",
                "Of a job, as the guest shows it.",
                &JOB,
            )?,
            add_duration: histogram(
                r,
                "shoesvz_add_instance_duration_seconds",
                "Of AddInstance calls.",
                &STARTUP,
            )?,
            stages: keep(
                r,
                HistogramVec::new(
                    HistogramOpts::new(
                        "shoesvz_runner_stage_duration_seconds",
                        "Of each stage of a runner's life.",
                    )
                    .buckets(STAGE.to_vec()),
                    &["stage"],
                )?,
            )?,
            failures: counters(r, "shoesvz_runner_failures_total", "Runners that did not start.", "reason")?,
            adds: counters(r, "shoesvz_add_instance_requests_total", "AddInstance calls.", "status")?,
            deletes: counters(
                r,
                "shoesvz_delete_instance_requests_total",
                "DeleteInstance calls.",
                "status",
            )?,
            ended: counters(r, "shoesvz_runners_ended_total", "Runners that ended, by how.", "kind")?,
            starts: keep(
                r,
                HistogramVec::new(
                    HistogramOpts::new(
                        "shoesvz_runner_start_seconds",
                        "From AddInstance to SSH, by how the VM came to be ready.",
                    )
                    .buckets(STAGE.to_vec()),
                    &["path"],
                )?,
            )?,
            started: counters(r, "shoesvz_runner_starts_total", "Runners that became ready.", "path")?,
            fallbacks: keep(
                r,
                IntCounterVec::new(
                    Opts::new(
                        "shoesvz_saved_restore_fallbacks_total",
                        "Saved states that could not be used, so that a guest was booted.",
                    ),
                    &["agent_id", "hostname", "reason"],
                )?,
            )?,
            resent: keep(
                r,
                IntCounter::new(
                    "shoesvz_commands_resent_total",
                    "Create commands sent anew on a later stream.",
                )?,
            )?,
            elsewhere: keep(
                r,
                IntCounter::new(
                    "shoesvz_creates_tried_elsewhere_total",
                    "Create commands an agent refused so that another may take the runner.",
                )?,
            )?,
            without_token: keep(
                r,
                IntCounter::new("shoesvz_calls_without_token_total", "Calls refused for want of the token.")?,
            )?,
            panics: counters(
                r,
                "shoesvz_panics_total",
                "Mistakes of the server's own that were caught.",
                "where",
            )?,
            store_failures: keep(
                r,
                IntCounter::new(
                    "shoesvz_store_writes_failed_total",
                    "Tries to write the server's state that failed.",
                )?,
            )?,
            lost_log_lines: keep(
                r,
                IntCounter::new(
                    "shoesvz_log_lines_lost_total",
                    "Log lines that could not be written to stderr.",
                )?,
            )?,
            gauges: Mutex::new(gauges),
            registry,
        };
        // Known from the first scrape on, so that rates have a zero to start from.
        for outcome in [Outcome::Success, Outcome::NoAgent, Outcome::Timeout, Outcome::Runner] {
            metrics.adds.with_label_values(&[outcome.label()]);
        }
        for outcome in [Outcome::Success, Outcome::NotFound, Outcome::AgentAway] {
            metrics.deletes.with_label_values(&[outcome.label()]);
        }
        for counter in [&metrics.adds, &metrics.deletes] {
            counter.with_label_values(&["failed_send_command"]);
        }
        for reason in ["send_command_failed", "startup_timeout"] {
            metrics.failures.with_label_values(&[reason]);
        }
        for stage in Stage::ALL {
            metrics.stages.with_label_values(&[stage.as_str()]);
        }
        for path in StartPath::ALL {
            metrics.starts.with_label_values(&[path.as_str()]);
            metrics.started.with_label_values(&[path.as_str()]);
        }
        for place in Place::ALL {
            metrics.panics.with_label_values(&[place.label()]);
        }
        for kind in ENDS {
            metrics.ended.with_label_values(&[end_label(kind)]);
        }
        Ok(metrics)
    }

    /// Counts what the fleet saw.
    pub fn observe(&self, observation: &Observation) {
        match observation {
            Observation::Stage(stage, took) => {
                self.stages.with_label_values(&[stage.as_str()]).observe(took.as_secs_f64());
            }
            Observation::Startup(took) => self.startup.observe(took.as_secs_f64()),
            Observation::Started(path, took) => {
                self.starts.with_label_values(&[path.as_str()]).observe(took.as_secs_f64());
                self.started.with_label_values(&[path.as_str()]).inc();
            }
            Observation::Job(took) => self.job.observe(took.as_secs_f64()),
            Observation::Ended(kind) => self.ended.with_label_values(&[end_label(*kind)]).inc(),
            Observation::Resent => self.resent.inc(),
            Observation::TriedElsewhere => self.elsewhere.inc(),
            Observation::CreateRefused => self.failures.with_label_values(&["send_command_failed"]).inc(),
        }
    }

    /// Counts a call that was refused for want of the token.
    pub fn call_without_token(&self) {
        self.without_token.inc();
    }

    /// Counts a panic that was caught.
    pub fn panicked(&self, place: Place) {
        self.panics.with_label_values(&[place.label()]).inc();
    }

    /// Counts a try to write the state that failed.
    pub fn store_failed(&self) {
        self.store_failures.inc();
    }

    /// Counts a call.
    pub fn call(&self, call: Call, outcome: Outcome, took: Duration) {
        match call {
            Call::Add => {
                self.adds.with_label_values(&[outcome.label()]).inc();
                self.add_duration.observe(took.as_secs_f64());
                if outcome == Outcome::Timeout {
                    self.failures.with_label_values(&["startup_timeout"]).inc();
                }
            }
            Call::Delete => self.deletes.with_label_values(&[outcome.label()]).inc(),
        }
    }

    /// Counted by the fleet, so that an agent that is gone takes its counts with it.
    fn count_fallbacks(&self, fleet: &Snapshot) {
        self.fallbacks.reset();
        for view in &fleet.agents {
            let Some(agent) = &view.agent else { continue };
            for told in &view.restore_fallbacks {
                let labels = [agent.agent_id.as_str(), agent.hostname.as_str(), told.reason.as_str()];
                self.fallbacks.with_label_values(&labels).inc_by(told.count);
            }
        }
    }

    /// A scrape's answer.
    pub fn render(&self, fleet: &Snapshot) -> Result<Vec<u8>, prometheus::Error> {
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        gauges.set(fleet);
        self.count_fallbacks(fleet);
        // Under the lock of the gauges, so that two scrapes do not count the same lines.
        self.lost_log_lines.inc_by(log::lost().saturating_sub(self.lost_log_lines.get()));
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

impl Gauges {
    fn new(r: &Registry) -> Result<Self, prometheus::Error> {
        Ok(Self {
            runners: gauges(r, "shoesvz_runners_total", "Living runners by state.", &["state"])?,
            idle: gauge(r, "shoesvz_runners_idle", "Runners that listen for a job.")?,
            busy: gauge(r, "shoesvz_runners_busy", "Runners that work on a job.")?,
            errors: gauge(r, "shoesvz_runner_errors", "Runners in state ERROR.")?,
            agents: gauges(r, "shoesvz_agents_total", "Agents by status.", &["status"])?,
            online: gauge(r, "shoesvz_agents_online", "Agents whose stream stands.")?,
            cordoned: gauge(r, "shoesvz_agents_cordoned", "Agents an operator lets have no new runners.")?,
            takes_none: gauge(
                r,
                "shoesvz_agents_taking_none",
                "Online agents that take no new runners for a reason of their own.",
            )?,
            agent_capacity: gauges(
                r,
                "shoesvz_agents_capacity_runners",
                "An agent's slots.",
                &["agent_id", "hostname"],
            )?,
            agent_runners: gauges(
                r,
                "shoesvz_agents_current_runners",
                "An agent's slots in use or promised.",
                &["agent_id", "hostname"],
            )?,
            hot: gauges(
                r,
                "shoesvz_agents_hot_vms",
                "An online agent's VMs that wait for a runner.",
                &["agent_id", "hostname", "state"],
            )?,
            total: gauge(r, "shoesvz_capacity_total_runners", "Slots of all online agents.")?,
            available: gauge(
                r,
                "shoesvz_capacity_available_runners",
                "Free slots of all online agents that may have new runners.",
            )?,
            utilization: gauge(
                r,
                "shoesvz_capacity_utilization_ratio",
                "Slots in use, of all online agents' slots.",
            )?,
            queue: gauge(r, "shoesvz_queue_length", "Requests that wait for a slot.")?,
            writable: gauge(
                r,
                "shoesvz_store_writable",
                "1 = the server can write its state; 0 = it cannot, and decides nothing new.",
            )?,
        })
    }

    fn set(&self, fleet: &Snapshot) {
        let online = wire::AgentStatus::Online.as_str_name();
        for vec in [&self.runners, &self.agents, &self.agent_capacity, &self.agent_runners, &self.hot] {
            vec.reset();
        }
        for state in 1..=6 {
            if let Ok(state) = wire::RunnerState::try_from(state) {
                self.runners.with_label_values(&[state.as_str_name()]).set(0.0);
            }
        }
        for status in [wire::AgentStatus::Online, wire::AgentStatus::Offline] {
            self.agents.with_label_values(&[status.as_str_name()]).set(0.0);
        }
        let (mut idle, mut busy) = (0u32, 0u32);
        for runner in fleet.runners.iter().filter_map(|v| v.runner.as_ref()) {
            self.runners.with_label_values(&[runner.state().as_str_name()]).inc();
            match runner.guest_runner_state() {
                wire::GuestRunnerState::Idle => idle += 1,
                wire::GuestRunnerState::Running => busy += 1,
                _ => {}
            }
        }
        self.idle.set(f64::from(idle));
        self.busy.set(f64::from(busy));
        self.errors.set(self.runners.with_label_values(&[wire::RunnerState::Error.as_str_name()]).get());
        let (mut total, mut taken, mut free) = (0.0, 0.0, 0.0);
        self.cordoned.set(count(fleet, |view| view.cordon.is_some()));
        self.takes_none.set(count(fleet, |view| !view.unschedulable_reason.is_empty()));
        for view in &fleet.agents {
            let Some(agent) = &view.agent else { continue };
            let slots = agent.capacity.map_or(0, |c| c.max_runners);
            let labels = [agent.agent_id.as_str(), agent.hostname.as_str()];
            self.agents.with_label_values(&[agent.status().as_str_name()]).inc();
            self.agent_capacity.with_label_values(&labels).set(f64::from(slots));
            self.agent_runners.with_label_values(&labels).set(f64::from(view.runners));
            for hot in &view.hot {
                for (state, n) in [("ready", hot.ready), ("preparing", hot.preparing)] {
                    let labels = [labels[0], labels[1], state];
                    self.hot.with_label_values(&labels).add(f64::from(n));
                }
            }
            if agent.status() == wire::AgentStatus::Online {
                total += f64::from(slots);
                taken += f64::from(view.runners);
                if view.cordon.is_none() && view.unschedulable_reason.is_empty() {
                    free += f64::from(slots.saturating_sub(view.runners));
                }
            }
        }
        self.online.set(self.agents.with_label_values(&[online]).get());
        self.total.set(total);
        self.available.set(free);
        self.utilization.set(if total > 0.0 { taken / total } else { 0.0 });
        self.writable.set(if fleet.unwritable.is_none() { 1.0 } else { 0.0 });
        self.queue.set(u32::try_from(fleet.queued).map_or(f64::MAX, f64::from));
    }
}

/// How many agents are so.
fn count(fleet: &Snapshot, so: impl Fn(&AgentView) -> bool) -> f64 {
    u32::try_from(fleet.agents.iter().filter(|view| so(view)).count()).map_or(f64::MAX, f64::from)
}

const ENDS: [wire::EndKind; 6] = [
    wire::EndKind::Finished,
    wire::EndKind::Deleted,
    wire::EndKind::Failed,
    wire::EndKind::VmDied,
    wire::EndKind::Expired,
    wire::EndKind::Unresponsive,
];

fn end_label(kind: wire::EndKind) -> &'static str {
    match kind {
        wire::EndKind::Unspecified => "unknown",
        wire::EndKind::Finished => "finished",
        wire::EndKind::Deleted => "deleted",
        wire::EndKind::Failed => "failed",
        wire::EndKind::VmDied => "vm_died",
        wire::EndKind::Expired => "expired",
        wire::EndKind::Unresponsive => "unresponsive",
    }
}

fn keep<C: Collector + Clone + 'static>(registry: &Registry, metric: C) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn histogram(r: &Registry, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, prometheus::Error> {
    keep(r, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?)
}

fn counters(r: &Registry, name: &str, help: &str, label: &str) -> Result<IntCounterVec, prometheus::Error> {
    keep(r, IntCounterVec::new(Opts::new(name, help), &[label])?)
}

fn gauge(r: &Registry, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
    keep(r, Gauge::new(name, help)?)
}

fn gauges(r: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
    keep(r, GaugeVec::new(Opts::new(name, help), labels)?)
}
