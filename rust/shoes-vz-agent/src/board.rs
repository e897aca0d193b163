//! What the server is shown: every runner's present state.

use std::collections::BTreeMap;

use shoes_vz_model::id::RunnerId;
use shoes_vz_proto::agent as wire;
use tokio::sync::watch;

/// Every runner by its id; each change wakes the receivers.
#[derive(Debug, Clone)]
pub struct Board(watch::Sender<BTreeMap<RunnerId, wire::Runner>>);

impl Default for Board {
    fn default() -> Self {
        Self(watch::Sender::new(BTreeMap::new()))
    }
}

impl Board {
    pub fn publish(&self, id: RunnerId, runner: wire::Runner) {
        self.0.send_if_modified(|all| {
            let changed = all.get(&id) != Some(&runner);
            all.insert(id, runner);
            changed
        });
    }

    /// Wakes no receiver: only what the server has acknowledged is removed.
    pub fn remove(&self, ids: &[RunnerId]) {
        self.0.send_if_modified(|all| {
            ids.iter().for_each(|id| drop(all.remove(id)));
            false
        });
    }

    pub fn get(&self, id: RunnerId) -> Option<wire::Runner> {
        self.0.borrow().get(&id).cloned()
    }

    pub fn watch(&self) -> watch::Receiver<BTreeMap<RunnerId, wire::Runner>> {
        self.0.subscribe()
    }
}
