//! What belongs to a VM and must be undone: the VM process, its bundle, its slot, in this order.

use std::{net::IpAddr, sync::Arc, time::Duration};

use shoes_vz_model::{state::Stage, text};
use shoes_vz_process::{backoff::Backoff, chain::Chain, units};
use shoes_vz_proto::vm::VmStatus;
use shoes_vz_vm::client::Stop;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{Bounds, Unfinished, error::ProvisionError};
use crate::{bundles::Bundle, host::Host, slots::Ticket, vms::VmProcess};

/// First pause between two attempts to reach a VM process or its guest, and the longest.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(50);
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a former agent's VM process may leave questions unanswered before its VM is ended.
const RECONNECT_DEADLINE: Duration = Duration::from_secs(180);

/// A VM, or what there is of it. Dropped before it is removed, which only a panic does, it removes itself in the
/// background; its slot stays taken as long.
pub(crate) struct VmResources {
    pub(crate) host: Arc<Host>,
    pub(crate) bundle: Bundle,
    pub(crate) slot: u32,
    pub(crate) vm: Option<Arc<dyn VmProcess>>,
    /// The guest's address, where it is assigned to this VM.
    pub(super) address: Option<IpAddr>,
    /// The rest of a step that is never cut short, for a caller that does not wait for it.
    pending: Option<Pending>,
    /// `None` only while it is dropped.
    ticket: Option<Ticket>,
    /// Whether something other than the slot is to be undone.
    armed: bool,
}

/// Ends with the VM process, if that was what was under way.
type Pending = JoinHandle<Option<Arc<dyn VmProcess>>>;

/// A slot without a VM, and the bundle that is to be created in it.
pub(crate) struct EmptySlot(pub(super) VmResources);

/// A VM process; its VM may run already.
pub(crate) struct Launched {
    pub(super) resources: VmResources,
    pub(super) vm: Arc<dyn VmProcess>,
    /// Whether this agent restores it from a saved state.
    pub(super) restored: bool,
}

impl EmptySlot {
    pub(crate) fn new(host: Arc<Host>, bundle: Bundle, ticket: Ticket) -> Self {
        let slot = ticket.index();
        Self(VmResources {
            host,
            bundle,
            slot,
            vm: None,
            address: None,
            pending: None,
            ticket: Some(ticket),
            armed: false,
        })
    }

    pub(crate) fn index(&self) -> u32 {
        self.0.slot
    }

    pub(crate) fn bundle(&self) -> &Bundle {
        &self.0.bundle
    }

    /// With nothing to undo but the slot.
    pub(crate) fn into_resources(self) -> VmResources {
        self.0
    }

    /// From here on there is something to undo.
    pub(super) fn occupy(self) -> VmResources {
        let mut resources = self.0;
        resources.armed = true;
        resources
    }
}

impl Launched {
    pub(crate) fn status(&self) -> VmStatus {
        self.vm.status().borrow().clone()
    }

    /// Lets a paused VM go on.
    pub(crate) async fn resume(self, bounds: &Bounds) -> Result<Self, Unfinished> {
        let resume = async { self.vm.resume().await.map_err(ProvisionError::Start) };
        match bounds.run(&*self.vm, Stage::Start, resume).await {
            Ok(()) => Ok(self),
            Err(error) => Err(self.resources.unfinished(error)),
        }
    }
}

impl VmResources {
    /// What a former agent left in a bundle; `vm`: its VM process, if that has answered.
    pub(crate) fn found(
        host: Arc<Host>,
        bundle: Bundle,
        ticket: Ticket,
        vm: Option<Arc<dyn VmProcess>>,
    ) -> Self {
        let mut resources = EmptySlot::new(host, bundle, ticket).occupy();
        resources.vm = vm;
        resources
    }

    pub(super) fn unfinished(self, error: ProvisionError) -> Unfinished {
        Unfinished { resources: self, error }
    }

    pub(super) fn launched(mut self, vm: Arc<dyn VmProcess>) -> Launched {
        self.vm = Some(vm.clone());
        Launched { resources: self, vm, restored: false }
    }

    /// Reaches the VM process that a former agent started, unless that is done already.
    pub(crate) async fn reconnect(self, cancel: &CancellationToken) -> Result<Launched, Unfinished> {
        if let Some(vm) = self.vm.clone() {
            return Ok(self.launched(vm));
        }
        let mut last_error = String::new();
        let attempts = async {
            let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
            loop {
                match self.host.vms.find(&self.bundle.path).await {
                    Ok(found) => return found,
                    Err(error) => {
                        last_error = Chain(&error).to_string();
                        tracing::debug!(reason = last_error, "VM process does not answer yet");
                    }
                }
                sleep(pauses.pause()).await;
            }
        };
        let found = tokio::select! {
            biased;
            () = cancel.cancelled() => return Err(self.unfinished(ProvisionError::Cancelled)),
            found = timeout(RECONNECT_DEADLINE, attempts) => found,
        };
        match found {
            Ok(Some(vm)) => {
                tracing::info!("VM process answers; adopting its VM");
                Ok(self.launched(vm))
            }
            Ok(None) => Err(self.unfinished(ProvisionError::NoVmProcess)),
            Err(_) => Err(self.unfinished(ProvisionError::VmProcessSilent {
                limit: units::show_duration(RECONNECT_DEADLINE),
                last_error,
            })),
        }
    }

    /// Awaits a step that is never cut short, because what it would leave behind could not be undone. When `bounds` end the
    /// wait, it goes on, and the removal waits for it.
    pub(super) async fn uninterrupted<T: Send + 'static>(
        &mut self,
        bounds: &Bounds,
        step: impl Future<Output = T> + Send + 'static,
        vm: fn(T) -> Option<Arc<dyn VmProcess>>,
    ) -> Result<T, ProvisionError> {
        bounds.wait(std::future::ready(())).await?;
        let mut task = tokio::spawn(step);
        match bounds.wait(&mut task).await {
            Ok(done) => done.map_err(|error| match error.try_into_panic() {
                Ok(panic) => ProvisionError::Panicked(text::panic_reason(&*panic)),
                Err(error) => ProvisionError::Panicked(error.to_string()),
            }),
            Err(error) => {
                self.pending = Some(tokio::spawn(async move { task.await.ok().and_then(vm) }));
                Err(error)
            }
        }
    }

    /// Ends the VM and removes its bundle. May be called again after a failure.
    async fn try_to_remove(&mut self) -> Result<(), String> {
        if let Some(pending) = self.pending.take()
            && let Ok(Some(vm)) = pending.await
        {
            self.vm = Some(vm);
        }
        let path = &self.bundle.path;
        if self.vm.is_none() {
            match self.host.vms.find(path).await {
                Ok(found) => self.vm = found,
                // It was given time to answer before.
                Err(error) => {
                    tracing::warn!(reason = %Chain(&error), bundle = ?path, "VM process does not answer; killing it");
                    self.host.vms.kill(&self.host.runners_path, path).await;
                    self.vm = self.host.vms.find(path).await.map_err(|e| Chain(&e).to_string())?;
                }
            }
        }
        if let Some(vm) = &self.vm {
            vm.stop(Stop::Force).await.map_err(|e| Chain(&e).to_string())?;
        }
        self.host.vms.remove(path).await.map_err(|e| Chain(&e).to_string())?;
        self.vm = None;
        if let (Some(notices), Some(ip)) = (&self.host.notices, self.address.take()) {
            notices.release(ip);
        }
        Ok(())
    }

    /// Removes everything, tried until it works: the slot stays taken as long.
    pub(crate) async fn remove(mut self) {
        const FIRST: Duration = Duration::from_millis(100);
        const LONGEST: Duration = Duration::from_secs(30);
        let mut pauses = Backoff::new(FIRST, LONGEST);
        while let Err(reason) = self.try_to_remove().await {
            let pause = pauses.pause();
            tracing::error!(reason, retry_in = ?pause, "removing the VM failed; retrying, and its slot stays in use until then");
            sleep(pause).await;
        }
        self.armed = false;
    }

    /// Back to an empty slot.
    pub(crate) async fn clear(mut self) -> Result<EmptySlot, Unfinished> {
        match self.try_to_remove().await {
            Ok(()) => {
                self.armed = false;
                Ok(EmptySlot(self))
            }
            Err(reason) => Err(self.unfinished(ProvisionError::Clear(reason))),
        }
    }
}

impl Drop for VmResources {
    fn drop(&mut self) {
        // Without a runtime, or with one that ends, the agent ends: the VM goes on, and the next agent adopts it.
        let (true, Ok(runtime)) = (self.armed, tokio::runtime::Handle::try_current()) else { return };
        let mut lost = Self {
            host: self.host.clone(),
            bundle: self.bundle.clone(),
            slot: self.slot,
            vm: self.vm.take(),
            address: self.address,
            pending: self.pending.take(),
            ticket: self.ticket.take(),
            // A runtime that ends drops the task below before it runs: then nothing is removed.
            armed: false,
        };
        runtime.spawn(async move {
            lost.armed = true;
            tracing::error!(bundle = ?lost.bundle.path, "VM has no owner, which is a bug in shoes-vz: please report it; removing the VM");
            lost.remove().await;
        });
    }
}
