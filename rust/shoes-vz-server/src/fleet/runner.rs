//! A runner as the server keeps it:
//!
//! ```text
//! Queued ──place──▶ Placed ──reported over, or no longer listed──▶ Ended (tombstone) ──▶ forgotten
//!  │ ▲─its agent cannot, another may─┘                               ▲
//!  └──────────────────cancelled──────────────────────────────────────┘
//! ```
//! Only a placed runner takes a slot. A placed runner may be doomed: then it only waits to be gone.

use std::{collections::BTreeMap, time::Duration};

use jiff::Timestamp;
use shoes_vz_model::{AgentId, CloudId, ResourceType, RunnerId, RunnerName, Stage, State};
use shoes_vz_proto::{agent as wire, convert, fleet::RunnerView};

use super::{
    agent::Refused,
    report,
    types::{Added, Now, Script, Shape, WaiterId},
};

/// One runner; everything but `live` is durable.
#[derive(Debug, Clone)]
pub struct Runner {
    /// Also its bundle's name.
    pub id: RunnerId,
    /// For myshoes.
    pub cloud_id: CloudId,
    /// At GitHub.
    pub name: RunnerName,
    /// Its size, by name.
    pub resource_type: ResourceType,
    /// Its size.
    pub shape: Shape,
    /// The only template it may be made from; "" = any that fits its labels.
    pub template: String,
    /// As asked for.
    pub labels: Vec<String>,
    /// Of the AddInstance that began it.
    pub request_id: String,
    /// When that was.
    pub requested_at: Timestamp,
    /// How many agents refused it for their own sake. Each of its creates has an id of its own by it.
    pub refusals: u32,
    /// How many callers were told that they have it. Unclaimed runners do not outlive their callers for long.
    pub claims: u32,
    /// Where it stands.
    pub phase: Phase,
    /// What does not survive a restart of the server.
    pub live: Live,
}

/// See the module.
#[derive(Debug, Clone)]
pub enum Phase {
    /// Waits for a slot.
    Queued(Script),
    /// Has a slot on an agent.
    Placed(Placed),
    /// Over; kept so that a late DeleteInstance succeeds.
    Ended(Ended),
}

/// A runner that has a slot.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Where.
    pub agent: AgentId,
    /// "" = the agent's own.
    pub template: String,
    /// How long it had waited.
    pub queued_for: Duration,
    /// Whether the agent has the command.
    pub delivery: Delivery,
    /// What the agent last told.
    pub report: Option<wire::Runner>,
    /// Set once it is to go.
    pub doom: Option<Doom>,
}

/// Whether an agent knows that it shall make a runner.
#[derive(Debug, Clone)]
pub enum Delivery {
    /// Neither acknowledged nor listed yet: the script is still needed.
    Pending(Script),
    /// The agent has it.
    Done,
}

/// Why a runner is to go.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Doom {
    /// What its end is called.
    pub kind: DoomKind,
    /// In words.
    pub reason: String,
}

/// See [`Doom`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DoomKind {
    /// Somebody asked for it, or nobody wanted it any more.
    Deleted,
    /// It failed and its agent did not clean it up.
    Failed,
}

/// A tombstone.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Where it was; `None` = it never had a slot.
    pub agent: Option<AgentId>,
    /// That agent's, kept because agents can be forgotten.
    pub hostname: String,
    /// How long it had waited.
    pub queued_for: Duration,
    /// The last report, with `end`.
    pub report: wire::Runner,
    /// When the server learnt of it.
    pub at: Timestamp,
}

/// What does not survive a restart of the server.
#[derive(Debug, Clone, Default)]
pub struct Live {
    /// When the request came, or this server began after it, by the monotonic clock.
    pub began: Duration,
    /// How long before `began` the request came.
    pub before: Duration,
    /// Its place in the order of arrival.
    pub arrival: u64,
    /// When it was put into the queue: `began`, or when an agent refused it.
    pub queued_since: Duration,
    /// Agents that refused it for their own sake.
    pub refused_by: BTreeMap<AgentId, Refused>,
    /// Callers of AddInstance.
    pub adders: Vec<WaiterId>,
    /// Callers of DeleteInstance.
    pub deleters: Vec<WaiterId>,
    /// Nobody waits and nobody has it: when it goes.
    pub grace: Option<Duration>,
    /// The agent has reported ERROR: when the server ends it itself.
    pub sweep: Option<Duration>,
    /// Its create was sent on some stream already.
    pub sent_before: bool,
    /// Its request was not seen by this server: it was stored before, or its agent told of it.
    pub found: bool,
    /// Since when a job runs.
    pub busy_since: Option<Duration>,
}

impl Runner {
    /// The slot it has.
    pub fn placed(&self) -> Option<&Placed> {
        match &self.phase {
            Phase::Placed(placed) => Some(placed),
            Phase::Queued(_) | Phase::Ended(_) => None,
        }
    }

    /// Whether it still is to come, or there.
    pub fn is_alive(&self) -> bool {
        !matches!(self.phase, Phase::Ended(_))
    }

    /// As last reported.
    pub fn state(&self) -> State {
        let report = match &self.phase {
            Phase::Queued(_) => None,
            Phase::Placed(placed) => placed.report.as_ref(),
            Phase::Ended(ended) => Some(&ended.report),
        };
        report.and_then(|r| convert::state_from_wire(r.state)).unwrap_or(State::Creating)
    }

    /// True once nothing good can come of it: over, doomed, failed or being torn down.
    pub fn is_dying(&self) -> bool {
        match &self.phase {
            Phase::Queued(_) => false,
            Phase::Placed(placed) => {
                placed.doom.is_some() || matches!(self.state(), State::Error | State::TearingDown)
            }
            Phase::Ended(_) => true,
        }
    }

    /// True once it has done what its name was asked for: it finished, and a job was seen running on it.
    pub fn has_served(&self) -> bool {
        let Phase::Ended(ended) = &self.phase else { return false };
        let kind = ended.report.end.as_ref().map(wire::RunnerEnd::kind);
        kind == Some(wire::EndKind::Finished) && report::shows_a_job(&ended.report)
    }

    /// How long it has been wanted, by the time its request came: also over restarts of the server.
    pub fn wanted_for(&self, now: Now) -> Duration {
        self.live.before + now.mono.saturating_sub(self.live.began)
    }

    /// What AddInstance answers, once the runner is ready.
    pub fn added(&self) -> Option<Added> {
        let placed = self.placed()?;
        (self.state().is_ready() && placed.doom.is_none()).then(|| self.answer(placed))
    }

    /// As [`Runner::added`], for one whose job was over before anybody was told that it was ready.
    pub fn added_and_finished(&self) -> Option<Added> {
        self.placed().filter(|placed| placed.doom.is_none()).map(|placed| self.answer(placed))
    }

    fn answer(&self, placed: &Placed) -> Added {
        Added {
            runner_id: self.id,
            cloud_id: self.cloud_id,
            ip_address: placed.report.as_ref().map(|r| r.ip_address.clone()).unwrap_or_default(),
            resource_type: self.resource_type,
        }
    }

    /// For messages: the stage under way.
    pub fn stage(&self) -> &'static str {
        match &self.phase {
            Phase::Queued(_) => Stage::Queue.as_str(),
            Phase::Placed(Placed { report, .. }) => stage_of(report.as_ref()),
            Phase::Ended(ended) => stage_of(Some(&ended.report)),
        }
    }

    /// The report to show or to bury: the agent's, or what is known without one. Ids are always the server's own.
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

    /// For operators.
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
            // The core's to tell.
            agent_status: wire::AgentStatus::Unspecified.into(),
        }
    }
}

fn stage_of(report: Option<&wire::Runner>) -> &'static str {
    match report {
        None => Stage::Clone.as_str(),
        // A Go agent tells no stages.
        Some(r) => convert::stage_from_wire(r.stage).map_or("start-up", Stage::as_str),
    }
}
