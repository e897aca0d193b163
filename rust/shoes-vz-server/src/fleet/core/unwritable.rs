//! While the store cannot be written: nothing is begun that would have to be durable first.
//!
//! | | goes on | waits or is refused |
//! |---|---|---|
//! | AddInstance | of a runner there is: waits for it | of a new one: refused |
//! | DeleteInstance | of one that is over, or going already | of another: refused |
//! | operators | reads; orders that change nothing | cordon, uncordon: refused |
//! | agents | registration, streams, reports, ends | creates of placed runners that are not durable |
//! | by itself | deadlines | placing, graces, tombstones |

use std::collections::BTreeSet;

use shoes_vz_model::RunnerId;

use crate::fleet::{
    runner::Phase,
    types::{Effect, Now, Refusal, Turn, Waits},
};

use super::{Core, Timer};

impl Core {
    /// From now on nothing can be made durable, for this reason. `born` came to be in what could not be written, and
    /// nobody outside heard of them: they never were.
    pub fn store_fails(&mut self, reason: String, born: &BTreeSet<RunnerId>, now: Now) -> Turn {
        self.turn.waits = Waits::Otherwise;
        for id in born {
            self.unmake(*id, &reason);
        }
        self.unwritable = Some(reason);
        self.close_turn(now)
    }

    /// Everything is durable again.
    pub fn store_works(&mut self, now: Now) -> Turn {
        self.unwritable = None;
        self.reschedule = true;
        self.turn.waits = Waits::Otherwise;
        let waited_for: Vec<RunnerId> =
            self.runners.values().filter(|r| !r.live.adders.is_empty()).map(|r| r.id).collect();
        // In the order of their ids, so that a simulation can be repeated.
        for id in BTreeSet::from_iter(waited_for) {
            self.answer_if_ready(id);
        }
        self.close_turn(now)
    }

    /// Whether what is decided can be made durable.
    pub fn can_write(&self) -> bool {
        self.unwritable.is_none()
    }

    fn unmake(&mut self, id: RunnerId, reason: &str) {
        self.fail_adders(id, &Refusal::Unwritable(reason.to_owned()));
        self.no_longer_wanted(id);
        let Some(runner) = self.runners.remove(&id) else { return };
        self.dirty.remove(&id);
        self.turn.changed.retain(|other| *other != id);
        self.by_cloud.remove(&runner.cloud_id);
        self.queue.retain(|other| *other != id);
        if let Some(at) = runner.live.sweep {
            self.timers.remove(&(at, Timer::Failed(id)));
        }
        for waiter in &runner.live.deleters {
            self.waiters.remove(waiter);
            self.turn.effects.push(Effect::Deleted(*waiter, Ok(id)));
        }
        if let Phase::Placed(placed) = &runner.phase {
            self.free_slot(placed.agent, &runner.name, id);
            if let Some(session) = self.agents.get_mut(&placed.agent).and_then(|a| a.session.as_mut()) {
                session.create_refused(id);
            }
        }
    }

    /// What is said to whoever asks for something that needs a write.
    pub(super) fn writable(&self) -> Result<(), Refusal> {
        self.unwritable.clone().map_or(Ok(()), |reason| Err(Refusal::Unwritable(reason)))
    }
}
