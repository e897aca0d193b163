//! This host's saved states: which slot has one, how often one could not be used, and when another is to be tried.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use shoes_vz_process::chain::Chain;
use shoes_vz_proto::agent as wire;
use shoes_vz_vm::{
    saved::{self, Draft, SavedState, SavedStates, Unusable, Wanted},
    spec::{HypervisorKind, VmSpec},
    template::TemplateDir,
};
use tokio::{task::spawn_blocking, time::Instant};

use crate::bundles::SAVED_STATES;

/// After a state could not be saved, and after the next ones.
const FIRST_RETRY: Duration = Duration::from_secs(60);
const LONGEST_RETRY: Duration = Duration::from_secs(3600);

/// Why a VM is booted on a host whose hypervisor cannot save VMs, as a metric's label has it.
const UNSUPPORTED: &str = "unsupported";

/// Whether saved states are used, and saved where there are none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StatesMode {
    /// Both.
    #[default]
    Auto,
    /// Existing ones are used; `template warm` saves them.
    Use,
    /// Neither.
    Off,
    /// Neither, though `auto` was asked for: this host's hypervisor cannot save VMs.
    Unsupported,
}

impl StatesMode {
    pub(crate) const fn uses(self) -> bool {
        matches!(self, Self::Auto | Self::Use)
    }
}

impl FromStr for StatesMode {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "use" => Ok(Self::Use),
            "off" => Ok(Self::Off),
            other => Err(format!("{other:?} is none of auto, use, off")),
        }
    }
}

/// Whether this host's hypervisor can save VMs; else why not, and what to do. `dir` holds a small file meanwhile.
pub(crate) async fn possible(hypervisor: HypervisorKind, dir: &Path) -> Result<(), String> {
    let dir = dir.to_owned();
    spawn_blocking(move || saved::possible(hypervisor, &dir))
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
}

/// The mode that takes effect: the requested one, unless the hypervisor cannot save VMs. That turns `auto` off, with a
/// line in the log, and refuses `use`, which was requested by name.
pub(crate) fn mode(requested: StatesMode, possible: Result<(), String>) -> Result<StatesMode, String> {
    match (requested, possible) {
        (StatesMode::Use, Err(reason)) => Err(format!(
            "--saved-states use: {reason}; or use --saved-states auto, with which guests boot on this host"
        )),
        (StatesMode::Auto, Err(reason)) => {
            tracing::warn!(
                reason,
                "saved states unavailable; guests boot instead, and hot VMs still work (--saved-states off silences this)"
            );
            Ok(StatesMode::Unsupported)
        }
        (requested, _) => Ok(requested),
    }
}

/// A `spec` given to its methods is that of a VM of the template's size in that slot.
pub struct States {
    store: Arc<SavedStates>,
    template: TemplateDir,
    mode: StatesMode,
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
    /// Its state was fit for use at the last check.
    usable: bool,
    failures: u32,
    retry_at: Option<Instant>,
    /// Why the last attempt to save one failed.
    reason: String,
}

impl States {
    /// Those below `runners_path`.
    pub fn below(runners_path: &Path, template: TemplateDir, mode: StatesMode) -> Self {
        let store = Arc::new(SavedStates::at(runners_path.join(SAVED_STATES)));
        Self { store, template, mode, inner: Mutex::default() }
    }

    /// None is saved or used.
    pub fn off(runners_path: &Path, template: TemplateDir) -> Self {
        Self::below(runners_path, template, StatesMode::Off)
    }

    pub(crate) fn mode(&self) -> StatesMode {
        self.mode
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes incomplete states of former agents, and the states of slots this host no longer has.
    pub async fn sweep(&self, slots: u32) {
        let store = self.store.clone();
        let swept = spawn_blocking(move || store.sweep(slots)).await;
        if let Ok(Err(error)) = swept {
            tracing::warn!(reason = %error, "removing incomplete saved states failed; they occupy disk space");
        }
    }

    /// Whether this slot had a usable state at the last check.
    pub(crate) fn may_have(&self, slot: u32) -> bool {
        self.lock().slots.get(&slot).is_some_and(|known| known.usable)
    }

    /// Whether this slot has no state and may get one now; else when it may.
    pub(crate) async fn needs(&self, slot: u32, spec: &VmSpec) -> Result<bool, Instant> {
        let retry_at = self.lock().slots.get(&slot).and_then(|known| known.retry_at);
        if let Some(at) = retry_at.filter(|at| *at > Instant::now()) {
            return Err(at);
        }
        Ok(self.find(slot, spec).await.is_err())
    }

    /// The slot's state, fit for a VM of `spec`.
    pub(crate) async fn find(&self, slot: u32, spec: &VmSpec) -> Result<SavedState, Unusable> {
        let found = self.on_disk(slot, spec, SavedStates::find).await;
        self.lock().slots.entry(slot).or_default().usable = found.is_ok();
        found
    }

    /// As [`States::find`], of a state from which no guest was restored yet.
    pub(crate) async fn find_unproved(&self, slot: u32, spec: &VmSpec) -> Result<SavedState, Unusable> {
        self.on_disk(slot, spec, SavedStates::find_unproved).await
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        slot: u32,
        spec: &VmSpec,
        what: impl FnOnce(&SavedStates, &Wanted) -> T + Send + 'static,
    ) -> T {
        let wanted = Wanted { slot, spec: spec.clone(), template: self.template.clone() };
        let store = self.store.clone();
        let done = spawn_blocking(move || what(&store, &wanted)).await;
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }

    /// An empty place for a new one.
    pub(crate) async fn draft(&self, slot: u32, spec: &VmSpec) -> Result<Draft, String> {
        self.on_disk(slot, spec, SavedStates::draft).await.map_err(|e| Chain(&e).to_string())
    }

    /// The VM of `bundle` has ended, and its state in the draft is the slot's from now on, once it is proved.
    pub(crate) async fn keep(&self, draft: Draft, bundle: PathBuf) -> Result<(), String> {
        let kept = spawn_blocking(move || draft.finish(&bundle)).await;
        kept.map_err(|e| e.to_string())?.map_err(|e| Chain(&e).to_string())
    }

    /// A guest was restored from it.
    pub(crate) async fn proved(&self, state: SavedState) -> Result<(), String> {
        let slot = state.slot();
        let store = self.store.clone();
        let done = spawn_blocking(move || store.verified(&state)).await;
        done.map_err(|e| e.to_string())?.map_err(|e| Chain(&e).to_string())?;
        tracing::info!(slot, "saved state verified by a restore");
        self.lock().slots.insert(slot, Known { usable: true, ..Known::default() });
        Ok(())
    }

    /// The slot's state cannot be used; another is saved in its place when there is time.
    pub(crate) async fn discard(&self, slot: u32, spec: &VmSpec, reason: &'static str) {
        let discarded = self.on_disk(slot, spec, move |store, wanted| store.discard(wanted, reason)).await;
        if let Err(error) = discarded {
            tracing::warn!(slot, reason = %error, "removing an unusable saved state failed");
        }
        self.lock().slots.entry(slot).or_default().usable = false;
    }

    /// No state could be saved; returns the pause before the next attempt.
    pub(crate) fn failed(&self, slot: u32, reason: String) -> Duration {
        let mut inner = self.lock();
        let known = inner.slots.entry(slot).or_default();
        let pause = (FIRST_RETRY * (1 << known.failures.min(6))).min(LONGEST_RETRY);
        known.usable = false;
        known.failures += 1;
        known.reason = reason;
        known.retry_at = Some(Instant::now() + pause);
        pause
    }

    /// `Ok`: the slot has a verified state; `Err`: why the last attempt to save one failed; `None`: neither.
    pub(crate) fn standing(&self, slot: u32) -> Option<Result<(), String>> {
        let inner = self.lock();
        let known = inner.slots.get(&slot)?;
        match known {
            Known { usable: true, .. } => Some(Ok(())),
            Known { failures: 1.., reason, .. } => Some(Err(reason.clone())),
            Known { .. } => None,
        }
    }

    /// A VM is booted because no state was usable, for this reason.
    pub(crate) fn count(&self, reason: &'static str) {
        *self.lock().fallbacks.entry(reason).or_default() += 1;
    }

    /// A VM is booted; counted if it is because the hypervisor cannot save VMs.
    pub(crate) fn count_unsupported(&self) {
        if self.mode == StatesMode::Unsupported {
            self.count(UNSUPPORTED);
        }
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
        for requested in [StatesMode::Auto, StatesMode::Use, StatesMode::Off] {
            assert_eq!(mode(requested, Ok(())), Ok(requested));
        }
    }
}
