//! Names that have served: a runner of that name ran a job and finished. GitHub gives a job to one runner, so whoever asks
//! for the name again asks for a job that is done: a second VM would idle in a slot, or take another job.

use shoes_vz_model::{RunnerId, RunnerName};

use crate::fleet::{
    runner::{Doom, DoomKind, Phase, Runner},
    types::{Now, Refusal},
};

use super::Core;

impl Core {
    /// Remembers that the runner has served its name, if it has. Who waits in the queue for the same name is refused.
    pub(super) fn note_served(&mut self, id: RunnerId, now: Now) {
        let Some(name) = self.runners.get(&id).filter(|r| r.has_served()).map(|r| r.name.clone()) else {
            return;
        };
        self.served.insert(name.clone(), id);
        self.refuse_if_served(&name, now);
    }

    /// Refuses whoever waits in the queue for a name that has served. One that is placed already stays: what exists counts.
    pub(super) fn refuse_if_served(&mut self, name: &RunnerName, now: Now) {
        let Some(refusal) = self.has_served(name) else { return };
        let Some(queued) = self.current.get(name).copied() else { return };
        if !self.runners.get(&queued).is_some_and(|r| matches!(r.phase, Phase::Queued(_))) {
            return;
        }
        self.fail_adders(queued, &refusal);
        self.bury_queued(queued, &Doom { kind: DoomKind::Deleted, reason: refusal.to_string() }, now);
    }

    /// Why no VM is made for this name; `None` = nothing of it has served.
    pub(super) fn has_served(&self, name: &RunnerName) -> Option<Refusal> {
        let runner = self.served.get(name).and_then(|id| self.runners.get(id))?;
        let Phase::Ended(ended) = &runner.phase else { return None };
        Some(Refusal::Invalid(format!(
            "the name {name} has been served: runner {} on {} ran a job and finished at {}; a runner's name is for one \
             job, so nothing is started. Ask for another name (this one may be asked for again once the runner is \
             forgotten, see --tombstones)",
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
