//! How runners end.

use shoes_vz_model::{RunnerId, State};
use shoes_vz_proto::{agent as wire, convert};

use crate::fleet::{
    runner::{Doom, DoomKind, Ended, Phase, Placed},
    types::{Effect, Now, Observation, Refusal, Write},
};

use super::Core;

impl Core {
    /// A queued runner that goes was nowhere: it is over at once.
    pub(super) fn bury_queued(&mut self, id: RunnerId, doom: &Doom, now: Now) {
        let end = wire::RunnerEnd {
            kind: kind_of(doom.kind).into(),
            reason: doom.reason.clone(),
            stage: wire::RunnerStage::Queue.into(),
            at: Some(convert::time_to_wire(now.wall)),
        };
        self.bury(id, end, now);
    }

    /// The agent says that the runner is over.
    pub(super) fn bury_reported(&mut self, id: RunnerId, mut end: wire::RunnerEnd, now: Now) {
        let Some(runner) = self.runners.get(&id) else { return };
        // Cleaning up after a failure does not make it a deletion.
        if end.kind() == wire::EndKind::Deleted && runner.state() == State::Error {
            end.kind = wire::EndKind::Failed.into();
            let told = runner.report().error_message;
            if !told.is_empty() {
                end.reason = told;
            }
        }
        end.at.get_or_insert(convert::time_to_wire(now.wall));
        self.bury(id, end, now);
    }

    /// The agent has the runner no longer and said nothing about its end.
    pub(super) fn bury_vanished(&mut self, id: RunnerId, now: Now) {
        let Some(runner) = self.runners.get(&id) else { return };
        let Some(placed) = runner.placed() else { return };
        let last = runner.report();
        let (kind, reason) = match (&placed.doom, runner.state()) {
            (_, State::Error) if !last.error_message.is_empty() => {
                (wire::EndKind::Failed, last.error_message)
            }
            (Some(doom), _) => (kind_of(doom.kind), doom.reason.clone()),
            (None, _) => (
                wire::EndKind::VmDied,
                format!("{} no longer has it, and did not say why", self.host_of(runner)),
            ),
        };
        let end = wire::RunnerEnd {
            kind: kind.into(),
            reason,
            stage: last.stage,
            at: Some(convert::time_to_wire(now.wall)),
        };
        self.bury(id, end, now);
    }

    /// The one way to the end: slot, name, script and callers are settled here.
    pub(super) fn bury(&mut self, id: RunnerId, end: wire::RunnerEnd, now: Now) {
        let Some(runner) = self.runners.get(&id) else { return };
        let hostname = self.host_of(runner);
        let mut report = runner.report();
        let stage = convert::stage_from_wire(end.stage).map_or("", |s| s.as_str());
        let cancelled = match &runner.phase {
            Phase::Ended(_) => return,
            Phase::Queued(_) => true,
            Phase::Placed(p) => p.doom.as_ref().is_some_and(|d| d.kind == DoomKind::Deleted),
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
        // A guest faster than its reports: the job is done, and a failure would have it done again.
        if let Some(added) = finished {
            self.answer_adders(id, &added);
        }
        self.fail_adders(id, &refusal);
        self.no_longer_wanted(id);
        let Some(runner) = self.runners.get_mut(&id) else { return };
        if let Some(since) = runner.live.busy_since.take() {
            self.turn.effects.push(Effect::Observe(Observation::Job(now.mono.saturating_sub(since))));
        }
        let name = runner.name.clone();
        report.end = Some(end);
        let (agent, queued_for) = match &runner.phase {
            Phase::Placed(Placed { agent, queued_for, .. }) => (Some(*agent), *queued_for),
            _ => (None, runner.wanted_for(now)),
        };
        runner.phase = Phase::Ended(Ended { agent, hostname, queued_for, report, at: now.wall });
        for waiter in std::mem::take(&mut runner.live.deleters) {
            self.waiters.remove(&waiter);
            self.turn.effects.push(Effect::Deleted(waiter, Ok(id)));
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
        self.turn.writes.push(Write::ForgetScript(id));
        self.touch(id);
        self.note_served(id, now);
    }
}

fn kind_of(doom: DoomKind) -> wire::EndKind {
    match doom {
        DoomKind::Deleted => wire::EndKind::Deleted,
        DoomKind::Failed => wire::EndKind::Failed,
    }
}
