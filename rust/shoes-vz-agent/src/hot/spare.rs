//! One hot VM, owned by one task, from its slot to the runner that takes it over, or to its removal.

use std::{sync::Arc, time::Duration};

use shoes_vz_model::{
    bundle::{DiskState, RuntimeMetadata},
    guest::{Personalization, SetupPhase},
    id::RunnerId,
    state::{Stage, StartPath, State},
};
use shoes_vz_process::units;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use super::{Class, Idle, Pool, pool::Deliver};
use crate::{
    bundles::Bundle,
    context::Context,
    runner::Record,
    slot_vm::{SlotVm, chain},
    slots::Ticket,
};

/// Between two looks at one that runs.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// Until its guest must have answered such a look; busy hosts are slow.
const LOOK_DEADLINE: Duration = Duration::from_secs(10);
/// Until it must have answered the last look, for which a runner waits.
const LAST_LOOK_DEADLINE: Duration = Duration::from_secs(2);

/// What a VM is started ahead for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// To wait for a runner.
    Hot,
    /// To save its slot's state; a runner may have it meanwhile.
    State,
}

/// What a spare's task begins with.
pub(super) struct Spare {
    pub(super) pool: Pool,
    pub(super) class: Class,
    pub(super) purpose: Purpose,
    pub(super) claimed: oneshot::Receiver<Deliver>,
    pub(super) evict: CancellationToken,
}

/// Why a spare is no more.
pub(super) enum Over {
    /// A runner has it.
    Claimed(Deliver),
    /// It could not be started.
    Failed(String),
    /// It is over, too old, unwell, or not wanted any more.
    Retired(String),
}

/// A spare, its VM and all.
pub(super) struct Life {
    pub(super) ctx: Arc<Context>,
    pub(super) spare: Spare,
    pub(super) held: SlotVm,
    pub(super) record: Record,
    /// Of the template's files when its start began.
    pub(super) fingerprint: String,
}

impl Spare {
    /// From an empty slot.
    pub(super) fn begin(self, ctx: Arc<Context>, bundle: Bundle, ticket: Ticket) {
        let now = ctx.ambient.now();
        let meta = RuntimeMetadata {
            template_path: ctx.template.path.to_string_lossy().into_owned(),
            slot: Some(ticket.index()),
            spare: true,
            cpus: self.class.cpus,
            memory_bytes: self.class.memory_bytes,
            disk_bytes: self.class.disk_bytes,
            template_fingerprint: ctx.template.fingerprint(),
            ..RuntimeMetadata::begun(bundle.runner, DiskState::Creating, now)
        };
        let held = SlotVm::new(ctx.clone(), bundle, ticket);
        self.spawn(ctx, held, meta, From::Nothing);
    }

    /// One that was ready when its agent died.
    pub(super) fn go_on(self, ctx: Arc<Context>, held: SlotVm, meta: RuntimeMetadata) {
        self.spawn(ctx, held, meta, From::Ready);
    }

    fn spawn(self, ctx: Arc<Context>, held: SlotVm, meta: RuntimeMetadata, from: From) {
        let id = held.bundle.runner;
        let fingerprint = meta.template_fingerprint.clone();
        let record = Record::of_spare(ctx.clone(), held.bundle.clone(), meta);
        let tasks = ctx.tasks.clone();
        let life = Life { ctx, spare: self, held, record, fingerprint };
        let span = tracing::info_span!("spare", spare = %id);
        drop(tasks.spawn("a hot VM's task", life.live(from).instrument(span)));
    }
}

/// Where a spare's life begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum From {
    Nothing,
    Ready,
}

impl Life {
    async fn live(mut self, from: From) {
        let evict = self.spare.evict.clone();
        let over = tokio::select! {
            biased;
            () = evict.cancelled() => Over::Retired("its slot is needed".into()),
            over = self.until_over(from) => over,
        };
        let (id, pool) = (self.id(), self.spare.pool.clone());
        match over {
            Over::Claimed(deliver) => {
                tracing::info!("a runner takes it over");
                pool.gone(id);
                // A runner that went away meanwhile gives it back.
                let Err(mut held) = deliver.send(self.held) else { return };
                tracing::info!("its runner went away; removing it");
                return held.remove().await;
            }
            Over::Failed(words) => {
                let again_in = match self.spare.purpose {
                    Purpose::Hot => pool.failed(),
                    Purpose::State => self.ctx.states.failed(self.held.ticket.index(), words.clone()),
                };
                tracing::warn!(words, ?again_in, "a VM could not be started ahead of its runner");
            }
            Over::Retired(why) => tracing::info!(why, "removing it"),
        }
        // A runner that waits for it goes another way at once.
        drop(self.spare.claimed);
        self.held.remove().await;
        drop(self.held);
        pool.gone(id);
    }

    async fn until_over(&mut self, from: From) -> Over {
        let deadline = self.ctx.start_deadline;
        let prepared = async {
            match from {
                From::Nothing => self.prepare().await,
                From::Ready => self.look_again().await,
            }
        };
        match timeout(deadline, prepared).await {
            Ok(Ok(())) => {}
            Ok(Err(over)) => return over,
            Err(_) => {
                let words = format!(
                    "not ready within the start deadline of {}, at stage {}; the last try said: {}",
                    units::show_duration(deadline),
                    self.record.stage().as_str(),
                    self.held.last_error
                );
                return Over::Failed(words);
            }
        }
        self.record.meta.ssh_ready = true;
        self.record.enter(State::SshReady, Stage::Setup);
        self.wait().await.unwrap_or_else(|over| over)
    }

    /// Ready: until somebody takes it over, or it is of no use any more.
    async fn wait(&mut self) -> Result<Over, Over> {
        let paused = self.ctx.pool.plan().idle == Idle::Paused && self.spare.purpose == Purpose::Hot;
        let vm = self.held.vm().map_err(|e| Over::Failed(e.reason))?;
        if paused {
            vm.pause().await.map_err(|e| Over::Failed(format!("pausing it: {}", chain(&e))))?;
        }
        if self.is_for_its_state() {
            return Err(Over::Retired("its state is saved".into()));
        }
        let path = self.record.meta.start_path.map_or("unknown", StartPath::as_str);
        tracing::info!(path, slot = self.held.ticket.index(), "a VM is hot");
        self.spare.pool.ready(self.id());
        let old = sleep_until(Instant::now() + self.age_left());
        tokio::pin!(old);
        loop {
            tokio::select! {
                biased;
                end = vm.ended() => return Err(Over::Retired(format!("it ended: {}", end.reason))),
                claimed = &mut self.spare.claimed => {
                    // Whoever lets go of the other end without a word evicts it.
                    let deliver = claimed.map_err(|_| Over::Retired("nobody can claim it any more".into()))?;
                    self.last_look(paused).await.map_err(|words| {
                        tracing::warn!(words, "the hot VM is not fit for its runner");
                        Over::Retired(words)
                    })?;
                    return Ok(Over::Claimed(deliver));
                }
                () = &mut old => return Err(Over::Retired("it is too old (--hot-max-age)".into())),
                () = sleep(LOOK_EVERY), if !paused => self.look(LOOK_DEADLINE).await.map_err(Over::Retired)?,
            }
        }
    }

    /// The runner waits for this.
    async fn last_look(&self, paused: bool) -> Result<(), String> {
        if paused {
            let vm = self.held.vm().map_err(|e| e.reason)?;
            vm.resume().await.map_err(|e| format!("it did not go on from its pause: {}", chain(&e)))?;
            let guest = self.held.guest().map_err(|e| e.reason)?;
            let clock = Personalization { unix_nanos: self.now_nanos(), ..Personalization::default() };
            match timeout(LAST_LOOK_DEADLINE, guest.personalize(&clock)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => return Err(format!("its clock could not be set: {error}")),
                Err(_) => return Err("it did not answer after its pause".into()),
            }
        }
        self.look(LAST_LOOK_DEADLINE).await
    }

    /// Whether it is as it was.
    async fn look(&self, deadline: Duration) -> Result<(), String> {
        if self.ctx.template.fingerprint() != self.fingerprint {
            return Err("the template has changed since it was started".into());
        }
        let guest = self.held.guest().map_err(|e| e.reason)?;
        match timeout(deadline, guest.ask()).await {
            Ok(Ok(Some(status))) if status.setup.phase != SetupPhase::None => {
                Err("somebody gave it a setup script already".into())
            }
            Ok(Ok(Some(_))) => Ok(()),
            Ok(Ok(None)) => Err("its guest agent answers with something else than its state".into()),
            Ok(Err(error)) => Err(format!("its guest agent does not answer: {error}")),
            Err(_) => Err(format!("no answer within {}", units::show_duration(deadline))),
        }
    }

    /// One that was ready before: it answers, and SSH does.
    async fn look_again(&mut self) -> Result<(), Over> {
        let retired = |words: String| Over::Retired(words);
        if self.held.seek().await.map_err(|e| retired(e.reason))?.is_none() {
            return Err(retired("it ended while there was no agent".into()));
        }
        let vm = self.held.vm().map_err(|e| retired(e.reason))?;
        if vm.status().borrow().state() == shoes_vz_proto::vm::VmState::Paused {
            vm.resume().await.map_err(|e| retired(chain(&e)))?;
        }
        let record = &mut self.record;
        self.held.find_guest_again(record).await.map_err(|e| retired(e.reason))?;
        self.look(LOOK_DEADLINE).await.map_err(retired)
    }

    fn age_left(&self) -> Duration {
        let age = self.ctx.ambient.now().duration_since(self.record.meta.created_at);
        self.ctx.pool.plan().max_age.saturating_sub(Duration::try_from(age).unwrap_or_default())
    }

    pub(super) fn now_nanos(&self) -> i64 {
        i64::try_from(self.ctx.ambient.now().as_nanosecond()).unwrap_or(0)
    }

    pub(super) fn id(&self) -> RunnerId {
        self.held.bundle.runner
    }

    /// Whether it is for nothing but its slot's state.
    pub(super) fn is_for_its_state(&self) -> bool {
        self.spare.purpose == Purpose::State && !self.is_claimed()
    }

    /// Whether a runner waits for it already.
    pub(super) fn is_claimed(&self) -> bool {
        !self.spare.claimed.is_empty()
    }
}
