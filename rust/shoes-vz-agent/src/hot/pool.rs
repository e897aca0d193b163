//! Which hot VMs there are, who gets one, and when another is started.

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
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    Class, HotPlan, Many,
    plan::StatesMode,
    spare::{Purpose, Spare},
};
use crate::{
    bundles::Bundle,
    context::Context,
    slot_vm::SlotVm,
    slots::{Slots, Ticket},
};

/// VMs that are started ahead at one time: more would only slow each other down.
const AT_ONCE: usize = 2;
/// After a VM could not be started ahead, and after the next ones.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(300);

/// Sends a VM to whoever was promised it.
pub(super) type Deliver = oneshot::Sender<SlotVm>;

/// See the module.
#[derive(Clone)]
pub struct Pool(Arc<Inner>);

struct Inner {
    plan: HotPlan,
    slots: Slots,
    state: Mutex<State>,
    changed: watch::Sender<u64>,
    /// Runners that want a VM and have none.
    waiting: AtomicUsize,
}

#[derive(Default)]
struct State {
    spares: BTreeMap<RunnerId, Entry>,
    /// Not before this is the next one started.
    retry_at: Option<Instant>,
    failures: u32,
}

struct Entry {
    class: Class,
    purpose: Purpose,
    ready: bool,
    /// Gone once it is promised to a runner.
    claim: Option<oneshot::Sender<Deliver>>,
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
    Hot(oneshot::Receiver<SlotVm>),
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

/// Tells of changes from when it was made.
pub(crate) struct Changes {
    pool: watch::Receiver<u64>,
    slots: watch::Receiver<u64>,
}

impl Changes {
    /// Returns after the next one.
    pub(crate) async fn changed(&mut self) {
        // Both senders live as long as the agent.
        tokio::select! { _ = self.pool.changed() => {}, _ = self.slots.changed() => {} }
    }
}

impl Pool {
    /// None yet.
    pub fn new(plan: HotPlan, slots: Slots) -> Self {
        Self(Arc::new(Inner {
            plan,
            slots,
            state: Mutex::default(),
            changed: watch::Sender::new(0),
            waiting: AtomicUsize::new(0),
        }))
    }

    pub(crate) fn plan(&self) -> &HotPlan {
        &self.0.plan
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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

    /// Changes of the hot VMs and of the slots, from now on.
    pub(crate) fn changes(&self) -> Changes {
        Changes { pool: self.0.changed.subscribe(), slots: self.0.slots.freed() }
    }

    /// The counter [`Pool::shown`] may have changed with.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.changed.subscribe()
    }

    /// The best there is for a runner of that class that may live for `limit`.
    pub(crate) fn offer(&self, ctx: &Context, class: Class, limit: Duration) -> Offer {
        let mut state = self.lock();
        let needs = Instant::now() + limit;
        for ready in [true, false] {
            let fits = |e: &&mut Entry| {
                e.is_free()
                    && e.ready == ready
                    && e.class == class
                    && e.lives_until.is_none_or(|until| !limit.is_zero() && until >= needs)
            };
            for entry in state.spares.values_mut().filter(fits) {
                let (deliver, coming) = oneshot::channel();
                // Its task may just have ended.
                if entry.claim.take().is_some_and(|claim| claim.send(deliver).is_ok()) {
                    return Offer::Hot(coming);
                }
            }
        }
        if let Some(ticket) = self.0.slots.take(|slot| ctx.states.may_have(slot)) {
            return Offer::Slot(ticket);
        }
        // As many make room as runners wait.
        let going = state.spares.values().filter(|e| e.evict.is_cancelled()).count();
        if going < self.0.waiting.load(Ordering::Acquire) {
            let least = state.spares.iter().filter(|(_, e)| e.is_free()).min_by_key(|(_, e)| e.ready);
            if let Some((id, entry)) = least {
                tracing::info!(spare = %id, "a hot VM of another size makes room for a runner");
                entry.evict.cancel();
            }
        }
        Offer::Wait
    }

    /// Keeps as many VMs hot, and as many states saved, as is wanted, for ever.
    pub async fn keep(&self, ctx: Arc<Context>) {
        let mut refusal = ctx.disk.refusal();
        loop {
            let mut changes = self.changes();
            let again_at = self.fill(&ctx).await;
            let again = async {
                match again_at {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = changes.changed() => {}
                _ = refusal.changed() => {}
                () = again => {}
            }
        }
    }

    /// Starts what is missing; gives when to look again, if nothing changes before.
    async fn fill(&self, ctx: &Arc<Context>) -> Option<Instant> {
        loop {
            if ctx.disk.refusal().borrow().is_some() {
                return None;
            }
            let begun = {
                let state = self.lock();
                if let Some(at) = state.retry_at.filter(|at| *at > Instant::now()) {
                    return Some(at);
                }
                self.next(ctx, &state)
            };
            let (class, purpose, ticket) = match begun {
                Some(Next::Start(class, ticket)) => (class, Purpose::Hot, ticket),
                Some(Next::Save) => match self.slot_to_save(ctx).await {
                    Ok(ticket) => (Class::own(&ctx.template), Purpose::State, ticket),
                    Err(again) => return again,
                },
                None => return None,
            };
            self.begin(ctx, class, purpose, ticket);
        }
    }

    /// What is missing most, and can be begun.
    fn next(&self, ctx: &Context, state: &State) -> Option<Next> {
        let preparing = state.spares.values().filter(|e| !e.ready).count();
        if preparing >= AT_ONCE || self.0.slots.free().len() <= self.0.waiting.load(Ordering::Acquire) {
            return None;
        }
        for (class, many) in self.0.plan.classes(&ctx.template) {
            let there = |e: &&Entry| e.class == class && e.is_free() && e.purpose == Purpose::Hot;
            let have = state.spares.values().filter(there).count();
            let wanted = match many {
                Many::All => usize::MAX,
                Many::Of(n) => n as usize,
            };
            if have < wanted {
                return Some(Next::Start(class, self.0.slots.take(|slot| ctx.states.may_have(slot))?));
            }
        }
        (self.0.plan.states == StatesMode::Auto).then_some(Next::Save)
    }

    /// A free slot that has no state and may get one now, or when to look again.
    async fn slot_to_save(&self, ctx: &Arc<Context>) -> Result<Ticket, Option<Instant>> {
        let mut again: Option<Instant> = None;
        for slot in self.0.slots.free() {
            match ctx.states.needs(ctx, slot).await {
                Ok(false) => {}
                Ok(true) => {
                    if let Some(ticket) = self.0.slots.take_this(slot) {
                        return Ok(ticket);
                    }
                }
                Err(at) => again = Some(again.map_or(at, |earlier| earlier.min(at))),
            }
        }
        Err(again)
    }

    fn begin(&self, ctx: &Arc<Context>, class: Class, purpose: Purpose, ticket: Ticket) {
        let id = RunnerId::from(ctx.ambient.uuid());
        let bundle = Bundle::of(&ctx.runners_path, id);
        let (entry, spare) = self.entry(ctx, class, purpose);
        tracing::info!(spare = %id, slot = ticket.index(), ?class, ?purpose, "starting a VM ahead of its runner");
        self.lock().spares.insert(id, entry);
        self.change();
        spare.begin(ctx.clone(), bundle, ticket);
    }

    /// Whether VMs of that class are kept hot at all.
    pub(crate) fn wants(&self, ctx: &Context, class: Class) -> bool {
        let wanted = self.0.plan.classes(&ctx.template);
        wanted.iter().any(|(wanted, many)| *wanted == class && *many != Many::Of(0))
    }

    /// Takes over one that a former agent had ready.
    pub(crate) fn adopt(
        &self,
        ctx: &Arc<Context>,
        class: Class,
        held: SlotVm,
        meta: shoes_vz_model::bundle::RuntimeMetadata,
    ) {
        let (entry, spare) = self.entry(ctx, class, Purpose::Hot);
        self.lock().spares.insert(held.bundle.runner, entry);
        self.change();
        spare.go_on(ctx.clone(), held, meta);
    }

    fn entry(&self, ctx: &Context, class: Class, purpose: Purpose) -> (Entry, Spare) {
        let lives_until = ctx.max_lifetime.map(|limit| Instant::now() + self.0.plan.max_age + limit);
        let (claim, claimed) = oneshot::channel();
        let evict = CancellationToken::new();
        let spare = Spare { pool: self.clone(), class, purpose, claimed, evict: evict.clone() };
        (Entry { class, purpose, ready: false, claim: Some(claim), evict, lives_until }, spare)
    }

    /// That one can be claimed at once.
    pub(super) fn ready(&self, id: RunnerId) {
        let mut state = self.lock();
        (state.failures, state.retry_at) = (0, None);
        if let Some(entry) = state.spares.get_mut(&id) {
            entry.ready = true;
        }
        drop(state);
        self.change();
    }

    /// That one is no hot VM any more, and its slot is somebody's or free.
    pub(super) fn gone(&self, id: RunnerId) {
        self.lock().spares.remove(&id);
        self.change();
    }

    /// One could not be started; gives when the next one may be.
    pub(super) fn failed(&self) -> Duration {
        let mut state = self.lock();
        let pause = (FIRST_RETRY * (1 << state.failures.min(9))).min(LONGEST_RETRY);
        state.failures += 1;
        state.retry_at = Some(Instant::now() + pause);
        pause
    }

    /// Whether there is none, not even one that is being removed.
    pub(crate) fn is_empty(&self) -> bool {
        self.lock().spares.is_empty()
    }

    /// What the server is told.
    pub fn shown(&self, ctx: &Context) -> Vec<wire::HotVms> {
        let own = Class::own(&ctx.template);
        let mut counts: BTreeMap<Class, (u32, u32)> = BTreeMap::from([(own, (0, 0))]);
        for entry in self.lock().spares.values().filter(|e| e.is_free()) {
            let (ready, preparing) = counts.entry(entry.class).or_default();
            *(if entry.ready { ready } else { preparing }) += 1;
        }
        let shown = counts.into_iter().map(|(class, (ready, preparing))| wire::HotVms {
            template: ctx.template.name.clone(),
            cpus: class.cpus,
            memory_bytes: class.memory_bytes,
            disk_bytes: class.disk_bytes,
            ready,
            preparing,
            default_size: class == own,
        });
        shown.collect()
    }
}

enum Next {
    Start(Class, Ticket),
    Save,
}
