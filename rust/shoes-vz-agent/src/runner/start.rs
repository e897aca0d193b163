//! From a request, or from what a former agent left, to a guest that SSH has reached: by the fastest way there is.

use shoes_vz_model::{
    bundle,
    state::{Stage, StartPath},
};
use shoes_vz_process::backoff::Backoff;
use shoes_vz_vm::spec::StateUse;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Phase, Provisioning, Runner, RunnerRequest,
    end::{Late, RunnerEnd},
};
use crate::{
    bundles::Script,
    guest::GuestError,
    pool::Offer,
    provision::{
        Bounds, EmptySlot, FIRST_PAUSE, LONGEST_PAUSE, Observer as _, ProvisionError, ReadyVm, Restored,
        Unfinished, VmRequest, VmResources,
    },
};

/// A start that failed, and what is to be undone.
struct Failed(Option<VmResources>, ProvisionError);

impl From<Unfinished> for Failed {
    fn from(unfinished: Unfinished) -> Self {
        Self(Some(unfinished.resources), unfinished.error)
    }
}

impl Runner {
    pub(super) async fn provision(&mut self, from: Provisioning) -> Phase {
        let deadline = match &from {
            Provisioning::New(request) => request.start_deadline,
            Provisioning::Adopted(..) => None,
        };
        let deadline = deadline.unwrap_or(self.agent.limits.start_deadline);
        let cancel = CancellationToken::new();
        let bounds = Bounds { cancel: cancel.clone(), deadline: Instant::now() + deadline };
        let interruption = self.interruption();
        let next = {
            let work = async {
                match from {
                    Provisioning::New(request) => self.start(request, &bounds).await,
                    Provisioning::Adopted(resources, phase) => self.adopt(resources, phase, &bounds).await,
                }
            };
            tokio::pin!(work);
            tokio::select! {
                biased;
                end = interruption => {
                    // It ends soon, and with what it has of a VM.
                    cancel.cancel();
                    let resources = match work.await {
                        Ok(next) => next.into_resources(),
                        Err(Failed(resources, _)) => resources,
                    };
                    return Phase::TearingDown(resources, end);
                }
                next = &mut work => next,
            }
        };
        next.unwrap_or_else(|Failed(resources, error)| {
            let journal = &self.report.journal;
            let (stage, in_stage) = (journal.timeline.stage(), journal.timeline.in_stage());
            let end = match error {
                ProvisionError::NoVmProcess => RunnerEnd::found_dead(&journal.bundle, stage),
                error => {
                    let late = Late { deadline, stage, in_stage, last_error: String::new() };
                    RunnerEnd::of_provision(error, late, &journal.bundle.path)
                }
            };
            Phase::TearingDown(resources, end)
        })
    }

    async fn start(&mut self, request: RunnerRequest, bounds: &Bounds) -> Result<Phase, Failed> {
        let pool = self.agent.pool.clone();
        let limit = self.max_lifetime.unwrap_or_default();
        let mut waiting = Some(pool.wait());
        loop {
            let mut changes = pool.changes();
            match pool.offer(request.size, limit) {
                Offer::Hot(coming) => {
                    // A VM is promised: no other one need make room for this runner.
                    drop(waiting.take());
                    self.report.enter_stage(Stage::Claim);
                    if let Some(vm) = self.claim(coming, &request.script, bounds).await? {
                        return Ok(Phase::Ready(vm, request.script));
                    }
                    waiting = Some(pool.wait());
                }
                Offer::Slot(ticket) => {
                    drop(waiting);
                    self.report.journal.meta.slot = Some(ticket.index());
                    let bundle = self.report.journal.bundle.clone();
                    let slot = EmptySlot::new(self.agent.host.clone(), bundle, ticket);
                    let vm = self.restore_or_boot(slot, &request, bounds).await?;
                    self.report.ready();
                    return Ok(Phase::Ready(vm, request.script));
                }
                Offer::Wait => bounds.wait(changes.changed()).await.map_err(|error| Failed(None, error))?,
            }
        }
    }

    /// The hot VM that was promised. It may have died, or not pass its last check: then there may be another way.
    async fn claim(
        &mut self,
        mut coming: oneshot::Receiver<ReadyVm>,
        script: &Script,
        bounds: &Bounds,
    ) -> Result<Option<ReadyVm>, Failed> {
        let came = match bounds.wait(&mut coming).await {
            Ok(came) => came.ok(),
            Err(error) => {
                // A VM that is on its way comes now, or its task removes it.
                coming.close();
                return Err(Failed(coming.try_recv().ok().map(|vm| vm.resources), error));
            }
        };
        let Some(mut vm) = came else {
            tracing::info!("hot VM unavailable; falling back");
            return Ok(None);
        };
        let journal = &mut self.report.journal;
        journal.meta.slot = Some(vm.resources.slot);
        journal.meta.phase = bundle::Phase::Ready;
        journal.meta.start_path = Some(StartPath::Hot);
        journal.update();
        if let Err(error) = vm.claim(journal.bundle.clone(), &journal.meta, script).await {
            tracing::warn!(reason = %error, "claiming the hot VM failed; falling back");
            (journal.meta.phase, journal.meta.start_path) = (bundle::Phase::Provisioning, None);
            vm.resources.remove().await;
            return Ok(None);
        }
        if let Some(ip) = vm.guest.address() {
            self.report.address(ip.to_string());
        }
        self.report.ready();
        Ok(Some(vm))
    }

    async fn restore_or_boot(
        &mut self,
        slot: EmptySlot,
        request: &RunnerRequest,
        bounds: &Bounds,
    ) -> Result<ReadyVm, Unfinished> {
        let created_at = self.report.journal.meta.created_at;
        let lives_until = self.max_lifetime.and_then(|limit| created_at.checked_add(limit).ok());
        let vm = VmRequest { size: request.size, script: Some(request.script.clone()), lives_until };
        match slot.restore_if_possible(&vm, bounds, &mut self.report).await? {
            Restored::Ready(ready) => Ok(ready),
            Restored::Not(slot, _) => slot.boot(&vm, StateUse::None, bounds, &mut self.report).await,
        }
    }

    /// From wherever the former agent left it.
    async fn adopt(
        &mut self,
        resources: VmResources,
        phase: bundle::Phase,
        bounds: &Bounds,
    ) -> Result<Phase, Failed> {
        use bundle::Phase as OnDisk;
        let launched = resources.reconnect(&bounds.cancel).await?;
        // The start deadline is for the start, and not for finding the VM process.
        let bounds =
            &Bounds { deadline: Instant::now() + self.agent.limits.start_deadline, ..bounds.clone() };
        let vm = match phase {
            OnDisk::Provisioning => {
                let vm = launched.reach_ssh(bounds, &mut self.report).await?;
                self.report.ready();
                vm
            }
            _ => launched.find_guest_again(bounds, &mut self.report).await?,
        };
        if matches!(phase, OnDisk::SettingUp | OnDisk::Running) {
            return Ok(Phase::Following(vm));
        }
        let reason = match self.report.journal.bundle.kept_script() {
            Ok(Some(script)) => return Ok(Phase::Ready(vm, script)),
            Ok(None) => {
                "the agent was restarted before it handed over the setup script, whose copy is missing".into()
            }
            Err(error) => format!("the setup script's copy in the bundle cannot be read ({error})"),
        };
        Ok(Phase::TearingDown(Some(vm.resources), RunnerEnd::failed(reason)))
    }

    /// Hands the script over; the same one twice is one to the guest.
    pub(super) async fn hand_over(&mut self, vm: &ReadyVm, script: &Script) -> Result<(), RunnerEnd> {
        let (id, stage) = (self.report.journal.bundle.runner, self.report.stage());
        let attempts = async {
            let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
            loop {
                match vm.guest.hand_over(id, script).await {
                    Ok(()) => return Ok(()),
                    Err(error) if error.is_final() => return Err(error),
                    Err(error) => {
                        tracing::warn!(reason = %error, "handing over the setup script failed; retrying")
                    }
                }
                sleep(pauses.pause()).await;
            }
        };
        tokio::select! {
            biased;
            end = self.interruption() => return Err(end),
            end = vm.vm.ended() => return Err(RunnerEnd::of_vm(&end, stage, &vm.resources.bundle.path)),
            handed_over = timeout(self.agent.limits.start_deadline, attempts) => match handed_over {
                Ok(outcome) => outcome.map_err(|e: GuestError| RunnerEnd::failed(e.to_string()))?,
                Err(_) => {
                    return Err(RunnerEnd::failed(
                        "the guest agent did not take the setup script within the start deadline",
                    ));
                }
            },
        }
        self.report.handed_over();
        Ok(())
    }
}

impl Phase {
    fn into_resources(self) -> Option<VmResources> {
        match self {
            Self::Provisioning(Provisioning::New(_)) => None,
            Self::Provisioning(Provisioning::Adopted(resources, _)) => Some(resources),
            Self::Ready(vm, _) | Self::Following(vm) => Some(vm.resources),
            Self::TearingDown(resources, _) => resources,
        }
    }
}
