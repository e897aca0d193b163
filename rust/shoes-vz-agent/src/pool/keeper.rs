//! When another hot VM is started.

use shoes_vz_model::{bundle::RuntimeMetadata, id::RunnerId};
use tokio::time::{Instant, sleep_until};

use super::{
    hot_vm::HotVm,
    plan::Count,
    registry::{Pool, Purpose, State},
};
use crate::{
    bundles::Bundle,
    host::VmSize,
    provision::{EmptySlot, VmResources},
    saved_states::StatesMode,
    slots::Ticket,
};

/// VMs that are started ahead at one time: more would only slow each other down.
const AT_ONCE: usize = 2;

impl Pool {
    /// Keeps as many VMs hot, and as many states saved, as is wanted. Never returns.
    pub async fn keep(&self) {
        let mut refusal = self.disk().refusal();
        loop {
            let mut changes = self.changes();
            let again_at = self.fill().await;
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

    /// Starts what is missing; returns when to try again, if nothing changes before.
    async fn fill(&self) -> Option<Instant> {
        loop {
            if self.disk().refusal().borrow().is_some() {
                return None;
            }
            let next = {
                let state = self.lock();
                if let Some(at) = state.retry_at() {
                    return Some(at);
                }
                self.next(&state)
            };
            let (size, purpose, ticket) = match next {
                Some(PoolAction::Start(size, ticket)) => (size, Purpose::Hot, ticket),
                Some(PoolAction::Save) => match self.slot_to_save().await {
                    Ok(ticket) => (self.host().default_size(), Purpose::State, ticket),
                    Err(again) => return again,
                },
                None => return None,
            };
            self.begin(size, purpose, ticket);
        }
    }

    /// What is missing most, and can be begun.
    fn next(&self, state: &State) -> Option<PoolAction> {
        if state.preparing() >= AT_ONCE || self.slots().free().len() <= self.waiting() {
            return None;
        }
        for (size, count) in self.plan().sizes(&self.host().template) {
            let wanted = match count {
                Count::All => usize::MAX,
                Count::Of(n) => n as usize,
            };
            if state.hot(size) < wanted {
                let ticket = self.slots().take(|slot| self.host().saved_states.may_have(slot))?;
                return Some(PoolAction::Start(size, ticket));
            }
        }
        (self.host().saved_states.mode() == StatesMode::Auto).then_some(PoolAction::Save)
    }

    /// A free slot that has no state and may get one now, or when to look again.
    async fn slot_to_save(&self) -> Result<Ticket, Option<Instant>> {
        let mut again: Option<Instant> = None;
        for slot in self.slots().free() {
            match self.host().saved_states.needs(slot, &self.host().default_spec(slot)).await {
                Ok(false) => {}
                Ok(true) => {
                    if let Some(ticket) = self.slots().take_index(slot) {
                        return Ok(ticket);
                    }
                }
                Err(at) => again = Some(again.map_or(at, |earlier| earlier.min(at))),
            }
        }
        Err(again)
    }

    fn begin(&self, size: VmSize, purpose: Purpose, ticket: Ticket) {
        let host = self.host();
        let id = RunnerId::from(host.ambient.uuid());
        let bundle = Bundle::of(&host.runners_path, id);
        tracing::info!(hot_vm = %id, slot = ticket.index(), ?size, ?purpose, "starting a hot VM");
        let hot_vm = self.insert(id, size, purpose);
        hot_vm.begin(EmptySlot::new(host.clone(), bundle, ticket));
    }

    /// Whether VMs of that size are kept hot at all.
    pub(crate) fn wants(&self, size: VmSize) -> bool {
        let wanted = self.plan().sizes(&self.host().template);
        wanted.iter().any(|(wanted, count)| *wanted == size && *count != Count::Of(0))
    }

    /// Takes over one that a former agent had ready.
    pub(crate) fn adopt(&self, size: VmSize, vm: VmResources, meta: RuntimeMetadata) {
        self.insert(vm.bundle.runner, size, Purpose::Hot).resume(vm, meta);
    }

    fn insert(&self, id: RunnerId, size: VmSize, purpose: Purpose) -> HotVm {
        let (claimed, evict) = self.register(id, size, purpose);
        HotVm { pool: self.clone(), id, size, purpose, claimed, evict }
    }
}

enum PoolAction {
    Start(VmSize, Ticket),
    Save,
}
