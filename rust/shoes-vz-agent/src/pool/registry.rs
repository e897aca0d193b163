//! Which hot VMs there are, and who gets one.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use shoes_vz_model::id::RunnerId;
use shoes_vz_proto::agent as wire;
use tokio::{
    sync::{oneshot, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::plan::HotPlan;
use crate::{
    disk::Disk,
    host::{Host, VmSize},
    provision::ReadyVm,
    slots::{Slots, Ticket},
};

/// After a VM could not be started ahead, and after the next ones.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(300);

/// What a VM is started ahead for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To wait for a runner.
    Hot,
    /// To save its slot's state; a runner may claim it meanwhile.
    State,
}

/// Sends a VM to the runner that it was promised to.
pub(super) type Delivery = oneshot::Sender<ReadyVm>;

#[derive(Debug, Clone, Copy)]
pub struct PoolLimits {
    /// From a hot VM's creation until SSH answers.
    pub start_deadline: Duration,
    /// Of the runner that claims it; `None`: no limit.
    pub max_lifetime: Option<Duration>,
}

#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    plan: HotPlan,
    host: Arc<Host>,
    slots: Slots,
    disk: Disk,
    limits: PoolLimits,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    /// Runners that want a VM and have none.
    waiting: AtomicUsize,
}

#[derive(Default)]
pub(super) struct State {
    hot_vms: BTreeMap<RunnerId, Entry>,
    /// Not before this is the next one started.
    retry_at: Option<Instant>,
    failures: u32,
}

impl State {
    /// When the next one may be started, if that is not now.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        self.retry_at.filter(|at| *at > Instant::now())
    }

    /// How many are not ready yet.
    pub(super) fn preparing(&self) -> usize {
        self.hot_vms.values().filter(|e| !e.ready).count()
    }

    /// How many of that size no runner has claimed.
    pub(super) fn hot(&self, size: VmSize) -> usize {
        let free = |e: &&Entry| e.size == size && e.is_free() && e.purpose == Purpose::Hot;
        self.hot_vms.values().filter(free).count()
    }
}

struct Entry {
    size: VmSize,
    purpose: Purpose,
    ready: bool,
    /// `None` once it is promised to a runner.
    claim: Option<oneshot::Sender<Delivery>>,
    evict: CancellationToken,
    /// When its own process ends it.
    lives_until: Option<Instant>,
}

impl Entry {
    fn is_free(&self) -> bool {
        self.claim.is_some() && !self.evict.is_cancelled()
    }
}

/// What a runner that wants a VM is to do.
pub(crate) enum Offer {
    /// Take this one when it comes; if it does not, ask again.
    Hot(oneshot::Receiver<ReadyVm>),
    /// Start one there.
    Slot(Ticket),
    /// Ask again after a change.
    Wait,
}

/// A runner that wants a VM, for as long as this is there.
pub(crate) struct Waiting(Arc<Inner>);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
        self.0.changed.send_modify(|n| *n += 1);
    }
}

/// Changes since this was created.
pub(crate) struct Changes {
    pool: watch::Receiver<u64>,
    slots: watch::Receiver<u64>,
}

impl Changes {
    pub(crate) async fn changed(&mut self) {
        // Both senders live as long as the agent.
        tokio::select! { _ = self.pool.changed() => {}, _ = self.slots.changed() => {} }
    }
}

impl Pool {
    /// Empty until [`Pool::keep`] fills it.
    pub fn new(plan: HotPlan, host: Arc<Host>, slots: Slots, disk: Disk, limits: PoolLimits) -> Self {
        Self(Arc::new(Inner {
            plan,
            host,
            slots,
            disk,
            limits,
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            waiting: AtomicUsize::new(0),
        }))
    }

    pub(super) fn plan(&self) -> &HotPlan {
        &self.0.plan
    }

    pub(super) fn host(&self) -> &Arc<Host> {
        &self.0.host
    }

    pub(super) fn slots(&self) -> &Slots {
        &self.0.slots
    }

    pub(super) fn disk(&self) -> &Disk {
        &self.0.disk
    }

    pub(super) fn limits(&self) -> PoolLimits {
        self.0.limits
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) {
        self.0.changed.send_modify(|n| *n += 1);
    }

    /// A runner wants a VM from now on.
    pub(crate) fn wait(&self) -> Waiting {
        self.0.waiting.fetch_add(1, Ordering::AcqRel);
        Waiting(self.0.clone())
    }

    /// How many runners want a VM and have none.
    pub(super) fn waiting(&self) -> usize {
        self.0.waiting.load(Ordering::Acquire)
    }

    /// Changes of the hot VMs and of the slots, from now on.
    pub(crate) fn changes(&self) -> Changes {
        Changes { pool: self.0.changed.subscribe(), slots: self.0.slots.freed() }
    }

    /// The counter [`Pool::shown`] may have changed with.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// The best there is for a runner of that class that may live for `limit`.
    pub(crate) fn offer(&self, size: VmSize, limit: Duration) -> Offer {
        let mut state = self.lock();
        let needs = Instant::now() + limit;
        for ready in [true, false] {
            let fits = |e: &&mut Entry| {
                e.is_free()
                    && e.ready == ready
                    && e.size == size
                    && e.lives_until.is_none_or(|until| !limit.is_zero() && until >= needs)
            };
            for entry in state.hot_vms.values_mut().filter(fits) {
                let (deliver, coming) = oneshot::channel();
                // Its task may just have ended.
                if entry.claim.take().is_some_and(|claim| claim.send(deliver).is_ok()) {
                    return Offer::Hot(coming);
                }
            }
        }
        if let Some(ticket) = self.0.slots.take(|slot| self.0.host.saved_states.may_have(slot)) {
            return Offer::Slot(ticket);
        }
        // As many make room as runners wait.
        let going = state.hot_vms.values().filter(|e| e.evict.is_cancelled()).count();
        if going < self.waiting() {
            let least = state.hot_vms.iter().filter(|(_, e)| e.is_free()).min_by_key(|(_, e)| e.ready);
            if let Some((id, entry)) = least {
                tracing::info!(hot_vm = %id, "evicting a hot VM of another size to make room for a runner");
                entry.evict.cancel();
            }
        }
        Offer::Wait
    }

    /// A hot VM that is started now; what its task needs of the pool.
    pub(super) fn register(
        &self,
        id: RunnerId,
        size: VmSize,
        purpose: Purpose,
    ) -> (oneshot::Receiver<Delivery>, CancellationToken) {
        let limit = self.0.limits.max_lifetime;
        let lives_until = limit.map(|limit| Instant::now() + self.0.plan.max_age + limit);
        let (claim, claimed) = oneshot::channel();
        let evict = CancellationToken::new();
        let entry =
            Entry { size, purpose, ready: false, claim: Some(claim), evict: evict.clone(), lives_until };
        self.lock().hot_vms.insert(id, entry);
        self.change();
        (claimed, evict)
    }

    /// This one can be claimed at once.
    pub(super) fn ready(&self, id: RunnerId) {
        let mut state = self.lock();
        (state.failures, state.retry_at) = (0, None);
        if let Some(entry) = state.hot_vms.get_mut(&id) {
            entry.ready = true;
        }
        drop(state);
        self.change();
    }

    /// This one is not in the pool any more: a runner has it, or its slot is free.
    pub(super) fn remove(&self, id: RunnerId) {
        self.lock().hot_vms.remove(&id);
        self.change();
    }

    /// One could not be started; returns the pause before the next.
    pub(super) fn failed(&self) -> Duration {
        let mut state = self.lock();
        let pause = (FIRST_RETRY * (1 << state.failures.min(9))).min(LONGEST_RETRY);
        state.failures += 1;
        state.retry_at = Some(Instant::now() + pause);
        pause
    }

    /// Whether there is none, not even one that is being removed.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().hot_vms.is_empty()
    }

    /// For the server.
    pub fn shown(&self) -> Vec<wire::HotVms> {
        let (default, template) = (self.0.host.default_size(), &self.0.host.template.name);
        let mut counts: BTreeMap<VmSize, (u32, u32)> = BTreeMap::from([(default, (0, 0))]);
        for entry in self.lock().hot_vms.values().filter(|e| e.is_free()) {
            let (ready, preparing) = counts.entry(entry.size).or_default();
            *(if entry.ready { ready } else { preparing }) += 1;
        }
        let shown = counts.into_iter().map(|(size, (ready, preparing))| wire::HotVms {
            template: template.clone(),
            cpus: size.cpus,
            memory_bytes: size.memory_bytes,
            disk_bytes: size.disk_bytes,
            ready,
            preparing,
            default_size: size == default,
        });
        shown.collect()
    }
}
