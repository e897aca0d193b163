//! The steps from a slot to SSH.

use std::time::Duration;

use shoes_vz_model::{
    state::{Stage, StartPath, State},
    template::Transport,
};
use shoes_vz_process::backoff::Backoff;
use shoes_vz_proto::vm::VmState;
use shoes_vz_vm::spec::{StateUse, VmSpec};
use tokio::time::{sleep, timeout};

use super::{FIRST_PAUSE, LONGEST_PAUSE, SlotVm, chain};
use crate::{
    hot::Class,
    machines::Plan,
    notify_ip::Turn,
    runner::{Ending, Record, Script},
};

/// Until a VM that would not start has said how it ended.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What a VM is made for.
pub(crate) struct Making<'a> {
    /// How much it is given.
    pub(crate) class: Class,
    /// Kept in its bundle until the guest has it; none for a VM that waits for a runner.
    pub(crate) script: Option<&'a Script>,
    /// When its own process ends it.
    pub(crate) lives_until: Option<jiff::Timestamp>,
}

impl SlotVm {
    /// Boots the guest; `state` says whether that is done to be saved.
    pub(crate) async fn boot_cold(
        &mut self,
        record: &mut Record,
        making: &Making<'_>,
        state: StateUse,
    ) -> Result<(), Ending> {
        record.enter_stage(Stage::Clone);
        self.make_bundle(record, making, state).await?;
        self.launch(record).await?;
        self.go_on_to_ssh(record).await?;
        record.came_by(StartPath::Cold);
        Ok(())
    }

    pub(super) fn spec(&self, making: &Making<'_>, state: StateUse) -> VmSpec {
        let spec = self.ctx.spec(self.ticket.index(), making.class);
        VmSpec { max_lifetime: making.lives_until, state, ..spec }
    }

    pub(super) async fn make_bundle(
        &mut self,
        record: &Record,
        making: &Making<'_>,
        state: StateUse,
    ) -> Result<(), Ending> {
        let plan = Plan {
            bundle: self.bundle.clone(),
            meta: record.meta.clone(),
            script: making.script.cloned(),
            template: self.ctx.template.clone(),
            spec: self.spec(making, state),
        };
        let machines = self.ctx.machines.clone();
        let task = self.making.insert(tokio::spawn(async move { machines.make(plan).await }));
        let made = task.await;
        self.making = None;
        match made {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Ending::failed(format!("making the bundle failed: {}", chain(&error)))),
            Err(panic) => Err(Ending::failed(format!("making the bundle failed: {panic}"))),
        }
    }

    pub(super) async fn launch(&mut self, record: &mut Record) -> Result<(), Ending> {
        record.enter(State::Booting, Stage::Start);
        let (machines, bundle) = (self.ctx.machines.clone(), self.bundle.path.clone());
        let task = self.launching.insert(tokio::spawn(async move { machines.launch(&bundle).await }));
        let launched = task.await;
        self.launching = None;
        match launched {
            Ok(Ok(vm)) => self.vm = Some(vm),
            Ok(Err(error)) => return Err(Ending::failed(chain(&error))),
            Err(panic) => return Err(Ending::failed(format!("starting the VM process failed: {panic}"))),
        }
        Ok(())
    }

    /// From a VM process, whatever its guest does, to SSH.
    pub(crate) async fn go_on_to_ssh(&mut self, record: &mut Record) -> Result<(), Ending> {
        let turn = self.start_vm().await?;
        record.enter(State::Booting, Stage::Guest);
        self.find_guest(record, turn).await?;
        self.log_in(record).await
    }

    /// Lets the guest run, if it does not yet.
    pub(super) async fn start_vm(&mut self) -> Result<Option<Turn>, Ending> {
        let vm = self.vm()?;
        let state = vm.status().borrow().state();
        if !matches!(state, VmState::Unspecified | VmState::Created) {
            return Ok(None);
        }
        // A guest that tells its address does so alone.
        let turn = match (self.ctx.template.meta.guest_agent, self.ctx.notices.clone()) {
            (Transport::Tcp, Some(notices)) => Some(notices.turn().await),
            _ => None,
        };
        let started = vm.start().await;
        if let Err(error) = started {
            // How it ended says more than that it would not start.
            let end = timeout(LAST_WORDS, vm.ended()).await;
            return Err(end.map_or_else(
                |_| Ending::failed(chain(&error)),
                |end| Ending::vm_over(&end, Stage::Start, &self.bundle.path),
            ));
        }
        Ok(turn)
    }

    /// Waits until the guest is up, and knows then how to reach it.
    pub(crate) async fn find_guest(&mut self, record: &mut Record, turn: Option<Turn>) -> Result<(), Ending> {
        let known = record.meta.ip_address.parse().ok();
        let guest = self
            .unless_over(record.stage(), async |this| {
                let vm = this.vm()?;
                let ctx = &this.ctx;
                let found = ctx.machines.guest(ctx, &*vm, this.ssh.clone(), known, turn).await;
                found.map_err(|e| Ending::failed(e.to_string()))
            })
            .await?;
        if let Some(ip) = guest.address() {
            record.address(ip.to_string());
        }
        self.guest = Some(guest);
        Ok(())
    }

    /// Of a guest that was up before: one that is not any more is found out by following it.
    pub(crate) async fn find_guest_again(&mut self, record: &mut Record) -> Result<(), Ending> {
        match self.ctx.machines.guest_again(&self.ctx, &*self.vm()?, self.ssh.clone()) {
            Some(guest) => self.guest = Some(guest),
            None => self.find_guest(record, None).await?,
        }
        Ok(())
    }

    /// Waits until SSH answers.
    pub(super) async fn log_in(&mut self, record: &mut Record) -> Result<(), Ending> {
        record.enter(State::Booting, Stage::Ssh);
        self.unless_over(Stage::Ssh, async |this| this.reach_ssh().await).await
    }

    async fn reach_ssh(&mut self) -> Result<(), Ending> {
        let guest = self.guest()?;
        let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        loop {
            match guest.try_ssh().await {
                Ok(()) => return Ok(()),
                Err(error) if error.is_final() => {
                    return Err(Ending::failed(format!("SSH into the guest: {error}")));
                }
                Err(error) => {
                    tracing::debug!(%error, "SSH does not answer yet");
                    self.last_error = error.to_string();
                }
            }
            sleep(pauses.pause()).await;
        }
    }
}
