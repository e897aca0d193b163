//! One hot VM, owned by one task, from its slot to the runner that claims it, or to its removal.

use std::{sync::Arc, time::Duration};

use shoes_vz_model::{
    bundle::{DiskState, Phase, RuntimeMetadata},
    guest::{Personalization, SetupPhase},
    id::RunnerId,
    state::{Stage, StartPath, State},
};
use shoes_vz_process::{chain::Chain, units};
use shoes_vz_proto::vm::VmState;
use shoes_vz_vm::client::VmError;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{
    plan::Idle,
    registry::{Delivery, Pool, Purpose},
};
use crate::{
    host::{Host, VmSize},
    provision::{Bounds, EmptySlot, Journal, Observer as _, ReadyVm, Unfinished, VmResources},
};

/// Between two checks of one that runs.
const CHECK_EVERY: Duration = Duration::from_secs(30);
/// Why a hot VM that a runner needs the slot of is removed.
const EVICTED: &str = "its slot is needed";
/// Until its guest must have answered such a check; busy hosts are slow.
const CHECK_DEADLINE: Duration = Duration::from_secs(10);
/// Until it must have answered the last check, for which a runner waits.
const LAST_CHECK_DEADLINE: Duration = Duration::from_secs(2);

/// What a hot VM's task begins with.
pub(super) struct HotVm {
    pub(super) pool: Pool,
    pub(super) id: RunnerId,
    pub(super) size: VmSize,
    pub(super) purpose: Purpose,
    pub(super) claimed: oneshot::Receiver<Delivery>,
    pub(super) evict: CancellationToken,
}

/// From where the VM comes.
enum Source {
    Slot(EmptySlot),
    /// It was ready when its agent died.
    Adopted(VmResources),
}

/// How a hot VM leaves the pool.
pub(super) enum HotVmEnd {
    /// A runner has it.
    Claimed(Delivery, ReadyVm),
    /// It could not be started.
    Failed(VmResources, String),
    /// It has ended, is too old, unhealthy, or not wanted any more.
    Retired(VmResources, String),
}

impl From<Unfinished> for HotVmEnd {
    fn from(Unfinished { resources, error }: Unfinished) -> Self {
        Self::Failed(resources, error.to_string())
    }
}

impl HotVmEnd {
    fn retired(Unfinished { resources, error }: Unfinished) -> Self {
        Self::Retired(resources, error.to_string())
    }
}

/// A hot VM on its way.
pub(super) struct Life {
    pub(super) hot_vm: HotVm,
    pub(super) host: Arc<Host>,
    pub(super) journal: Journal,
    /// Of the template's files when the start began.
    fingerprint: String,
}

impl HotVm {
    pub(super) fn begin(self, slot: EmptySlot) {
        let host = self.pool.host();
        let meta = RuntimeMetadata {
            template_path: host.template.path.to_string_lossy().into_owned(),
            slot: Some(slot.index()),
            phase: Phase::Preheating,
            cpus: self.size.cpus,
            memory_bytes: self.size.memory_bytes,
            disk_bytes: self.size.disk_bytes,
            template_fingerprint: host.template.fingerprint(),
            ..RuntimeMetadata::begun(self.id, DiskState::Creating, host.ambient.now())
        };
        let journal = Journal::begin(host.ambient.clone(), slot.bundle().clone(), meta, Stage::Clone);
        self.spawn(journal, Source::Slot(slot));
    }

    /// One that was ready when its agent died.
    pub(super) fn resume(self, vm: VmResources, meta: RuntimeMetadata) {
        let journal = Journal::resume(self.pool.host().ambient.clone(), vm.bundle.clone(), meta);
        self.spawn(journal, Source::Adopted(vm));
    }

    fn spawn(self, journal: Journal, source: Source) {
        let host = self.pool.host().clone();
        let tasks = host.tasks.clone();
        let span = tracing::info_span!("hot VM", hot_vm = %self.id);
        let fingerprint = journal.meta.template_fingerprint.clone();
        let life = Life { hot_vm: self, host, journal, fingerprint };
        drop(tasks.spawn("a hot VM's task", life.live(source).instrument(span)));
    }
}

impl Life {
    async fn live(mut self, source: Source) {
        let end = self.until_end(source).await;
        let Self { hot_vm: HotVm { pool, id, purpose, claimed, .. }, host, .. } = self;
        let resources = match end {
            HotVmEnd::Claimed(delivery, vm) => {
                tracing::info!("hot VM claimed by a runner");
                pool.remove(id);
                // A runner that ended meanwhile gives it back.
                if let Err(vm) = delivery.send(vm) {
                    tracing::info!("runner ended before its claim; removing the hot VM");
                    vm.resources.remove().await;
                }
                return;
            }
            HotVmEnd::Failed(resources, reason) => {
                let retry_in = match purpose {
                    Purpose::Hot => pool.failed(),
                    Purpose::State => host.saved_states.failed(resources.slot, reason.clone()),
                };
                tracing::warn!(reason, ?retry_in, "starting a hot VM failed");
                resources
            }
            HotVmEnd::Retired(resources, reason) => {
                tracing::info!(reason, "removing a hot VM");
                resources
            }
        };
        // A runner that waits for it gets a VM another way at once.
        drop(claimed);
        resources.remove().await;
        pool.remove(id);
    }

    async fn until_end(&mut self, source: Source) -> HotVmEnd {
        let deadline = self.hot_vm.pool.limits().start_deadline;
        let bounds = Bounds { cancel: self.hot_vm.evict.clone(), deadline: Instant::now() + deadline };
        let prepared = match source {
            Source::Slot(slot) => self.prepare(slot, &bounds).await,
            Source::Adopted(resources) => self.adopt(resources, &bounds).await,
        };
        match prepared {
            Ok(vm) => {
                self.journal.meta.phase = Phase::Hot;
                self.journal.enter(State::SshReady, Stage::Setup);
                self.wait(vm).await
            }
            Err(HotVmEnd::Failed(resources, _)) if bounds.cancel.is_cancelled() => {
                HotVmEnd::Retired(resources, EVICTED.into())
            }
            Err(end) => end,
        }
    }

    /// Ready: until a runner claims it, or it is of no use any more.
    async fn wait(&mut self, vm: ReadyVm) -> HotVmEnd {
        let retired = |vm: ReadyVm, reason: String| HotVmEnd::Retired(vm.resources, reason);
        if self.is_for_its_state() {
            return retired(vm, "its state is saved".into());
        }
        let paused = self.hot_vm.pool.plan().idle == Idle::Paused && self.hot_vm.purpose == Purpose::Hot;
        if paused && let Err(reason) = in_time(vm.vm.pause()).await {
            return HotVmEnd::Failed(vm.resources, format!("pausing it failed: {reason}"));
        }
        let start_path = self.journal.meta.start_path.map_or("unknown", StartPath::as_str);
        tracing::info!(start_path, slot = vm.resources.slot, "hot VM ready");
        self.hot_vm.pool.ready(self.hot_vm.id);
        let too_old = sleep_until(Instant::now() + self.age_left());
        let evict = self.hot_vm.evict.clone();
        tokio::pin!(too_old);
        loop {
            let checks = async {
                sleep(CHECK_EVERY).await;
                check(&self.host, &self.fingerprint, &vm, CHECK_DEADLINE).await
            };
            tokio::select! {
                biased;
                () = evict.cancelled() => return retired(vm, EVICTED.into()),
                end = vm.vm.ended() => return retired(vm, format!("it ended: {}", end.reason)),
                claimed = &mut self.hot_vm.claimed => {
                    let Ok(delivery) = claimed else {
                        return retired(vm, "no runner can claim it any more".into());
                    };
                    return match self.last_check(&vm, paused).await {
                        Ok(()) => HotVmEnd::Claimed(delivery, vm),
                        Err(reason) => {
                            tracing::warn!(reason, "hot VM failed its last check");
                            drop(delivery);
                            retired(vm, reason)
                        }
                    };
                }
                () = &mut too_old => return retired(vm, "it is too old (--hot-max-age)".into()),
                checked = checks, if !paused => if let Err(reason) = checked {
                    return retired(vm, reason);
                },
            }
        }
    }

    /// A runner waits for this.
    async fn last_check(&self, vm: &ReadyVm, paused: bool) -> Result<(), String> {
        if paused {
            in_time(vm.vm.resume()).await.map_err(|reason| format!("resuming it failed: {reason}"))?;
            let clock = Personalization { unix_nanos: self.host.unix_nanos(), ..Personalization::default() };
            match timeout(LAST_CHECK_DEADLINE, vm.guest.personalize(&clock)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(format!("setting its clock failed: {error}")),
                Err(_) => return Err("it did not answer after its pause".into()),
            }
        }
        check(&self.host, &self.fingerprint, vm, LAST_CHECK_DEADLINE).await
    }

    /// One that was ready before, and answers.
    async fn adopt(&mut self, resources: VmResources, bounds: &Bounds) -> Result<ReadyVm, HotVmEnd> {
        let launched = resources.reconnect(&bounds.cancel).await.map_err(HotVmEnd::retired)?;
        let launched = match launched.status().state() {
            VmState::Paused => launched.resume(bounds).await.map_err(HotVmEnd::retired)?,
            _ => launched,
        };
        let vm = launched.find_guest_again(bounds, &mut self.journal).await.map_err(HotVmEnd::retired)?;
        match check(&self.host, &self.fingerprint, &vm, CHECK_DEADLINE).await {
            Ok(()) => Ok(vm),
            Err(reason) => Err(HotVmEnd::Retired(vm.resources, reason)),
        }
    }

    fn age_left(&self) -> Duration {
        let age = self.host.ambient.now().duration_since(self.journal.meta.created_at);
        self.hot_vm.pool.plan().max_age.saturating_sub(Duration::try_from(age).unwrap_or_default())
    }

    /// Whether it is for nothing but its slot's state.
    pub(super) fn is_for_its_state(&self) -> bool {
        self.hot_vm.purpose == Purpose::State && !self.is_claimed()
    }

    /// Whether a runner waits for it already.
    pub(super) fn is_claimed(&self) -> bool {
        !self.hot_vm.claimed.is_empty()
    }
}

/// Whether a hot VM is as it was when it became ready.
async fn check(host: &Host, fingerprint: &str, vm: &ReadyVm, deadline: Duration) -> Result<(), String> {
    if host.template.fingerprint() != fingerprint {
        return Err("the template has changed since it was started".into());
    }
    match timeout(deadline, vm.guest.query_status()).await {
        Ok(Ok(Some(status))) if status.setup.phase != SetupPhase::None => {
            Err("it has been given a setup script already".into())
        }
        Ok(Ok(Some(_))) => Ok(()),
        Ok(Ok(None)) => Err("its guest agent answered without a status".into()),
        Ok(Err(error)) => Err(format!("requesting its guest agent's status failed: {error}")),
        Err(_) => Err(format!("its guest agent did not answer within {}", units::show_duration(deadline))),
    }
}

/// A call to the VM process, which may hang.
async fn in_time(call: impl Future<Output = Result<(), VmError>>) -> Result<(), String> {
    match timeout(CHECK_DEADLINE, call).await {
        Ok(done) => done.map_err(|error| Chain(&error).to_string()),
        Err(_) => {
            Err(format!("the VM process did not answer within {}", units::show_duration(CHECK_DEADLINE)))
        }
    }
}
