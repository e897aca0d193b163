//! Runners that an agent cannot take now, and another agent may.

use shoes_vz_model::{AgentId, RunnerId};

use crate::fleet::{
    agent::{AgentRefusal, Session},
    observation::Observation,
    report,
    runner::{Delivery, Phase, Placed},
    values::Now,
};

use crate::log_limit::LogLimit;

use super::{Core, runner_mut};

impl Core {
    /// From [`Phase::Placed`], when the agent refused its create and has no such runner, back to [`Phase::Queued`], at its
    /// old place in the order of arrival, with its callers and its script. The scheduler does not choose this agent for it
    /// again before the agent reports something new, or the runner would go to and fro without end.
    pub(super) fn requeue(&mut self, id: RunnerId, agent: AgentId, reason: &str, now: Now) {
        let revision = self.agents.get(&agent).and_then(|a| a.session.as_ref()).map(Session::revision);
        let Some(runner) = runner_mut(&mut self.runners, id) else { return };
        let Phase::Placed(Placed { delivery: Delivery::Pending(script), .. }) = &runner.phase else { return };
        let reason = report::one_line(reason);
        let key = format!("create refused {agent} {reason}");
        if let Some(suppressed) = self.log_limiter.admit(&key, LogLimit::Few, now.mono) {
            tracing::warn!(runner_id = %id, runner_name = %runner.name, agent_id = %agent, reason, suppressed,
                "agent cannot take the runner; queued again");
        }
        runner.phase = Phase::Queued(script.clone());
        runner.refusals += 1;
        runner.live.queued_since = now.mono;
        runner.live.sent_before = false;
        runner.live.refused_by.insert(agent, AgentRefusal { revision, reason });
        let (name, arrival) = (runner.name.clone(), runner.live.arrival);
        self.free_slot(agent, &name, id);
        if let Some(session) = self.agents.get_mut(&agent).and_then(|a| a.session.as_mut()) {
            session.create_refused(id);
        }
        let earlier = |other: &RunnerId| self.runners.get(other).is_some_and(|r| r.live.arrival < arrival);
        let place = self.queue.partition_point(earlier);
        self.queue.insert(place, id);
        self.observe(Observation::Requeued);
        self.touch(id);
        self.refuse_if_served(&name, now);
    }
}
