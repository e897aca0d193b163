//! A runner as the server keeps it:
//!
//! ```text
//! Queued ──place──▶ Placed ──reported ended, or no longer listed──▶ Ended (tombstone) ──▶ forgotten
//!  │ ▲──requeue: its agent cannot take it─┘                          ▲
//!  └──────────────────cancelled──────────────────────────────────────┘
//! ```
//! Only a placed runner takes a slot. A placed runner with a [`Termination`] only waits until its agent has removed it.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use shoes_vz_model::{AgentId, CloudId, ResourceType, RunnerId, RunnerName, Stage, State};
use shoes_vz_proto::{agent as wire, convert, fleet::RunnerView};

use super::{
    agent::AgentRefusal,
    report,
    values::{Now, Script, VmSize, WaiterId},
};

/// One runner; everything but `live` is durable.
#[derive(Debug, Clone)]
pub struct Runner {
    /// Also the name of its bundle.
    pub id: RunnerId,
    pub cloud_id: CloudId,
    pub name: RunnerName,
    pub resource_type: ResourceType,
    pub size: VmSize,
    /// The only template it may be made from; "" allows any that fits its labels.
    pub template: String,
    /// As the caller gave them.
    pub labels: Vec<String>,
    /// Of the AddInstance call that created it.
    pub request_id: String,
    /// The time of that call.
    pub requested_at: Timestamp,
    /// How many agents could not take it. It makes the id of each of its create commands unique.
    pub refusals: u32,
    /// How many callers were answered that the runner is theirs. A runner without one ends soon after its last caller left.
    pub claims: u32,
    pub phase: Phase,
    /// What does not survive a restart of the server.
    pub live: Live,
}

#[derive(Debug, Clone)]
pub enum Phase {
    /// Waits for a slot.
    Queued(Script),
    /// Has a slot on an agent.
    Placed(Placed),
    /// Kept so that a late DeleteInstance succeeds.
    Ended(Ended),
}

/// A runner that has a slot.
#[derive(Debug, Clone)]
pub struct Placed {
    pub agent: AgentId,
    /// "" is the agent's default template.
    pub template: String,
    pub queued_for: Duration,
    pub delivery: Delivery,
    /// The agent's last report.
    pub report: Option<wire::Runner>,
    /// Set once the runner is to end.
    pub termination: Option<Termination>,
}

/// Whether the agent has the create command.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// The runner is neither acknowledged nor listed yet, so the script is still needed.
    Pending(Script),
    Done,
}

/// The server's decision to end a runner.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Termination {
    pub kind: TerminationKind,
    pub reason: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TerminationKind {
    /// A caller deleted it, or no caller wants it any longer.
    Deleted,
    /// It failed, and its agent did not remove it.
    Failed,
}

/// A tombstone.
#[derive(Debug, Clone)]
pub struct Ended {
    /// The agent it was placed on; `None` if it never had a slot.
    pub agent: Option<AgentId>,
    /// That agent's hostname, kept because agents can be forgotten.
    pub hostname: String,
    pub queued_for: Duration,
    /// The last report, with `end`.
    pub report: wire::Runner,
    /// When the server recorded the end.
    pub at: Timestamp,
}

/// What AddInstance answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    pub runner_id: RunnerId,
    pub cloud_id: CloudId,
    /// May be empty.
    pub ip_address: String,
    pub resource_type: ResourceType,
}

/// What does not survive a restart of the server.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// When the request arrived, or when this server started if that was later, by the monotonic clock.
    pub began: Duration,
    /// How long before `began` the request arrived.
    pub before: Duration,
    /// Its position in the order of arrival.
    pub arrival: u64,
    /// When it entered the queue: `began`, or when an agent refused it.
    pub queued_since: Duration,
    /// Agents that could not take it.
    pub refused_by: BTreeMap<AgentId, AgentRefusal>,
    /// Callers of AddInstance.
    pub add_waiters: Vec<WaiterId>,
    /// Callers of DeleteInstance.
    pub delete_waiters: Vec<WaiterId>,
    /// No caller waits for it or owns it: when it is terminated.
    pub grace: Option<Duration>,
    /// The agent has reported ERROR: when the server terminates it.
    pub cleanup_deadline: Option<Duration>,
    /// Its create was sent on some stream already.
    pub sent_before: bool,
    /// This server did not see its request: it was stored earlier, or its agent reported it first.
    pub request_unseen: bool,
    /// Since when a job runs.
    pub busy_since: Option<Duration>,
}

impl Placed {
    /// One of which the agent has reported nothing yet.
    pub fn new(agent: AgentId, template: String, queued_for: Duration, delivery: Delivery) -> Self {
        Self { agent, template, queued_for, delivery, report: None, termination: None }
    }
}

impl Runner {
    /// A runner that only its agent's report is known of. It counts as claimed, so it stays until it is deleted.
    pub fn adopted(agent: AgentId, id: RunnerId, report: &wire::Runner, now: Now) -> Option<Self> {
        // The runner's id is unique, and so is a cloud id made from it.
        let cloud_id = report.cloud_id.parse().or_else(|_| format!("shoes-vz-{id}").parse()).ok()?;
        let name =
            RunnerName::recorded(&report.runner_name).or_else(|_| format!("adopted-{id}").parse()).ok()?;
        let created = report.created_at.as_ref().and_then(convert::time_from_wire);
        Some(Self {
            id,
            cloud_id,
            name,
            // Agents do not report it; it only shows in lists.
            resource_type: ResourceType::Nano,
            size: VmSize::default(),
            template: String::new(),
            labels: Vec::new(),
            request_id: String::new(),
            requested_at: created.unwrap_or(now.wall),
            refusals: 0,
            claims: 1,
            phase: Phase::Placed(Placed::new(agent, String::new(), Duration::ZERO, Delivery::Done)),
            live: Live { began: now.mono, request_unseen: true, ..Live::default() },
        })
    }

    pub fn placed(&self) -> Option<&Placed> {
        match &self.phase {
            Phase::Placed(placed) => Some(placed),
            Phase::Queued(_) | Phase::Ended(_) => None,
        }
    }

    /// Whether it has not ended.
    pub fn is_alive(&self) -> bool {
        !matches!(self.phase, Phase::Ended(_))
    }

    /// What the agent reported last.
    pub fn last_report(&self) -> Option<&wire::Runner> {
        match &self.phase {
            Phase::Queued(_) => None,
            Phase::Placed(placed) => placed.report.as_ref(),
            Phase::Ended(ended) => Some(&ended.report),
        }
    }

    /// As last reported.
    pub fn state(&self) -> State {
        self.last_report().and_then(|r| convert::state_from_wire(r.state)).unwrap_or(State::Creating)
    }

    /// As last reported; may be empty.
    pub fn error_message(&self) -> String {
        self.last_report().map(|r| r.error_message.clone()).unwrap_or_default()
    }

    /// True once it cannot serve a job any more: ended, terminated, failed or being torn down.
    pub fn is_dying(&self) -> bool {
        match &self.phase {
            Phase::Queued(_) => false,
            Phase::Placed(placed) => {
                placed.termination.is_some() || matches!(self.state(), State::Error | State::TearingDown)
            }
            Phase::Ended(_) => true,
        }
    }

    /// True once its name has been served: it finished, and a job was seen running on it.
    pub fn has_served(&self) -> bool {
        let Phase::Ended(ended) = &self.phase else { return false };
        let kind = ended.report.end.as_ref().map(wire::RunnerEnd::kind);
        kind == Some(wire::EndKind::Finished) && report::shows_a_job(&ended.report)
    }

    /// Time since its request arrived, across restarts of the server.
    pub fn wanted_for(&self, now: Now) -> Duration {
        self.live.before + now.mono.saturating_sub(self.live.began)
    }

    /// What AddInstance answers once the runner is ready.
    pub fn added(&self) -> Option<Added> {
        let placed = self.placed()?;
        (self.state().is_ready() && placed.termination.is_none()).then(|| self.answer(placed))
    }

    /// As [`Runner::added`], for a runner whose job ended before any caller was answered.
    pub fn added_and_finished(&self) -> Option<Added> {
        self.placed().filter(|placed| placed.termination.is_none()).map(|placed| self.answer(placed))
    }

    fn answer(&self, placed: &Placed) -> Added {
        Added {
            runner_id: self.id,
            cloud_id: self.cloud_id,
            ip_address: placed.report.as_ref().map(|r| r.ip_address.clone()).unwrap_or_default(),
            resource_type: self.resource_type,
        }
    }

    /// The current stage, as error messages name it.
    pub fn stage(&self) -> &'static str {
        match &self.phase {
            Phase::Queued(_) => Stage::Queue.as_str(),
            Phase::Placed(_) | Phase::Ended(_) => stage_of(self.last_report()),
        }
    }

    /// The report to show or to record at the end: the agent's, or what is known without one. The ids are always the server's.
    pub fn report(&self) -> wire::Runner {
        let base = wire::Runner {
            runner_id: self.id.to_string(),
            runner_name: self.name.to_string(),
            cloud_id: self.cloud_id.to_string(),
            state: wire::RunnerState::Creating.into(),
            ..Default::default()
        };
        match &self.phase {
            Phase::Queued(_) => wire::Runner { stage: wire::RunnerStage::Queue.into(), ..base },
            Phase::Ended(ended) => ended.report.clone(),
            Phase::Placed(placed) => {
                let mut report = placed.report.clone().unwrap_or_else(|| wire::Runner {
                    stage: wire::RunnerStage::Clone.into(),
                    created_at: None,
                    ..base.clone()
                });
                (report.runner_id, report.runner_name, report.cloud_id) =
                    (base.runner_id, base.runner_name, base.cloud_id);
                report.agent_id = placed.agent.to_string();
                report
            }
        }
    }

    /// The runner as operators see it.
    pub fn view(&self, hostname: &str, pending_reason: String, queued_for: Duration) -> RunnerView {
        let mut runner = self.report();
        let was_placed = match &self.phase {
            Phase::Queued(_) => false,
            Phase::Placed(_) => true,
            Phase::Ended(ended) => ended.agent.is_some(),
        };
        if was_placed {
            runner.stages.insert(
                0,
                wire::StageTiming {
                    stage: wire::RunnerStage::Queue.into(),
                    started_at: Some(convert::time_to_wire(self.requested_at)),
                    duration_us: u64::try_from(queued_for.as_micros()).unwrap_or(u64::MAX),
                },
            );
        }
        RunnerView {
            cloud_id: self.cloud_id.to_string(),
            agent_hostname: hostname.to_owned(),
            resource_type: self.resource_type.to_string(),
            labels: self.labels.clone(),
            runner: Some(runner),
            pending_reason,
            requested_at: Some(convert::time_to_wire(self.requested_at)),
            queue_ms: u64::try_from(queued_for.as_millis()).unwrap_or(u64::MAX),
            // Only the core knows it.
            agent_status: wire::AgentStatus::Unspecified.into(),
        }
    }
}

fn stage_of(report: Option<&wire::Runner>) -> &'static str {
    match report {
        None => Stage::Clone.as_str(),
        // A Go agent reports no stages.
        Some(r) => convert::stage_from_wire(r.stage).map_or("start-up", Stage::as_str),
    }
}
