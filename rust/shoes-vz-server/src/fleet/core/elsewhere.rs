//! Runners an agent cannot take now, and another may.

use shoes_vz_model::{AgentId, RunnerId};

use crate::fleet::{
    agent::{Refused, Session},
    report,
    runner::{Delivery, Phase, Placed},
    types::{Now, Observation},
};

use crate::repeats::Say;

use super::Core;

impl Core {
    /// From [`Phase::Placed`], its create refused and nothing of it there, back to [`Phase::Queued`]: at its old place in
    /// the order of arrival, with its callers and its script. The agent is not chosen for it again before it says
    /// something new of itself, or the two would go round and round.
    pub(super) fn try_elsewhere(&mut self, id: RunnerId, agent: AgentId, words: &str, now: Now) {
        let heard = self.agents.get(&agent).and_then(|a| a.session.as_ref()).map(Session::heard);
        let Some(runner) = self.runners.get_mut(&id) else { return };
        let Phase::Placed(Placed { delivery: Delivery::Pending(script), .. }) = &runner.phase else { return };
        let words = report::one_line(words);
        let key = format!("create refused {agent} {words}");
        if let Some(repeats) = self.repeats.note(&key, Say::AFewTimes, now.mono) {
            tracing::warn!(runner_id = %id, runner_name = %runner.name, agent_id = %agent, error = %words, repeats,
                "create refused for the agent's own sake; the runner is queued again");
        }
        runner.phase = Phase::Queued(script.clone());
        runner.refusals += 1;
        runner.live.queued_since = now.mono;
        runner.live.sent_before = false;
        runner.live.refused_by.insert(agent, Refused { heard, words });
        let (name, arrival) = (runner.name.clone(), runner.live.arrival);
        self.free_slot(agent, &name, id);
        if let Some(session) = self.agents.get_mut(&agent).and_then(|a| a.session.as_mut()) {
            session.create_refused(id);
        }
        let earlier = |other: &RunnerId| self.runners.get(other).is_some_and(|r| r.live.arrival < arrival);
        let place = self.queue.partition_point(earlier);
        self.queue.insert(place, id);
        self.observe(Observation::TriedElsewhere);
        self.touch(id);
        self.refuse_if_served(&name, now);
    }
}
