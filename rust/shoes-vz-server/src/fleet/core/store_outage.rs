//! While the store cannot be written, nothing begins that would have to be durable first.
//!
//! | | continues | waits or is refused |
//! |---|---|---|
//! | AddInstance | of an existing runner: waits for it | of a new one: refused |
//! | DeleteInstance | of a runner that has ended or is being terminated | of another: refused |
//! | operators | reads; orders that change nothing | cordon, uncordon: refused |
//! | agents | registration, streams, reports, ends | creates of placed runners that are not durable |
//! | timers | deadlines | placement, graces, tombstones |

use std::collections::BTreeSet;

use shoes_vz_model::RunnerId;

use crate::fleet::{
    event::{Decision, Effect, QueueReasons, Refusal},
    runner::Phase,
    values::Now,
};

use super::{Core, Timer};

impl Core {
    /// From now on nothing can be made durable, for this reason. The runners in `created` were created by the decision
    /// that could not be written. No one outside knows them, so they are rolled back.
    pub fn store_fails(&mut self, reason: String, created: &BTreeSet<RunnerId>, now: Now) -> Decision {
        self.decision.queue_reasons = QueueReasons::Changed;
        for id in created {
            self.roll_back(*id, &reason);
        }
        self.unwritable = Some(reason);
        self.close_decision(now)
    }

    /// Everything is durable again.
    pub fn store_works(&mut self, now: Now) -> Decision {
        self.unwritable = None;
        self.reschedule = true;
        self.decision.queue_reasons = QueueReasons::Changed;
        let waited_for: Vec<RunnerId> =
            self.runners.values().filter(|r| !r.live.add_waiters.is_empty()).map(|r| r.id).collect();
        // In the order of their ids, so that a simulation is reproducible.
        for id in BTreeSet::from_iter(waited_for) {
            self.answer_if_ready(id);
        }
        self.close_decision(now)
    }

    /// Whether decisions can be made durable.
    pub fn can_write(&self) -> bool {
        self.unwritable.is_none()
    }

    fn roll_back(&mut self, id: RunnerId, reason: &str) {
        self.fail_add_waiters(id, &Refusal::Unwritable(reason.to_owned()));
        self.no_longer_wanted(id);
        let Some(runner) = self.runners.remove(&id) else { return };
        self.dirty.remove(&id);
        self.decision.changed.retain(|other| *other != id);
        self.by_cloud.remove(&runner.cloud_id);
        self.queue.retain(|other| *other != id);
        if let Some(at) = runner.live.cleanup_deadline {
            self.timers.remove(&(at, Timer::Cleanup(id)));
        }
        for waiter in &runner.live.delete_waiters {
            self.waiters.remove(waiter);
            self.decision.effects.push(Effect::Deleted(*waiter, Ok(id)));
        }
        if let Phase::Placed(placed) = &runner.phase {
            self.free_slot(placed.agent, &runner.name, id);
            if let Some(session) = self.agents.get_mut(&placed.agent).and_then(|a| a.session.as_mut()) {
                session.create_refused(id);
            }
        }
    }

    /// Refuses a request that needs a write.
    pub(super) fn writable(&self) -> Result<(), Refusal> {
        self.unwritable.clone().map_or(Ok(()), |reason| Err(Refusal::Unwritable(reason)))
    }
}
