//! How runners end.

use shoes_vz_model::{RunnerId, State};
use shoes_vz_proto::{agent as wire, convert};

use crate::fleet::{
    event::{Effect, Refusal, Write},
    observation::Observation,
    report,
    runner::{Ended, Phase, Placed, TerminationKind},
    values::Now,
};

use super::{Core, runner_mut};

impl Core {
    /// A queued runner has no VM, so it ends at once.
    pub(super) fn record_queued_end(
        &mut self,
        id: RunnerId,
        kind: TerminationKind,
        reason: String,
        now: Now,
    ) {
        let stage = wire::RunnerStage::Queue.into();
        self.record_end(id, report::end(kind_of(kind), reason, stage, now.wall), now);
    }

    /// The agent reports that the runner has ended.
    pub(super) fn record_reported_end(&mut self, id: RunnerId, mut end: wire::RunnerEnd, now: Now) {
        let Some(runner) = self.runners.get(&id) else { return };
        // The removal of a failed runner does not turn its failure into a deletion.
        if end.kind() == wire::EndKind::Deleted && runner.state() == State::Error {
            end.kind = wire::EndKind::Failed.into();
            let error = runner.error_message();
            if !error.is_empty() {
                end.reason = error;
            }
        }
        end.at.get_or_insert(convert::time_to_wire(now.wall));
        self.record_end(id, end, now);
    }

    /// The agent no longer lists the runner and has reported no end.
    pub(super) fn record_vanished_end(&mut self, id: RunnerId, now: Now) {
        let Some(runner) = self.runners.get(&id) else { return };
        let Some(placed) = runner.placed() else { return };
        let last = runner.report();
        let (kind, reason) = match (&placed.termination, runner.state()) {
            (_, State::Error) if !last.error_message.is_empty() => {
                (wire::EndKind::Failed, last.error_message)
            }
            (Some(termination), _) => (kind_of(termination.kind), termination.reason.clone()),
            (None, _) => (
                wire::EndKind::VmDied,
                format!("{} no longer has this runner and reported no reason", self.host_of(runner)),
            ),
        };
        self.record_end(id, report::end(kind, reason, last.stage, now.wall), now);
    }

    /// Every runner ends here: its slot, name and script are freed, and its callers answered.
    pub(super) fn record_end(&mut self, id: RunnerId, end: wire::RunnerEnd, now: Now) {
        let Some(runner) = self.runners.get(&id) else { return };
        let hostname = self.host_of(runner);
        let mut report = runner.report();
        let stage = convert::stage_from_wire(end.stage).map_or("", |s| s.as_str());
        let cancelled = match &runner.phase {
            Phase::Ended(_) => return,
            Phase::Queued(_) => true,
            Phase::Placed(p) => p.termination.as_ref().is_some_and(|d| d.kind == TerminationKind::Deleted),
        };
        let refusal = if cancelled {
            Refusal::Aborted(format!("{}: {}", runner.name, end.reason))
        } else {
            let at = if stage.is_empty() { String::new() } else { format!(" in stage {stage}") };
            Refusal::Failed(format!("{} failed on {hostname}{at}: {}", runner.name, end.reason))
        };
        tracing::info!(runner_id = %id, runner_name = %runner.name, kind = end.kind().as_str_name(), stage,
            reason = %end.reason, "runner ended");
        let finished = (end.kind() == wire::EndKind::Finished).then(|| runner.added_and_finished()).flatten();
        self.observe(Observation::Ended(end.kind()));
        // The guest was faster than its reports. The job has run, and a failure would make the caller run it again.
        if let Some(added) = finished {
            self.answer_add_waiters(id, &added);
        }
        self.fail_add_waiters(id, &refusal);
        self.no_longer_wanted(id);
        let Some(runner) = runner_mut(&mut self.runners, id) else { return };
        if let Some(since) = runner.live.busy_since.take() {
            self.decision.effects.push(Effect::Observe(Observation::Job(now.mono.saturating_sub(since))));
        }
        let name = runner.name.clone();
        report.end = Some(end);
        let (agent, queued_for) = match &runner.phase {
            Phase::Placed(Placed { agent, queued_for, .. }) => (Some(*agent), *queued_for),
            _ => (None, runner.wanted_for(now)),
        };
        runner.phase = Phase::Ended(Ended { agent, hostname, queued_for, report, at: now.wall });
        for waiter in std::mem::take(&mut runner.live.delete_waiters) {
            self.waiters.remove(&waiter);
            self.decision.effects.push(Effect::Deleted(waiter, Ok(id)));
        }
        match agent {
            Some(agent) => {
                self.free_slot(agent, &name, id);
                if let Some(session) = self.agents.get_mut(&agent).and_then(|a| a.session.as_mut()) {
                    session.forget(id);
                }
            }
            None => self.queue.retain(|other| *other != id),
        }
        self.decision.writes.push(Write::ForgetScript(id));
        self.touch(id);
        self.note_served(id, now);
    }
}

fn kind_of(termination: TerminationKind) -> wire::EndKind {
    match termination {
        TerminationKind::Deleted => wire::EndKind::Deleted,
        TerminationKind::Failed => wire::EndKind::Failed,
    }
}
