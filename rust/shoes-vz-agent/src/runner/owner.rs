//! The steps of a runner's life, each undone by the teardown.

use std::{sync::Arc, time::Duration};

use shoes_vz_model::{
    bundle::file,
    id::RunnerId,
    state::{Stage, StartPath},
    text,
};
use shoes_vz_process::backoff::Backoff;
use shoes_vz_process::units;
use shoes_vz_proto::{agent as wire, agent::EndKind};
use shoes_vz_vm::{End, spec::StateUse};
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    Order, Script,
    ending::Ending,
    job::{Verdict, judge, listens},
    record::Record,
    silence::silence,
};
use crate::{
    context::Context,
    files,
    guest::{Following, lost},
    hot::{Class, Offer},
    slot_vm::{FIRST_PAUSE, LONGEST_PAUSE, Making, Restored, SlotVm},
    slots::Place,
    tasks::caught,
};

/// Until the last of a failed script's output has come over.
const LOG_DEADLINE: Duration = Duration::from_secs(5);
/// Of a failed script's output.
const TAIL_LINES: usize = 50;
const TAIL_BYTES: usize = 8 << 10;
/// What stands for "for ever" where a moment is needed.
const AGES: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// A runner, with everything that must be undone.
pub(super) struct Owner {
    pub(super) ctx: Arc<Context>,
    pub(super) record: Record,
    /// Its slot and VM, once it has one.
    pub(super) held: Option<SlotVm>,
    /// A hot VM that was promised, and may be on its way.
    pub(super) claiming: Option<oneshot::Receiver<SlotVm>>,
    pub(super) place: Place,
    delete: CancellationToken,
}

impl Owner {
    pub(super) fn new(ctx: Arc<Context>, record: Record, place: Place, held: Option<SlotVm>) -> Self {
        Self { ctx, record, held, claiming: None, place, delete: CancellationToken::new() }
    }

    pub(super) fn runner(&self) -> RunnerId {
        self.record.bundle.runner
    }

    pub(super) fn name(&self) -> &str {
        &self.record.meta.runner_name
    }

    pub(super) fn delete_token(&self) -> CancellationToken {
        self.delete.clone()
    }

    /// From nothing to the end.
    pub(super) async fn live(mut self, order: Order) -> wire::Runner {
        let deadline = order.start_deadline.unwrap_or(self.ctx.start_deadline);
        let script = order.script.clone();
        let ending = self.bounded(async |owner| {
            owner.in_time(deadline, async |owner| owner.get_ready(&order).await).await?;
            owner.set_up(script).await?;
            owner.job().await
        });
        let ending = ending.await;
        self.tear_down(ending).await
    }

    /// From wherever a former agent left it, to the end.
    pub(super) async fn live_on(mut self) -> wire::Runner {
        let deadline = self.ctx.start_deadline;
        let ending = self.bounded(async |owner| {
            if owner.vm_and_record()?.0.seek().await?.is_none() {
                return Err(owner.found_dead());
            }
            if owner.record.meta.ssh_ready {
                let (held, record) = owner.vm_and_record()?;
                held.find_guest_again(record).await?;
            } else {
                owner
                    .in_time(deadline, async |owner| {
                        let (held, record) = owner.vm_and_record()?;
                        held.go_on_to_ssh(record).await?;
                        owner.record.ssh_ready();
                        Ok(())
                    })
                    .await?;
            }
            if !owner.record.meta.setup_handed_over {
                let script = owner.kept_script()?;
                owner.set_up(script).await?;
            }
            owner.job().await
        });
        let ending = ending.await;
        self.tear_down(ending).await
    }

    /// The slot's VM beside the record its steps are told to.
    fn vm_and_record(&mut self) -> Result<(&mut SlotVm, &mut Record), Ending> {
        let held = self.held.as_mut();
        held.map(|held| (held, &mut self.record))
            .ok_or_else(|| Ending::failed("internal error: no slot at a stage that has one"))
    }

    fn slot_vm(&mut self) -> Result<&mut SlotVm, Ending> {
        Ok(self.vm_and_record()?.0)
    }

    /// By the quickest way there is to a VM whose SSH answers: a hot one, a saved state, a boot.
    async fn get_ready(&mut self, order: &Order) -> Result<(), Ending> {
        let class = Class::of(&self.ctx.template, order);
        let pool = self.ctx.pool.clone();
        let limit = Duration::from_secs(self.record.meta.max_lifetime_seconds);
        let mut waiting = Some(pool.wait());
        loop {
            let mut freed = pool.changes();
            match pool.offer(&self.ctx, class, limit) {
                Offer::Hot(coming) => {
                    // It has one promised: nobody need make room for it.
                    drop(waiting.take());
                    self.record.enter_stage(Stage::Claim);
                    if self.claim(coming, &order.script).await? {
                        return Ok(());
                    }
                    waiting = Some(pool.wait());
                }
                Offer::Slot(ticket) => {
                    drop(waiting);
                    let bundle = self.record.bundle.clone();
                    self.held = Some(SlotVm::new(self.ctx.clone(), bundle, ticket));
                    return self.start(class, order).await;
                }
                // Whatever changes may be what is waited for.
                Offer::Wait => freed.changed().await,
            }
        }
    }

    /// Whether the hot VM that was promised is this runner's now. One that died, or did not pass the last look at it, is
    /// not; then there may be another way.
    async fn claim(&mut self, coming: oneshot::Receiver<SlotVm>, script: &Script) -> Result<bool, Ending> {
        let came = self.claiming.insert(coming).await;
        self.claiming = None;
        let Ok(vm) = came else {
            tracing::info!("the hot VM could not be had; going another way");
            return Ok(false);
        };
        let held = self.held.insert(vm);
        let record = &mut self.record;
        record.meta.slot = Some(held.ticket.index());
        record.meta.ssh_ready = true;
        record.came_by(StartPath::Hot);
        record.freshen();
        held.rename(record.bundle.clone(), &record.meta, script).await?;
        if let Some(ip) = held.guest()?.address() {
            record.address(ip.to_string());
        }
        record.ssh_ready();
        Ok(true)
    }

    /// From an empty slot.
    async fn start(&mut self, class: Class, order: &Order) -> Result<(), Ending> {
        let limit = Duration::from_secs(self.record.meta.max_lifetime_seconds);
        let lives_until =
            (!limit.is_zero()).then(|| self.record.meta.created_at.checked_add(limit).ok()).flatten();
        let making = Making { class, script: Some(&order.script), lives_until };
        let (held, record) = self.vm_and_record()?;
        record.meta.slot = Some(held.ticket.index());
        if held.restore_if_possible(record, &making).await? != Restored::Ready {
            held.boot_cold(record, &making, StateUse::None).await?;
        }
        record.ssh_ready();
        Ok(())
    }

    /// A life, cut short by whatever ends a runner from outside, or by a panic: whatever must be undone is in `self`.
    async fn bounded(&mut self, life: impl AsyncFnOnce(&mut Self) -> Result<Ending, Ending>) -> Ending {
        let delete = self.delete.clone();
        let limit = Duration::from_secs(self.record.meta.max_lifetime_seconds);
        let over = sleep_until(self.lifetime_end());
        tokio::select! {
            biased;
            // Overtakes everything: whoever asked waits for it.
            () = delete.cancelled() => Ending::deleted(),
            // Before the VM's own limit, which strikes at the same moment.
            () = over => Ending::expired(limit),
            ending = caught(life(self)) => match ending {
                Ok(ending) => ending.unwrap_or_else(|ending| ending),
                Err(message) => Ending::fault_of_the_agent(&message),
            },
        }
    }

    /// Of a VM a former agent began, only that VM's own process knows it, by a clock nobody sets: what is given here
    /// is late for it, and ends one whose process does not.
    fn lifetime_end(&self) -> Instant {
        match self.record.meta.max_lifetime_seconds {
            0 => Instant::now() + AGES,
            seconds => Instant::now() + Duration::from_secs(seconds).min(AGES),
        }
    }

    async fn in_time(
        &mut self,
        deadline: Duration,
        start: impl AsyncFnOnce(&mut Self) -> Result<(), Ending>,
    ) -> Result<(), Ending> {
        match timeout(deadline, start(self)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let (stage, in_stage) = (self.record.stage(), self.record.in_stage());
                let last_error = self.held.as_ref().map_or("", |held| &held.last_error);
                Err(Ending::late(deadline, stage, in_stage, last_error, &self.record.bundle.path))
            }
        }
    }

    fn kept_script(&self) -> Result<Script, Ending> {
        match self.record.bundle.kept_script() {
            Ok(Some(script)) => Ok(script.into()),
            Ok(None) => Err(Ending::failed(
                "the agent was restarted before it handed over the setup script, whose copy is gone",
            )),
            Err(error) => {
                Err(Ending::failed(format!("the setup script's copy in the bundle cannot be read ({error})")))
            }
        }
    }

    /// Hands the script over; the same one twice is one to the guest.
    async fn set_up(&mut self, script: Script) -> Result<(), Ending> {
        let runner = self.runner();
        let deadline = self.ctx.start_deadline;
        let stage = self.record.stage();
        let held = self.slot_vm()?;
        let guest = held.guest()?;
        let handed_over = async |_: &mut SlotVm| {
            let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
            let tries = async {
                loop {
                    match guest.hand_over(runner, &script).await {
                        Ok(()) => return Ok(()),
                        Err(error) if error.is_final() => return Err(Ending::failed(error.to_string())),
                        Err(error) => tracing::warn!(%error, "handing over the setup script; trying again"),
                    }
                    sleep(pauses.pause()).await;
                }
            };
            timeout(deadline, tries).await.unwrap_or_else(|_| {
                Err(Ending::failed("the guest agent did not take the setup script within the start deadline"))
            })
        };
        held.unless_over(stage, handed_over).await?;
        self.record.handed_over();
        Ok(())
    }

    /// Follows the guest until its runner is done.
    async fn job(&mut self) -> Result<Ending, Ending> {
        let runner = self.runner();
        let log = self.record.bundle.file(file::SETUP_LOG);
        let held = self.slot_vm()?;
        let (vm, guest) = (held.vm()?, held.guest()?);
        let mut following = guest.follow(runner, &log);
        let mut seen = self.record.meta.runner_seen;
        let mut patience: Option<Instant> = None;
        let silence = silence(guest, vm.status(), following.watched(), self.ctx.unresponsive_guest_limit);
        tokio::pin!(silence);
        loop {
            let status = following.status.borrow_and_update().clone();
            if let Some(status) = &status {
                let verdict = judge(status, &mut seen);
                self.record.observe(status);
                if listens(status) && !self.record.meta.runner_seen {
                    self.record.runner_seen();
                }
                match verdict {
                    Verdict::GoOn => patience = None,
                    Verdict::AwaitRegistration => {
                        patience = patience.or(Some(Instant::now() + self.ctx.registration_deadline));
                    }
                    Verdict::Finished => {
                        return Ok(Ending::new(EndKind::Finished, "the Actions runner finished and exited"));
                    }
                    Verdict::SetupFailed(code) => {
                        return Ok(self.setup_failed(code, status.setup.log_bytes, &mut following).await);
                    }
                }
            }
            let patience_ends = sleep_until(patience.unwrap_or_else(|| Instant::now() + AGES));
            tokio::select! {
                biased;
                message = lost(&mut following.tasks) => return Err(Ending::fault_of_the_agent(&message)),
                changed = following.status.changed() => if changed.is_err() {
                    return Err(Ending::fault_of_the_agent("the task that follows the guest ended"));
                },
                end = vm.ended() => return Ok(self.vm_over(&end, seen, status.as_ref())),
                silence = &mut silence => {
                    return Ok(Ending::silent(&silence, self.record.stage(), &self.record.bundle.path));
                }
                () = patience_ends, if patience.is_some() => return Ok(self.never_registered()),
            }
        }
    }

    /// A guest that powers off once its runner is done has finished, not died.
    fn vm_over(
        &self,
        end: &shoes_vz_proto::vm::VmEnd,
        seen: bool,
        last: Option<&shoes_vz_model::guest::Status>,
    ) -> Ending {
        use shoes_vz_proto::vm::VmEndKind;
        let done = seen && last.is_some_and(|s| s.state == shoes_vz_model::guest::RunnerActivity::Finished);
        if done && end.kind() == VmEndKind::GuestPoweroff {
            return Ending::new(
                EndKind::Finished,
                "the Actions runner finished, and the guest powered itself off",
            );
        }
        Ending::vm_over(end, self.record.stage(), &self.record.bundle.path)
    }

    fn never_registered(&self) -> Ending {
        Ending::new(
            EndKind::Expired,
            format!(
                "the setup script exited 0, but no Actions runner showed within {} (--registration-deadline)",
                units::show_duration(self.ctx.registration_deadline)
            ),
        )
    }

    async fn setup_failed(&mut self, code: i32, log_bytes: u64, following: &mut Following) -> Ending {
        if timeout(LOG_DEADLINE, following.logged.wait_for(|n| *n >= log_bytes)).await.is_err() {
            tracing::warn!("the last of the setup script's output did not come over in time");
        }
        let tail = match files::last_bytes(&self.record.bundle.file(file::SETUP_LOG), 1 << 20) {
            Ok(bytes) => text::plain(&text::tail(&bytes, TAIL_LINES, TAIL_BYTES)),
            Err(error) => format!("(setup.log cannot be read: {error})"),
        };
        let ending = Ending::setup_failed(code, &tail);
        self.record.setup_tail(tail);
        ending
    }

    /// Of a bundle no VM process answers for any more.
    pub(super) fn found_dead(&self) -> Ending {
        let bundle = &self.record.bundle;
        match End::read(&bundle.path) {
            Ok(Some(end)) => Ending::vm_over(&end.to_wire(), self.record.stage(), &bundle.path),
            Ok(None) if !bundle.file(file::VM_LOG).exists() => {
                Ending::failed("the agent was restarted before the VM was started")
            }
            Ok(None) => Ending::new(
                EndKind::VmDied,
                "the VM process was gone without a word when the agent started; the host was restarted, or something killed it",
            ),
            Err(error) => Ending::new(
                EndKind::VmDied,
                format!("the VM is over, and VmEnd.json cannot be read ({error})"),
            ),
        }
    }
}
