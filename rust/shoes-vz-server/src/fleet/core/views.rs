//! The fleet as operators and metrics see it.

use std::time::Duration;

use shoes_vz_model::{AgentId, CloudId, RunnerId, RunnerName};
use shoes_vz_proto::fleet::{AgentView, RunnerView};

use crate::fleet::{
    agent::Agent,
    runner::{Phase, Runner},
    snapshot::Snapshot,
    values::Now,
};

use super::Core;

impl Core {
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

    pub fn view(&self, id: RunnerId, now: Now) -> Option<RunnerView> {
        self.runners.get(&id).map(|r| self.view_of(r, now))
    }

    pub fn agent_view(&self, id: AgentId) -> Option<AgentView> {
        self.agents.get(&id).map(|a| a.view(self.taken(id)))
    }

    pub fn find_by_cloud(&self, cloud_id: CloudId) -> Option<RunnerId> {
        self.by_cloud.get(&cloud_id).copied()
    }

    /// The wanted runner of this name, or else the one that is being removed, or else the last that ended.
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

    /// The queued runners, in the order of arrival.
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
            ..runner.view(&self.host_of(runner), self.pending_reason(runner), queued_for)
        }
    }
}
