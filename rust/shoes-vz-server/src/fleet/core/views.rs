//! What operators and metrics see.

use std::time::Duration;

use shoes_vz_model::{AgentId, CloudId, RunnerId, RunnerName};
use shoes_vz_proto::fleet::{AgentView, RunnerView};

use crate::fleet::{
    agent::Agent,
    runner::{Phase, Runner},
    types::Now,
};

use super::Core;

/// The fleet at one moment.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Living runners, and ended ones when asked for; oldest request first.
    pub runners: Vec<RunnerView>,
    /// Every agent known.
    pub agents: Vec<AgentView>,
    /// Requests that wait for a slot.
    pub queued: usize,
    /// Set while the server cannot write its state: why, and what to do.
    pub unwritable: Option<String>,
}

impl Core {
    /// The whole fleet.
    pub fn snapshot(&self, with_ended: bool, now: Now) -> Snapshot {
        let mut rows: Vec<&Runner> = self.runners.values().filter(|r| with_ended || r.is_alive()).collect();
        rows.sort_by_key(|r| (r.requested_at, r.id));
        Snapshot {
            runners: rows.into_iter().map(|r| self.view_of(r, now)).collect(),
            agents: self.agents.values().map(|a| a.view(self.taken(a.id))).collect(),
            queued: self.queue.len(),
            unwritable: self.unwritable.clone(),
        }
    }

    /// One runner.
    pub fn view(&self, id: RunnerId, now: Now) -> Option<RunnerView> {
        self.runners.get(&id).map(|r| self.view_of(r, now))
    }

    /// One agent.
    pub fn agent_view(&self, id: AgentId) -> Option<AgentView> {
        self.agents.get(&id).map(|a| a.view(self.taken(id)))
    }

    /// The runner a cloud id belongs to.
    pub fn find_by_cloud(&self, cloud_id: CloudId) -> Option<RunnerId> {
        self.by_cloud.get(&cloud_id).copied()
    }

    /// The wanted runner of this name, or the one that is going, or the last that ended.
    pub fn find_by_name(&self, name: &RunnerName) -> Option<RunnerId> {
        self.current
            .get(name)
            .or_else(|| self.placed_names.get(name).and_then(|ids| ids.last()))
            .copied()
            .or_else(|| {
                let named = self.runners.values().filter(|r| r.name == *name);
                named.max_by_key(|r| (r.requested_at, r.id)).map(|r| r.id)
            })
    }

    /// Those in the queue: why they wait may have changed.
    pub fn queued(&self) -> &[RunnerId] {
        &self.queue
    }

    fn view_of(&self, runner: &Runner, now: Now) -> RunnerView {
        let queued_for: Duration = match &runner.phase {
            Phase::Queued(_) => runner.wanted_for(now),
            Phase::Placed(p) => p.queued_for,
            Phase::Ended(e) => e.queued_for,
        };
        let agent = runner.placed().and_then(|p| self.agents.get(&p.agent));
        RunnerView {
            agent_status: agent.map(Agent::status).unwrap_or_default().into(),
            ..runner.view(&self.host_of(runner), self.why_pending(runner), queued_for)
        }
    }
}
