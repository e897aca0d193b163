//! This host's saved states: which slot has one, how often one could not be used, and when another is to be tried.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shoes_vz_proto::agent as wire;
use shoes_vz_vm::{
    saved::{self, Draft, SavedState, SavedStates, Unusable, Wanted},
    spec::{HypervisorKind, VmSpec},
};
use tokio::{task::spawn_blocking, time::Instant};

use crate::{context::Context, hot::StatesMode};

/// Below the runners path: one volume with the bundles, as clones need it.
pub(crate) const DIR: &str = ".saved-states";
/// After a state could not be saved, and after the next ones.
const FIRST_RETRY: Duration = Duration::from_secs(60);
const LONGEST_RETRY: Duration = Duration::from_secs(3600);

/// Why a VM is booted on a host whose hypervisor cannot save VMs, as a metric's label has it.
pub(crate) const UNSUPPORTED: &str = "unsupported";

/// Whether this host's hypervisor can save VMs; else why not, and what to do. `dir` holds a small file meanwhile.
pub(crate) async fn possible(hypervisor: HypervisorKind, dir: &Path) -> Result<(), String> {
    let dir = dir.to_owned();
    spawn_blocking(move || saved::possible(hypervisor, &dir))
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// What is done about saved states on a host: as asked, unless its hypervisor cannot save VMs. That turns `auto` off, with
/// a line in the log, and refuses `use`, which somebody asked for by name.
pub(crate) fn mode(asked: StatesMode, possible: Result<(), String>) -> Result<StatesMode, String> {
    match (asked, possible) {
        (StatesMode::Use, Err(reason)) => Err(format!(
            "--saved-states use: {reason}; or use --saved-states auto, with which guests boot on this host"
        )),
        (StatesMode::Auto, Err(reason)) => {
            tracing::warn!(
                reason,
                "saved states are off: guests boot instead, and hot VMs work as before (--saved-states off silences this)"
            );
            Ok(StatesMode::Unsupported)
        }
        (asked, _) => Ok(asked),
    }
}

/// See the module.
pub struct States {
    store: Arc<SavedStates>,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    slots: BTreeMap<u32, Known>,
    fallbacks: BTreeMap<&'static str, u64>,
}

/// What is known of a slot.
#[derive(Default)]
struct Known {
    /// Its state was fit for use when last looked at.
    good: bool,
    failures: u32,
    retry_at: Option<Instant>,
    /// Why the last try to make one failed.
    why: String,
}

impl States {
    /// Those below `runners_path`.
    pub fn below(runners_path: &Path) -> Self {
        Self { store: Arc::new(SavedStates::at(runners_path.join(DIR))), inner: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes what former agents left half-made, and the states of slots this host has no more.
    pub async fn sweep(&self, slots: u32) {
        let store = self.store.clone();
        let swept = spawn_blocking(move || store.sweep(slots)).await;
        if let Ok(Err(error)) = swept {
            tracing::warn!(%error, "half-saved states cannot be removed; they only take space");
        }
    }

    /// Whether this slot had a state fit for use when last looked at.
    pub(crate) fn may_have(&self, slot: u32) -> bool {
        self.lock().slots.get(&slot).is_some_and(|known| known.good)
    }

    /// Whether this slot has no state and may get one now; else when it may.
    pub(crate) async fn needs(&self, ctx: &Context, slot: u32) -> Result<bool, Instant> {
        let retry_at = self.lock().slots.get(&slot).and_then(|known| known.retry_at);
        if let Some(at) = retry_at.filter(|at| *at > Instant::now()) {
            return Err(at);
        }
        let spec = ctx.own_spec(slot);
        Ok(self.find(ctx, slot, &spec).await.is_err())
    }

    /// The slot's state, fit for a VM of `spec`.
    pub(crate) async fn find(&self, ctx: &Context, slot: u32, spec: &VmSpec) -> Result<SavedState, Unusable> {
        let found = self.on_disk(ctx, slot, spec, SavedStates::find).await;
        self.lock().slots.entry(slot).or_default().good = found.is_ok();
        found
    }

    /// As [`States::find`], of a state no guest was restored from yet.
    pub(crate) async fn find_unproved(
        &self,
        ctx: &Context,
        slot: u32,
        spec: &VmSpec,
    ) -> Result<SavedState, Unusable> {
        self.on_disk(ctx, slot, spec, SavedStates::find_unproved).await
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        ctx: &Context,
        slot: u32,
        spec: &VmSpec,
        what: impl FnOnce(&SavedStates, &Wanted) -> Result<T, Unusable> + Send + 'static,
    ) -> Result<T, Unusable> {
        let (store, wanted) = (self.store.clone(), wanted(ctx, slot, spec));
        let done = spawn_blocking(move || what(&store, &wanted)).await;
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// An empty place for a new one.
    pub(crate) async fn draft(&self, ctx: &Context, slot: u32, spec: &VmSpec) -> Result<Draft, String> {
        let (store, wanted) = (self.store.clone(), wanted(ctx, slot, spec));
        let made = spawn_blocking(move || store.draft(&wanted)).await;
        made.map_err(|e| e.to_string())?.map_err(|e| crate::slot_vm::chain(&e))
    }

    /// The VM of `bundle` is over, and its state in the draft: the slot's state from now on, once it is proved.
    pub(crate) async fn keep(&self, draft: Draft, bundle: PathBuf) -> Result<(), String> {
        let kept = spawn_blocking(move || draft.finish(&bundle)).await;
        kept.map_err(|e| e.to_string())?.map_err(|e| crate::slot_vm::chain(&e))
    }

    /// A guest was restored from it.
    pub(crate) async fn proved(&self, state: SavedState) -> Result<(), String> {
        let slot = state.slot();
        let store = self.store.clone();
        let done = spawn_blocking(move || store.verified(&state)).await;
        done.map_err(|e| e.to_string())?.map_err(|e| crate::slot_vm::chain(&e))?;
        tracing::info!(slot, "the slot's state is saved and proved");
        self.lock().slots.insert(slot, Known { good: true, ..Known::default() });
        Ok(())
    }

    /// It is of no use; another is made in its place when there is time.
    pub(crate) async fn discard(&self, ctx: &Context, slot: u32, why: &str) {
        let spec = ctx.own_spec(slot);
        let (store, wanted) = (self.store.clone(), wanted(ctx, slot, &spec));
        let why = why.to_owned();
        let done = spawn_blocking(move || store.discard(&wanted, &why)).await;
        if let Ok(Err(error)) = done {
            tracing::warn!(slot, %error, "a saved state that is of no use cannot be removed");
        }
        self.lock().slots.entry(slot).or_default().good = false;
    }

    /// No state could be saved; gives when another try is made.
    pub(crate) fn failed(&self, slot: u32, why: String) -> Duration {
        let mut inner = self.lock();
        let known = inner.slots.entry(slot).or_default();
        let pause = (FIRST_RETRY * (1 << known.failures.min(6))).min(LONGEST_RETRY);
        known.good = false;
        known.failures += 1;
        known.why = why;
        known.retry_at = Some(Instant::now() + pause);
        pause
    }

    /// Where a slot stands: it has a proved state, or why the last try to make one failed; `None`: neither.
    pub(crate) fn standing(&self, slot: u32) -> Option<Result<(), String>> {
        let inner = self.lock();
        let known = inner.slots.get(&slot)?;
        match known {
            Known { good: true, .. } => Some(Ok(())),
            Known { failures: 1.., why, .. } => Some(Err(why.clone())),
            Known { .. } => None,
        }
    }

    /// A VM was booted for want of a state, for this reason.
    pub(crate) fn count(&self, reason: &'static str) {
        *self.lock().fallbacks.entry(reason).or_default() += 1;
    }

    /// How often so far, for the server.
    pub fn fallbacks(&self) -> Vec<wire::RestoreFallback> {
        let inner = self.lock();
        inner
            .fallbacks
            .iter()
            .map(|(reason, count)| wire::RestoreFallback { reason: (*reason).into(), count: *count })
            .collect()
    }
}

fn wanted(ctx: &Context, slot: u32, spec: &VmSpec) -> Wanted {
    Wanted { slot, spec: spec.clone(), template: ctx.template.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_the_hypervisor_cannot_save_vms_auto_boots_and_use_is_refused_with_the_reason() {
        let cannot = || Err("QEMU 7.2.22 refuses".to_owned());
        assert_eq!(mode(StatesMode::Auto, cannot()), Ok(StatesMode::Unsupported));
        assert_eq!(mode(StatesMode::Off, cannot()), Ok(StatesMode::Off));
        let refused = mode(StatesMode::Use, cannot()).unwrap_err();
        assert!(
            refused.contains("--saved-states use") && refused.contains("QEMU 7.2.22 refuses"),
            "{refused}"
        );
        for asked in [StatesMode::Auto, StatesMode::Use, StatesMode::Off] {
            assert_eq!(mode(asked, Ok(())), Ok(asked));
        }
    }
}
