//! From an empty slot to SSH by the slot's saved state. Whatever goes wrong, the slot is given back to boot in.

use std::{path::Path, time::Duration};

use shoes_vz_model::state::Stage;
use shoes_vz_process::units;
use shoes_vz_proto::vm::VmEndKind;
use shoes_vz_vm::spec::StateUse;
use tokio::time::Instant;

use super::{
    Bounds, ReadyVm, Unfinished, boot::VmRequest, error::ProvisionError, journal::Observer,
    resources::EmptySlot,
};

/// A restore takes a second, and a boot many: one that takes longer is given up for a boot.
const RESTORE_DEADLINE: Duration = Duration::from_secs(20);

pub(crate) enum Restored {
    Ready(ReadyVm),
    /// There is no state for such a VM, or it could not be used, for this reason.
    Not(EmptySlot, String),
}

/// Whether a state that did not lead to a ready guest may be used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blame {
    State,
    Host,
}

/// Whether a failed restore is followed by a boot (the metric's reason, and what is to blame), or ends the start.
///
/// A full disk, or two VMs that run already, is not the state's fault.
fn judge(error: &ProvisionError, stage: Stage, start_deadline_passed: bool) -> Option<(&'static str, Blame)> {
    use ProvisionError as E;
    Some(match error {
        E::Cancelled | E::Clear(_) => return None,
        // The operator ended the VM: no other one is wanted.
        E::VmEnded { end, .. } if end.kind() == VmEndKind::Requested => return None,
        E::Deadline { .. } if start_deadline_passed => return None,
        E::Deadline { .. } if stage == Stage::Clone => ("late", Blame::Host),
        E::Deadline { .. } => ("late", Blame::State),
        E::Create(_) => ("clone", Blame::Host),
        E::VmEnded { end, .. } if end.kind() == VmEndKind::RestoreRefused => ("refused", Blame::State),
        E::VmEnded { stage: Stage::Start, .. } | E::Launch(_) | E::Start(_) => ("refused", Blame::Host),
        E::VmEnded { end, stage } => match end.kind() {
            VmEndKind::DiskError | VmEndKind::HypervisorKilled => (stage.as_str(), Blame::Host),
            _ => (stage.as_str(), Blame::State),
        },
        E::Guest(_) => ("guest", Blame::State),
        E::Identity(_) => ("personalize", Blame::Host),
        E::Personalize(_) => ("personalize", Blame::State),
        E::Ssh(_) => ("ssh", Blame::State),
        // A fault of the agent, which ends the runner.
        E::Panicked(_) => return None,
        E::KeepScript(_) | E::Metadata(_) | E::Rename(_) | E::NoVmProcess | E::VmProcessSilent { .. } => {
            return None;
        }
    })
}

impl EmptySlot {
    /// Restores the slot's saved state, if there is one for such a VM.
    pub(crate) async fn restore_if_possible(
        self,
        request: &VmRequest,
        bounds: &Bounds,
        observer: &mut dyn Observer,
    ) -> Result<Restored, Unfinished> {
        let (host, slot) = (self.0.host.clone(), self.0.slot);
        // There are none of other sizes.
        if !host.saved_states.mode().uses() || request.size != host.default_size() {
            host.saved_states.count_unsupported();
            return Ok(Restored::Not(self, "no saved states are used for such a VM".into()));
        }
        match host.saved_states.find(slot, &host.default_spec(slot)).await {
            Ok(state) => self.restore(state.dir(), request, bounds, observer).await,
            Err(unusable) => {
                let kind = unusable.kind.as_str();
                host.saved_states.count(kind);
                tracing::info!(slot, kind, reason = %unusable, "no usable saved state; booting the guest");
                Ok(Restored::Not(self, unusable.to_string()))
            }
        }
    }

    /// Restores the state that was just saved, which proves that it can be used.
    pub(crate) async fn restore_unproved(
        self,
        request: &VmRequest,
        bounds: &Bounds,
        observer: &mut dyn Observer,
    ) -> Result<Restored, Unfinished> {
        let (host, slot) = (self.0.host.clone(), self.0.slot);
        let state = match host.saved_states.find_unproved(slot, &host.default_spec(slot)).await {
            Ok(state) => state,
            Err(unusable) => return Ok(Restored::Not(self, unusable.to_string())),
        };
        let restored = self.restore(state.dir(), request, bounds, observer).await?;
        if matches!(restored, Restored::Ready(_))
            && let Err(reason) = host.saved_states.proved(state).await
        {
            tracing::warn!(
                slot,
                reason,
                "recording that the saved state was verified failed; it is not used"
            );
        }
        Ok(restored)
    }

    async fn restore(
        self,
        dir: &Path,
        request: &VmRequest,
        bounds: &Bounds,
        observer: &mut dyn Observer,
    ) -> Result<Restored, Unfinished> {
        let (host, slot) = (self.0.host.clone(), self.0.slot);
        let until = Instant::now() + RESTORE_DEADLINE;
        let own = Bounds { cancel: bounds.cancel.clone(), deadline: until.min(bounds.deadline) };
        let Unfinished { resources, error } = match self.go_on_from(dir, request, &own, observer).await {
            Ok(ready) => return Ok(Restored::Ready(ready)),
            Err(unfinished) => unfinished,
        };
        let Some((kind, blame)) =
            judge(&error, observer.journal().timeline.stage(), until >= bounds.deadline)
        else {
            return Err(resources.unfinished(error));
        };
        let reason = match &error {
            ProvisionError::Deadline { last_error } => format!(
                "not ready within {} at stage {}; the last attempt failed with: {last_error}",
                units::show_duration(RESTORE_DEADLINE),
                observer.journal().timeline.stage().as_str(),
            ),
            error => error.to_string(),
        };
        tracing::warn!(slot, kind, reason, "restoring the saved state failed; booting the guest");
        host.saved_states.count(kind);
        if blame == Blame::State {
            host.saved_states.discard(slot, &host.default_spec(slot), kind).await;
        }
        Ok(Restored::Not(resources.clear().await?, reason))
    }

    async fn go_on_from(
        self,
        dir: &Path,
        request: &VmRequest,
        bounds: &Bounds,
        observer: &mut dyn Observer,
    ) -> Result<ReadyVm, Unfinished> {
        observer.enter_stage(Stage::Clone);
        let state = StateUse::Restore(dir.to_owned());
        self.launch(request, state, bounds, observer).await?.reach_ssh(bounds, observer).await
    }
}

#[cfg(test)]
mod tests {
    use shoes_vz_proto::vm::VmEnd;

    use super::*;

    #[test]
    fn a_state_is_blamed_for_what_it_did_and_not_for_its_host() {
        let ended = |kind: VmEndKind, stage| ProvisionError::VmEnded {
            end: VmEnd { kind: kind.into(), reason: "because".into() },
            stage,
        };
        let late = || ProvisionError::Deadline { last_error: String::new() };
        let stage = Stage::Guest;
        for (error, passed, judged) in [
            (ended(VmEndKind::Requested, Stage::Guest), false, None),
            (ended(VmEndKind::RestoreRefused, Stage::Start), false, Some(("refused", Blame::State))),
            (ended(VmEndKind::HypervisorFailed, Stage::Start), false, Some(("refused", Blame::Host))),
            (ended(VmEndKind::GuestPanic, Stage::Guest), false, Some(("guest", Blame::State))),
            (ended(VmEndKind::DiskError, Stage::Guest), false, Some(("guest", Blame::Host))),
            (late(), false, Some(("late", Blame::State))),
            (late(), true, None),
            (ProvisionError::Cancelled, false, None),
        ] {
            assert_eq!(judge(&error, stage, passed), judged, "{error}");
        }
    }
}
