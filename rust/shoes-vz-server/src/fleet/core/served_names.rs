//! Served names: a runner of that name ran a job and finished. GitHub gives a job to one runner, so a further request with
//! that name is for a job that has run already: a second VM would idle in a slot, or take another job.

use shoes_vz_model::{RunnerId, RunnerName};

use crate::fleet::{
    event::Refusal,
    runner::{Phase, Runner, TerminationKind},
    values::Now,
};

use super::Core;

impl Core {
    /// Remembers the runner's name as served, if it is, and refuses a queued runner of that name.
    pub(super) fn note_served(&mut self, id: RunnerId, now: Now) {
        let Some(name) = self.runners.get(&id).filter(|r| r.has_served()).map(|r| r.name.clone()) else {
            return;
        };
        self.served.insert(name.clone(), id);
        self.refuse_if_served(&name, now);
    }

    /// Refuses the queued runner of a served name. A placed one stays, since its VM may exist.
    pub(super) fn refuse_if_served(&mut self, name: &RunnerName, now: Now) {
        let Some(refusal) = self.has_served(name) else { return };
        let Some(queued) = self.current.get(name).copied() else { return };
        if !self.runners.get(&queued).is_some_and(|r| matches!(r.phase, Phase::Queued(_))) {
            return;
        }
        self.fail_add_waiters(queued, &refusal);
        self.record_queued_end(queued, TerminationKind::Deleted, refusal.to_string(), now);
    }

    /// Why no VM is started for this name; `None` if the name has not been served.
    pub(super) fn has_served(&self, name: &RunnerName) -> Option<Refusal> {
        let runner = self.served.get(name).and_then(|id| self.runners.get(id))?;
        let Phase::Ended(ended) = &runner.phase else { return None };
        Some(Refusal::Invalid(format!(
            "the name {name} has been served: runner {} on {} ran a job and finished at {}; a runner's name is for one \
             job, so no VM is started. Use another name (this one becomes free once the ended runner is forgotten, \
             see --tombstones)",
            runner.id,
            ended.hostname,
            ended.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
        )))
    }

    pub(super) fn forget_served(&mut self, runner: &Runner) {
        if self.served.get(&runner.name) == Some(&runner.id) {
            self.served.remove(&runner.name);
        }
    }
}
