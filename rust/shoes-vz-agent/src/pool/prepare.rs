//! From a slot to a hot VM: by its saved state; else by booting, and then with a new state saved on the way.
//!
//! ```text
//! state ─▶ restore ─▶ ready            no state ─▶ boot ─▶ pause ─▶ save ─▶ end ─▶ restore (the proof) ─▶ ready
//!             └ refused ─▶ discarded ─────▲           └ a runner waits already: it gets this one
//! ```

use shoes_vz_process::chain::Chain;
use shoes_vz_vm::{
    client::{Stop, VmError},
    saved::Draft,
    spec::StateUse,
};

use super::hot_vm::{HotVmEnd, Life};
use crate::{
    provision::{Bounds, EmptySlot, ProvisionError, ReadyVm, Restored, Unfinished, VmRequest, VmResources},
    saved_states::StatesMode,
};

/// How often a guest is logged into before its state is saved: what that needs is then in its memory.
const LOGINS: usize = 3;

/// Why there is no new state.
enum Unsaved {
    /// The VM itself could not be started.
    Vm(HotVmEnd),
    /// Only the state could not be saved; what is left of the VM.
    State(VmResources, String),
}

/// Why a VM's state is not saved.
enum SaveError {
    /// The start was cancelled, or its deadline has passed.
    Ended(ProvisionError),
    State(String),
}

impl From<Unfinished> for Unsaved {
    fn from(unfinished: Unfinished) -> Self {
        Self::Vm(unfinished.into())
    }
}

impl Life {
    pub(super) async fn prepare(&mut self, slot: EmptySlot, bounds: &Bounds) -> Result<ReadyVm, HotVmEnd> {
        let request = self.request();
        let slot = match slot.restore_if_possible(&request, bounds, &mut self.journal).await? {
            Restored::Ready(vm) => return Ok(vm),
            Restored::Not(slot, _) => slot,
        };
        let saves = self.host.saved_states.mode() == StatesMode::Auto;
        if !saves || self.hot_vm.size != self.host.default_size() {
            return self.boot(slot, StateUse::None, bounds).await;
        }
        let index = slot.index();
        let (resources, reason) = match self.save_and_restore(slot, bounds).await {
            Ok(vm) => return Ok(vm),
            Err(Unsaved::Vm(end)) => return Err(end),
            Err(Unsaved::State(resources, reason)) => (resources, reason),
        };
        if self.is_for_its_state() {
            // No runner waits for it.
            return Err(HotVmEnd::Failed(resources, reason));
        }
        let slot = resources.clear().await?;
        let retry_in = self.host.saved_states.failed(index, reason.clone());
        tracing::warn!(slot = index, reason, ?retry_in, "saving a state failed; booting the guest instead");
        self.boot(slot, StateUse::None, bounds).await
    }

    fn request(&self) -> VmRequest {
        let pool = &self.hot_vm.pool;
        let limit = pool.limits().max_lifetime.map(|limit| limit.saturating_add(pool.plan().max_age));
        let lives_until = limit.and_then(|limit| self.journal.meta.created_at.checked_add(limit).ok());
        VmRequest { size: self.hot_vm.size, script: None, lives_until }
    }

    async fn boot(&mut self, slot: EmptySlot, state: StateUse, bounds: &Bounds) -> Result<ReadyVm, HotVmEnd> {
        let request = self.request();
        Ok(slot.boot(&request, state, bounds, &mut self.journal).await?)
    }

    /// A new state for this slot, proved by a restore, after which the VM is ready.
    async fn save_and_restore(&mut self, slot: EmptySlot, bounds: &Bounds) -> Result<ReadyVm, Unsaved> {
        let index = slot.index();
        let draft = match self.host.saved_states.draft(index, &self.host.default_spec(index)).await {
            Ok(draft) => draft,
            Err(reason) => return Err(Unsaved::State(slot.into_resources(), reason)),
        };
        let booted = self.boot(slot, StateUse::Save(draft.dir().to_owned()), bounds).await;
        let vm = booted.map_err(Unsaved::Vm)?;
        if self.is_claimed() {
            // A runner waits: the state is saved another time.
            return Ok(vm);
        }
        let slot = match self.save(&vm, draft, bounds).await {
            Ok(()) => vm.resources.clear().await?,
            Err(SaveError::Ended(error)) => {
                return Err(Unsaved::Vm(HotVmEnd::Failed(vm.resources, error.to_string())));
            }
            Err(SaveError::State(reason)) => return Err(Unsaved::State(vm.resources, reason)),
        };
        let request = self.request();
        match slot.restore_unproved(&request, bounds, &mut self.journal).await? {
            Restored::Ready(vm) => Ok(vm),
            Restored::Not(slot, reason) => {
                Err(Unsaved::State(slot.into_resources(), format!("it could not be restored: {reason}")))
            }
        }
    }

    /// Saves the VM's state, which ends the VM.
    async fn save(&self, ready: &ReadyVm, draft: Draft, bounds: &Bounds) -> Result<(), SaveError> {
        let save = async {
            let failed = |error: VmError| Chain(&error).to_string();
            // A restore works without, only slower.
            if let Err(error) = ready.guest.prepare_save().await {
                tracing::warn!(reason = %error, "preparing the guest for saving its state failed");
            }
            for _ in 1..LOGINS {
                let login = ready.guest.try_ssh().await;
                login.map_err(|e| format!("logging in before the save failed: {e}"))?;
            }
            ready.vm.pause().await.map_err(failed)?;
            ready.vm.save(&draft.machine_state()).await.map_err(failed)?;
            ready.vm.stop(Stop::Force).await.map_err(failed)?;
            self.host.saved_states.keep(draft, ready.resources.bundle.path.clone()).await
        };
        bounds.wait(save).await.map_err(SaveError::Ended)?.map_err(SaveError::State)
    }
}
