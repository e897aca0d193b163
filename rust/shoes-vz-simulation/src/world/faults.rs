//! Time, chance, and what befalls hosts.

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
use crate::{net::Wire, plan::Rates};

impl World {
    // Time and chance.

    pub(crate) fn clock(&self) -> Duration {
        self.lock().clock
    }

    pub(crate) fn set_clock(&self, clock: Duration) {
        self.lock().clock = clock;
    }

    /// The calendar of `host` jumps.
    pub(crate) fn jump(&self, host: &str, by: SignedDuration) {
        let mut state = self.lock();
        let skew = state.skews.entry(host.to_owned()).or_default();
        *skew = skew.saturating_add(by);
    }

    /// Of one simulated host.
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

    /// Something that takes between `from` and `to` milliseconds.
    pub(crate) fn millis(&self, from: u64, to: u64) -> Duration {
        Duration::from_millis(self.lock().rng.random_range(from..=to))
    }

    /// One of the numbers below `n`; 0 when there is none.
    pub(crate) fn below(&self, n: usize) -> usize {
        if n == 0 { 0 } else { self.lock().rng.random_range(0..n) }
    }

    /// Whether something happens that does so in one of `n` cases; 0 = never.
    pub(crate) fn one_in(&self, n: u32) -> bool {
        n > 0 && self.lock().rng.random_range(0..n) == 0
    }

    pub(crate) fn rates(&self) -> Rates {
        self.lock().rates
    }

    /// From here on nothing fails by itself.
    pub(crate) fn calm(&self) {
        let mut state = self.lock();
        state.rates = Rates::CALM;
        state.armed.clear();
        state.full.clear();
        state.store_refuses = false;
    }

    // Where VMs live, and crashes at any step.

    pub(crate) fn run_tasks_by(&self, tasks: mpsc::UnboundedSender<Task>) {
        self.lock().tasks = Some(tasks);
    }

    /// Runs something that outlives every agent.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let tasks = self.lock().tasks.clone();
        let sent = tasks.is_some_and(|t| t.send(Box::pin(task)).is_ok());
        assert!(sent, "the VMs' host is gone");
    }

    /// `host` crashes after `steps` more steps of its own.
    pub(crate) fn arm(&self, host: &str, steps: u32) {
        self.lock().armed.insert(host.to_owned(), steps);
    }

    /// Hosts that are to crash now.
    pub(crate) fn take_crashing(&self) -> BTreeSet<String> {
        std::mem::take(&mut self.lock().crashing)
    }

    /// A point at which `host` may be gone for good: then this never returns.
    pub(crate) async fn step(&self, host: &str) {
        let gone = {
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
        if gone {
            self.note(format_args!("{host} crashes at a step"));
            std::future::pending::<()>().await;
        }
    }

    /// Nothing of `host` goes on from here; its process hangs up what it is connected to ([`World::until_dying`]).
    pub(crate) fn die(&self, host: &str) {
        self.lock().dying.send_if_modified(|all| all.insert(host.to_owned()));
    }

    /// Its process is gone.
    pub(crate) fn died(&self, host: &str) {
        let mut state = self.lock();
        state.dying.send_if_modified(|all| all.remove(host));
        state.wires.remove(host);
    }

    /// Waits until `host` is to die, and hangs up. A runtime that is dropped drops its tasks in no order that could be
    /// repeated, and whoever was connected would hear of it in that.
    pub(crate) async fn until_dying(&self, host: &str) {
        let mut dying = self.lock().dying.subscribe();
        // The sender is this world's.
        let _ = dying.wait_for(|all| all.contains(host)).await.map(drop);
        let wires = self.lock().wires.remove(host).unwrap_or_default();
        wires.iter().filter_map(Weak::upgrade).for_each(|wire| wire.hang_up());
        std::future::pending().await
    }

    pub(crate) fn wired(&self, host: &str, wire: &Arc<Wire>) {
        self.lock().wires.entry(host.to_owned()).or_default().push(Arc::downgrade(wire));
    }

    // Disks.

    pub(crate) fn is_full(&self, agent: usize) -> bool {
        self.lock().full.contains(&agent)
    }

    /// Whether the server's disk takes nothing.
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
