//! Prometheus metrics: every name and label of the Go server, and more. Gauges are set from the fleet at each scrape;
//! counters and histograms are updated by events.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prometheus::{
    Encoder as _, Gauge, GaugeVec, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts,
    Registry, TextEncoder, core::Collector,
};
use shoes_vz_model::{Stage, StartPath, State, named_enum};
use shoes_vz_process::log;
use shoes_vz_proto::{agent as wire, fleet::AgentView};

use crate::fleet::{event::Refusal, observation::Observation, snapshot::Snapshot};

/// The Go server's buckets.
const STARTUP: [f64; 6] = [10.0, 30.0, 60.0, 120.0, 300.0, 600.0];
const JOB: [f64; 6] = [60.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0];
/// From a millisecond to ten minutes.
const STAGE: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
    600.0,
];

/// A call of ShoesService.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    Add,
    Delete,
}

named_enum! {
    /// How a call ended, with the Go server's label where it has one.
    pub enum CallStatus {
        Success = "success",
        /// The caller disconnected.
        Cancelled = "cancelled",
        /// No slot was free in time.
        NoAgent = "failed_no_agent",
        Timeout = "failed_timeout",
        AgentOffline = "failed_get_agent",
        RunnerFailed = "failed_get_runner",
        Invalid = "failed_invalid",
        /// The runner was deleted meanwhile.
        Aborted = "aborted",
        Unwritable = "failed_store",
        NotFound = "failed_not_found",
        Stopping = "failed_stopping",
    }
}

impl CallStatus {
    pub fn of(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::Invalid(_) | Refusal::Ambiguous(_) => Self::Invalid,
            Refusal::Exhausted(_) => Self::NoAgent,
            Refusal::Failed(_) => Self::RunnerFailed,
            Refusal::Aborted(_) => Self::Aborted,
            Refusal::Deadline(_) => Self::Timeout,
            Refusal::Unavailable(_) => Self::AgentOffline,
            Refusal::Unwritable(_) => Self::Unwritable,
            Refusal::NotFound(_) => Self::NotFound,
            Refusal::Stopping => Self::Stopping,
        }
    }
}

named_enum! {
    /// Where a panic was caught.
    pub enum PanicSite {
        Call = "call",
        /// A stream to a caller or an agent.
        Stream = "stream",
        /// The listener to an agent's messages.
        Agent = "agent",
        Http = "http",
    }
}

/// One row for each metric: its field, its type, and how it is made.
macro_rules! metrics_table {
    ($name:ident { $($field:ident: $kind:ty = $make:ident($($arg:expr),*);)* }) => {
        #[derive(Debug)]
        struct $name { $($field: $kind),* }

        impl $name {
            fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
                Ok(Self { $($field: $make(registry, $($arg),*)?),* })
            }
        }
    };
}

metrics_table! { Counters {
    startup: Histogram = histogram("shoesvz_runner_startup_duration_seconds", "Time from AddInstance to SSH.", &STARTUP);
    job: Histogram = histogram("shoesvz_runner_job_duration_seconds", "Duration of a job, as the guest reports it.", &JOB);
    add_duration: Histogram = histogram("shoesvz_add_instance_duration_seconds", "Duration of AddInstance calls.", &STARTUP);
    stages: HistogramVec = histograms("shoesvz_runner_stage_duration_seconds", "Duration of each stage of a runner.", "stage");
    failures: IntCounterVec = counters("shoesvz_runner_failures_total", "Runners that did not start.", &["reason"]);
    adds: IntCounterVec = counters("shoesvz_add_instance_requests_total", "AddInstance calls by status.", &["status"]);
    deletes: IntCounterVec = counters("shoesvz_delete_instance_requests_total", "DeleteInstance calls by status.", &["status"]);
    ended: IntCounterVec = counters("shoesvz_runners_ended_total", "Ended runners by kind of end.", &["kind"]);
    starts: HistogramVec = histograms("shoesvz_runner_start_seconds", "Time from AddInstance to SSH, by start path.", "path");
    started: IntCounterVec = counters("shoesvz_runner_starts_total", "Runners that became ready, by start path.", &["path"]);
    fallbacks: IntCounterVec = counters("shoesvz_restore_fallbacks_total", "Saved states that could not be used, so that a guest was booted instead.", &["agent_id", "hostname", "reason"]);
    resent: IntCounter = counter("shoesvz_commands_resent_total", "Create commands sent again on a later stream.");
    requeued: IntCounter = counter("shoesvz_runners_requeued_total", "Runners queued again because their agent could not take them.");
    without_token: IntCounter = counter("shoesvz_calls_without_token_total", "Calls refused because they had no valid token.");
    panics: IntCounterVec = counters("shoesvz_panics_total", "Panics of the server that were caught.", &["where"]);
    store_failures: IntCounter = counter("shoesvz_store_writes_failed_total", "Attempts to write the server's state that failed.");
    lost_log_lines: IntCounter = counter("shoesvz_log_lines_lost_total", "Log lines that could not be written to stderr.");
} }

metrics_table! { Gauges {
    runners: GaugeVec = gauges("shoesvz_runners_total", "Living runners by state.", &["state"]);
    idle: Gauge = gauge("shoesvz_runners_idle", "Runners that wait for a job.");
    busy: Gauge = gauge("shoesvz_runners_busy", "Runners that run a job.");
    errors: Gauge = gauge("shoesvz_runner_errors", "Runners in state ERROR.");
    agents: GaugeVec = gauges("shoesvz_agents_total", "Agents by status.", &["status"]);
    online: Gauge = gauge("shoesvz_agents_online", "Agents that are connected.");
    cordoned: Gauge = gauge("shoesvz_agents_cordoned", "Agents that are cordoned.");
    unschedulable: Gauge = gauge("shoesvz_agents_unschedulable", "Online agents that report that they accept no new runners.");
    agent_capacity: GaugeVec = gauges("shoesvz_agents_capacity_runners", "Slots of an agent.", &["agent_id", "hostname"]);
    agent_runners: GaugeVec = gauges("shoesvz_agents_current_runners", "Slots of an agent that are in use or promised.", &["agent_id", "hostname"]);
    hot: GaugeVec = gauges("shoesvz_agents_hot_vms", "Hot VMs of an online agent, by state.", &["agent_id", "hostname", "state"]);
    total: Gauge = gauge("shoesvz_capacity_total_runners", "Slots of all online agents.");
    available: Gauge = gauge("shoesvz_capacity_available_runners", "Free slots of all online agents that accept new runners.");
    utilization: Gauge = gauge("shoesvz_capacity_utilization_ratio", "Share of the online agents' slots that are in use.");
    queue: Gauge = gauge("shoesvz_queue_length", "Requests that wait for a slot.");
    writable: Gauge = gauge("shoesvz_store_writable", "1 if the server can write its state, 0 if it cannot and accepts nothing that must be written.");
} }

/// Every metric, in its registry.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    counters: Counters,
    /// Locked for a whole scrape, so that two scrapes at once do not mix.
    gauges: Mutex<Gauges>,
}

impl Metrics {
    /// Registers every metric.
    pub fn new() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let (gauges, counters) = (Gauges::register(&registry)?, Counters::register(&registry)?);
        counters.show_from_the_start();
        Ok(Self { registry, counters, gauges: Mutex::new(gauges) })
    }

    /// Counts or measures an event of the fleet.
    pub fn observe(&self, observation: &Observation) {
        match observation {
            Observation::Stage(stage, took) => {
                self.counters.stages.with_label_values(&[stage.as_str()]).observe(took.as_secs_f64());
            }
            Observation::Startup(took) => self.counters.startup.observe(took.as_secs_f64()),
            Observation::Started(path, took) => {
                self.counters.starts.with_label_values(&[path.as_str()]).observe(took.as_secs_f64());
                self.counters.started.with_label_values(&[path.as_str()]).inc();
            }
            Observation::Job(took) => self.counters.job.observe(took.as_secs_f64()),
            Observation::Ended(kind) => self.counters.ended.with_label_values(&[end_label(*kind)]).inc(),
            Observation::Resent => self.counters.resent.inc(),
            Observation::Requeued => self.counters.requeued.inc(),
            Observation::CreateRefused => {
                self.counters.failures.with_label_values(&["send_command_failed"]).inc()
            }
        }
    }

    /// Counts a call that was refused because it had no valid token.
    pub fn call_without_token(&self) {
        self.counters.without_token.inc();
    }

    /// Counts a panic that was caught.
    pub fn panicked(&self, site: PanicSite) {
        self.counters.panics.with_label_values(&[site.as_str()]).inc();
    }

    /// Counts a failed attempt to write the state.
    pub fn store_failed(&self) {
        self.counters.store_failures.inc();
    }

    /// Counts a call.
    pub fn call(&self, call: Call, status: CallStatus, took: Duration) {
        match call {
            Call::Add => {
                self.counters.adds.with_label_values(&[status.as_str()]).inc();
                self.counters.add_duration.observe(took.as_secs_f64());
                if status == CallStatus::Timeout {
                    self.counters.failures.with_label_values(&["startup_timeout"]).inc();
                }
            }
            Call::Delete => self.counters.deletes.with_label_values(&[status.as_str()]).inc(),
        }
    }

    /// The fleet counts fallbacks, so that the counts of a forgotten agent disappear with it.
    fn count_fallbacks(&self, fleet: &Snapshot) {
        self.counters.fallbacks.reset();
        for view in &fleet.agents {
            let Some(agent) = &view.agent else { continue };
            for fallback in &view.restore_fallbacks {
                let labels = [agent.agent_id.as_str(), agent.hostname.as_str(), fallback.reason.as_str()];
                self.counters.fallbacks.with_label_values(&labels).inc_by(fallback.count);
            }
        }
    }

    /// Renders the answer to a scrape.
    pub fn render(&self, fleet: &Snapshot) -> Result<Vec<u8>, prometheus::Error> {
        let gauges = self.gauges.lock().unwrap_or_else(PoisonError::into_inner);
        gauges.set(fleet);
        self.count_fallbacks(fleet);
        // While the gauges are locked, so that two scrapes do not count the same lines twice.
        self.counters.lost_log_lines.inc_by(log::lost().saturating_sub(self.counters.lost_log_lines.get()));
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut text)?;
        Ok(text)
    }
}

impl Counters {
    /// Creates the usual series, so that rates start from zero at the first scrape.
    fn show_from_the_start(&self) {
        for status in
            [CallStatus::Success, CallStatus::NoAgent, CallStatus::Timeout, CallStatus::RunnerFailed]
        {
            self.adds.with_label_values(&[status.as_str()]);
        }
        for status in [CallStatus::Success, CallStatus::NotFound, CallStatus::AgentOffline] {
            self.deletes.with_label_values(&[status.as_str()]);
        }
        for counter in [&self.adds, &self.deletes] {
            counter.with_label_values(&["failed_send_command"]);
        }
        for reason in ["send_command_failed", "startup_timeout"] {
            self.failures.with_label_values(&[reason]);
        }
        for stage in Stage::ALL {
            self.stages.with_label_values(&[stage.as_str()]);
        }
        for path in StartPath::ALL {
            self.starts.with_label_values(&[path.as_str()]);
            self.started.with_label_values(&[path.as_str()]);
        }
        for site in PanicSite::ALL {
            self.panics.with_label_values(&[site.as_str()]);
        }
        for kind in ENDS {
            self.ended.with_label_values(&[end_label(kind)]);
        }
    }
}

impl Gauges {
    fn set(&self, fleet: &Snapshot) {
        for vec in [&self.runners, &self.agents, &self.agent_capacity, &self.agent_runners, &self.hot] {
            vec.reset();
        }
        for state in State::ALL {
            self.runners.with_label_values(&[state.as_str()]).set(0.0);
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
        self.unschedulable.set(count(fleet, |view| !view.unschedulable_reason.is_empty()));
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
        self.online.set(self.agents.with_label_values(&[wire::AgentStatus::Online.as_str_name()]).get());
        self.total.set(total);
        self.available.set(free);
        self.utilization.set(if total > 0.0 { taken / total } else { 0.0 });
        self.writable.set(if fleet.unwritable.is_none() { 1.0 } else { 0.0 });
        self.queue.set(u32::try_from(fleet.queued).map_or(f64::MAX, f64::from));
    }
}

/// How many agents satisfy `test`.
fn count(fleet: &Snapshot, test: impl Fn(&AgentView) -> bool) -> f64 {
    u32::try_from(fleet.agents.iter().filter(|view| test(view)).count()).map_or(f64::MAX, f64::from)
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

fn registered<C: Collector + Clone + 'static>(
    registry: &Registry,
    metric: C,
) -> Result<C, prometheus::Error> {
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

fn histogram(r: &Registry, name: &str, help: &str, buckets: &[f64]) -> Result<Histogram, prometheus::Error> {
    registered(r, Histogram::with_opts(HistogramOpts::new(name, help).buckets(buckets.to_vec()))?)
}

fn histograms(r: &Registry, name: &str, help: &str, label: &str) -> Result<HistogramVec, prometheus::Error> {
    registered(r, HistogramVec::new(HistogramOpts::new(name, help).buckets(STAGE.to_vec()), &[label])?)
}

fn counter(r: &Registry, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
    registered(r, IntCounter::new(name, help)?)
}

fn counters(
    r: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, prometheus::Error> {
    registered(r, IntCounterVec::new(Opts::new(name, help), labels)?)
}

fn gauge(r: &Registry, name: &str, help: &str) -> Result<Gauge, prometheus::Error> {
    registered(r, Gauge::new(name, help)?)
}

fn gauges(r: &Registry, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, prometheus::Error> {
    registered(r, GaugeVec::new(Opts::new(name, help), labels)?)
}
