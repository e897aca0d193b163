//! Time, randomness, and the faults of hosts.

use std::{
    collections::BTreeSet,
    future::Future,
    sync::{Arc, Weak},
    time::Duration,
};

use jiff::SignedDuration;
use rand::Rng as _;
use shoes_vz_model::Ambient;
use tokio::sync::mpsc;

use super::{EPOCH, Task, World};
use crate::{plan::Rates, wire::Wire};

impl World {
    // Time and randomness.

    pub(crate) fn clock(&self) -> Duration {
        self.lock().clock
    }

    pub(crate) fn set_clock(&self, clock: Duration) {
        self.lock().clock = clock;
    }

    /// The wall clock of `host` jumps.
    pub(crate) fn jump(&self, host: &str, by: SignedDuration) {
        let mut state = self.lock();
        let skew = state.skews.entry(host.to_owned()).or_default();
        *skew = skew.saturating_add(by);
    }

    /// The clock and the IDs of one simulated host.
    pub(crate) fn ambient(self: &Arc<Self>, host: &str) -> Ambient {
        let (world, host) = (Arc::clone(self), host.to_owned());
        let now = move || {
            let state = world.lock();
            let skew = state.skews.get(&host).copied().unwrap_or_default();
            let since = SignedDuration::try_from(state.clock).unwrap_or_default().saturating_add(skew);
            EPOCH.checked_add(since).unwrap_or(EPOCH)
        };
        let world = Arc::clone(self);
        let uuid = move || uuid::Builder::from_random_bytes(world.lock().rng.random()).into_uuid();
        Ambient::new(now, uuid)
    }

    /// A random duration between `from` and `to` milliseconds.
    pub(crate) fn millis(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.lock().rng.random_range(from..=to))
    }

    /// A random number below `n`; 0 for `n` = 0.
    pub(crate) fn below(&self, n: usize) -> usize {
        if n == 0 { 0 } else { self.lock().rng.random_range(0..n) }
    }

    /// True in one of `n` cases; never for `n` = 0.
    pub(crate) fn one_in(&self, n: u32) -> bool {
        n > 0 && self.lock().rng.random_range(0..n) == 0
    }

    pub(crate) fn rates(&self) -> Rates {
        self.lock().rates
    }

    /// No operation fails from now on.
    pub(crate) fn calm(&self) {
        let mut state = self.lock();
        state.rates = Rates::CALM;
        state.armed.clear();
        state.full.clear();
        state.store_refuses = false;
    }

    // Tasks of VMs, and crashes at any step.

    pub(crate) fn run_tasks_by(&self, tasks: mpsc::UnboundedSender<Task>) {
        self.lock().tasks = Some(tasks);
    }

    /// Runs a task that outlives every agent.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let tasks = self.lock().tasks.clone();
        let sent = tasks.is_some_and(|t| t.send(Box::pin(task)).is_ok());
        assert!(sent, "the host of the VMs has ended");
    }

    /// `host` crashes after `steps` more steps.
    pub(crate) fn arm(&self, host: &str, steps: u32) {
        self.lock().armed.insert(host.to_owned(), steps);
    }

    pub(crate) fn take_crashing(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.lock().crashing)
    }

    /// A point at which `host` may have crashed: then this never returns.
    pub(crate) async fn step(&self, host: &str) {
        let crashed = {
            let mut state = self.lock();
            match state.armed.get(host).copied() {
                Some(0) => {
                    state.armed.remove(host);
                    state.crashing.insert(host.to_owned());
                }
                Some(n) => {
                    state.armed.insert(host.to_owned(), n - 1);
                }
                None => {}
            }
            state.crashing.contains(host) || state.dying.borrow().contains(host)
        };
        if crashed {
            self.note(format_args!("{host} crashes at a step"));
            std::future::pending::<()>().await;
        }
    }

    /// Nothing on `host` runs from now on; its process closes its connections ([`World::until_dying`]).
    pub(crate) fn die(&self, host: &str) {
        self.lock().dying.send_if_modified(|all| all.insert(host.to_owned()));
    }

    /// Its process has ended.
    pub(crate) fn died(&self, host: &str) {
        let mut state = self.lock();
        state.dying.send_if_modified(|all| all.remove(host));
        state.wires.remove(host);
    }

    /// Waits until `host` crashes, and closes its connections. Dropping the runtime would close them in an order that
    /// differs between runs.
    pub(crate) async fn until_dying(&self, host: &str) {
        let mut dying = self.lock().dying.subscribe();
        // The sender is this world's.
        let _ = dying.wait_for(|all| all.contains(host)).await.map(drop);
        let wires = self.lock().wires.remove(host).unwrap_or_default();
        wires.iter().filter_map(Weak::upgrade).for_each(|wire| wire.close());
        std::future::pending().await
    }

    pub(crate) fn wired(&self, host: &str, wire: &Arc<Wire>) {
        self.lock().wires.entry(host.to_owned()).or_default().push(Arc::downgrade(wire));
    }

    // Disks.

    pub(crate) fn is_full(&self, agent: usize) -> bool {
        self.lock().full.contains(&agent)
    }

    /// Whether the disk of the server refuses writes.
    pub(crate) fn store_refuses(&self) -> bool {
        self.lock().store_refuses
    }

    pub(crate) fn refuse_writes(&self, refuses: bool) {
        self.lock().store_refuses = refuses;
    }

    pub(crate) fn fill(&self, agent: usize) {
        self.lock().full.insert(agent);
    }

    pub(crate) fn empty(&self, agent: usize) {
        self.lock().full.remove(&agent);
    }
}
