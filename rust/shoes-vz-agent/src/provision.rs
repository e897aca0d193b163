//! From an empty slot to a VM whose SSH answers, in steps of which each consumes the one before.
//!
//! ```text
//! EmptySlot ──launch──▶ Launched ──reach guest──▶ Up ──[personalize]──log in──▶ ReadyVm
//!    ▲  create, start the VM process    start, wait                                │ a runner's, or a hot VM's that
//!    └────────── clear ◀── VmResources ◀── Unfinished (any step) ◀─────────────────┘ becomes a runner's by `claim`
//! ```
//! | what happens | when | then |
//! |---|---|---|
//! | cancelled, deadline, the VM ends, a panic | while a step waits | [`Unfinished`]: why, and what is to be undone |
//! | cancelled, deadline | while the bundle is created or the VM process starts | the same; neither is cut short, and the removal waits for it |
//! | the step's future is dropped with its VM | only with the whole agent | the VM goes on; the next agent adopts it |
//!
//! A step is never cancelled by dropping its future: that would drop the VM's [`VmResources`] with it, which then remove
//! the VM in the background and log an error.

mod boot;
mod error;
mod identity;
mod journal;
mod resources;
mod restore;
mod timeline;

use std::sync::Arc;

use shoes_vz_model::{bundle::RuntimeMetadata, state::Stage};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

pub(crate) use self::{
    boot::VmRequest,
    error::ProvisionError,
    journal::{Journal, Observer},
    resources::{EmptySlot, FIRST_PAUSE, LONGEST_PAUSE, VmResources},
    restore::Restored,
};
use crate::{
    bundles::{Bundle, Script},
    guest::Guest,
    ssh::Ssh,
    tasks::catch_panic,
    vms::VmProcess,
};

/// A step that did not lead to the next one.
pub(crate) struct Unfinished {
    pub(crate) resources: VmResources,
    pub(crate) error: ProvisionError,
}

/// What ends a step before it is done.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    pub(crate) cancel: CancellationToken,
    pub(crate) deadline: Instant,
}

impl Bounds {
    /// Awaits `work`, for which no VM is needed.
    pub(crate) async fn wait<T>(&self, work: impl Future<Output = T>) -> Result<T, ProvisionError> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(ProvisionError::Cancelled),
            () = sleep_until(self.deadline) => Err(ProvisionError::Deadline { last_error: String::new() }),
            outcome = work => Ok(outcome),
        }
    }

    /// Awaits `work`, unless something ends it first. A panic in it is an error, so that its VM is not lost.
    async fn run<T>(
        &self,
        vm: &dyn VmProcess,
        stage: Stage,
        work: impl Future<Output = Result<T, ProvisionError>>,
    ) -> Result<T, ProvisionError> {
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(ProvisionError::Cancelled),
            end = vm.ended() => Err(ProvisionError::VmEnded { end, stage }),
            () = sleep_until(self.deadline) => Err(ProvisionError::Deadline { last_error: String::new() }),
            outcome = catch_panic(work) => outcome.unwrap_or_else(|panic| Err(ProvisionError::Panicked(panic))),
        }
    }
}

/// A VM whose SSH has answered.
pub(crate) struct ReadyVm {
    pub(crate) resources: VmResources,
    pub(crate) vm: Arc<dyn VmProcess>,
    pub(crate) guest: Arc<dyn Guest>,
    ssh: Ssh,
}

impl ReadyVm {
    /// Makes a hot VM's bundle that of the runner in `meta`. The metadata write is the commit point: once it is done the
    /// bundle is that runner's, whatever its directory is called, and a later agent renames it.
    pub(crate) async fn claim(
        &mut self,
        bundle: Bundle,
        meta: &RuntimeMetadata,
        script: &Script,
    ) -> Result<(), ProvisionError> {
        let Self { resources, vm, guest, ssh } = self;
        resources.bundle.keep_script(script).map_err(ProvisionError::KeepScript)?;
        resources.bundle.set_metadata(meta).map_err(ProvisionError::Metadata)?;
        let host = resources.host.clone();
        let renamed = host.vms.rename(Some(&**vm), &resources.bundle, &bundle).await;
        renamed.map_err(ProvisionError::Rename)?;
        resources.bundle = bundle;
        // Its sockets have another name now.
        if let Some(again) = host.vms.guest_again(&**vm, &host.route(), ssh.clone()) {
            *guest = again;
        }
        Ok(())
    }
}
