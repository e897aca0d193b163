//! A slot and the VM in it, on the way from nothing to SSH, and everything of it that must be undone.
//!
//! ```text
//! ticket ─▶ bundle ─▶ VM process ─▶ start ─▶ guest up ─▶ [personalize ─▶] SSH        a runner's, or a hot VM's that becomes
//!            clone ────────start────────────── guest ──── personalize ──── ssh       a runner's by [`SlotVm::rename`]
//! ```
//! What must be undone stands in a field before anything is awaited after it, so that [`SlotVm::try_to_remove`] finds it
//! however the life was cut short. Making the bundle and starting the VM process are never cut short: the removal waits
//! for them first.

mod restore;
mod start;

pub(crate) use self::{restore::Restored, start::Making};

use std::{sync::Arc, time::Duration};

use shoes_vz_model::{bundle::RuntimeMetadata, state::Stage};
use shoes_vz_process::units;
use shoes_vz_process::{backoff::Backoff, chain::Chain};
use shoes_vz_vm::{
    client::{Stop, VmError},
    clone::CloneError,
};
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use crate::{
    bundles::Bundle,
    context::Context,
    guest::Guest,
    machines::Machine,
    personalization,
    runner::{Ending, Script},
    slots::Ticket,
    ssh::Ssh,
};

/// First pause between two tries to reach sshd, and the longest.
pub(crate) const FIRST_PAUSE: Duration = Duration::from_millis(50);
pub(crate) const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a former agent's VM is asked for an answer before it is given up with whatever it does.
const SEEK_DEADLINE: Duration = Duration::from_secs(180);

/// See the module.
pub(crate) struct SlotVm {
    pub(crate) ctx: Arc<Context>,
    pub(crate) bundle: Bundle,
    pub(crate) ticket: Ticket,
    pub(crate) vm: Option<Arc<dyn Machine>>,
    pub(crate) guest: Option<Arc<dyn Guest>>,
    pub(crate) ssh: Ssh,
    /// What the last try to reach it said.
    pub(crate) last_error: String,
    making: Option<JoinHandle<Result<(), CloneError>>>,
    launching: Option<JoinHandle<Result<Arc<dyn Machine>, VmError>>>,
}

impl SlotVm {
    /// Nothing but the slot yet, or what a former agent left in it.
    pub(crate) fn new(ctx: Arc<Context>, bundle: Bundle, ticket: Ticket) -> Self {
        let ssh = personalization::ssh_of(&ctx.login, &bundle.path);
        Self {
            ctx,
            bundle,
            ticket,
            vm: None,
            guest: None,
            ssh,
            last_error: String::new(),
            making: None,
            launching: None,
        }
    }

    pub(crate) fn vm(&self) -> Result<Arc<dyn Machine>, Ending> {
        self.vm.clone().ok_or_else(|| Ending::failed("internal error: no VM at a stage that has one"))
    }

    pub(crate) fn guest(&self) -> Result<Arc<dyn Guest>, Ending> {
        self.guest.clone().ok_or_else(|| Ending::failed("internal error: no guest at a stage that has one"))
    }

    /// Awaits `what`, unless the VM is over first.
    pub(crate) async fn unless_over<T>(
        &mut self,
        stage: Stage,
        what: impl AsyncFnOnce(&mut Self) -> Result<T, Ending>,
    ) -> Result<T, Ending> {
        let vm = self.vm()?;
        let bundle = self.bundle.path.clone();
        tokio::select! {
            biased;
            end = vm.ended() => Err(Ending::vm_over(&end, stage, &bundle)),
            outcome = what(self) => outcome,
        }
    }

    /// Finds the VM a former agent started, unless it is found already; `None`: it is over.
    pub(crate) async fn seek(&mut self) -> Result<Option<()>, Ending> {
        if self.vm.is_some() {
            return Ok(Some(()));
        }
        let machines = self.ctx.machines.clone();
        let path = self.bundle.path.clone();
        let tries = async {
            let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
            loop {
                match machines.find(&path).await {
                    Ok(found) => return found,
                    Err(error) => {
                        tracing::debug!(%error, "the VM does not answer yet");
                        self.last_error = chain(&error);
                    }
                }
                sleep(pauses.pause()).await;
            }
        };
        match timeout(SEEK_DEADLINE, tries).await {
            Ok(Some(vm)) => {
                tracing::info!("the VM answers; adopting it");
                self.vm = Some(vm);
                Ok(Some(()))
            }
            Ok(None) => Ok(None),
            Err(_) => Err(Ending::new(
                shoes_vz_proto::agent::EndKind::VmDied,
                format!(
                    "the VM process did not answer this agent within {}: {}",
                    units::show_duration(SEEK_DEADLINE),
                    self.last_error
                ),
            )),
        }
    }

    /// Makes a hot VM's bundle the runner's of `meta`. The metadata are the deed: once they are written the bundle is
    /// that runner's, whatever its directory is called, and a later agent calls it right.
    pub(crate) async fn rename(
        &mut self,
        bundle: Bundle,
        meta: &RuntimeMetadata,
        script: &Script,
    ) -> Result<(), Ending> {
        let fail = |what: &str, e: &dyn std::error::Error| {
            Ending::failed(format!("making the hot VM's bundle the runner's: {what} failed: {}", chain(e)))
        };
        self.bundle.keep_script(script.secret()).map_err(|e| fail("keeping the setup script", &e))?;
        self.bundle.set_metadata(meta).map_err(|e| fail("writing RuntimeMetadata.json", &e))?;
        let vm = self.vm()?;
        let renamed = self.ctx.machines.rename(Some(&*vm), &self.bundle, &bundle).await;
        renamed.map_err(|e| fail("renaming it", &e))?;
        self.bundle = bundle;
        // Its sockets have another name now.
        if let Some(guest) = self.ctx.machines.guest_again(&self.ctx, &*vm, self.ssh.clone()) {
            self.guest = Some(guest);
        }
        Ok(())
    }

    /// Waits for what cannot be cut short: each is bounded by itself.
    pub(crate) async fn settle(&mut self) {
        if let Some(making) = self.making.take() {
            drop(making.await);
        }
        if let Some(launching) = self.launching.take()
            && let Ok(Ok(vm)) = launching.await
        {
            self.vm = Some(vm);
        }
    }

    /// Ends the VM and removes its bundle.
    pub(crate) async fn try_to_remove(&mut self) -> Result<(), String> {
        let path = self.bundle.path.clone();
        if self.vm.is_none() {
            self.vm = self.ctx.machines.find(&path).await.map_err(|e| chain(&e))?;
        }
        if let Some(vm) = &self.vm {
            vm.stop(Stop::Force).await.map_err(|e| chain(&e))?;
        }
        self.ctx.machines.remove(&path).await.map_err(|e| chain(&e))?;
        (self.vm, self.guest) = (None, None);
        Ok(())
    }

    /// As [`SlotVm::try_to_remove`], until it works: the slot stays taken as long.
    pub(crate) async fn remove(&mut self) {
        const FIRST: Duration = Duration::from_millis(100);
        const LONGEST: Duration = Duration::from_secs(30);
        self.settle().await;
        let mut pauses = Backoff::new(FIRST, LONGEST);
        while let Err(words) = self.try_to_remove().await {
            let pause = pauses.pause();
            tracing::error!(words, again_in = ?pause, "the VM's slot stays taken until this works");
            sleep(pause).await;
        }
    }
}

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    Chain(error).to_string()
}
