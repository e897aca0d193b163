//! The steps of a runner's life, each undone by the teardown.

use std::{sync::Arc, time::Duration};

use shoes_vz_model::{
    bundle::file,
    id::{AgentId, RunnerId},
    state::{Stage, State},
    template::Transport,
    text,
};
use shoes_vz_proto::{agent as wire, agent::EndKind, vm::VmState};
use shoes_vz_vm::{End, client::VmError, clone::CloneError, spec::VmSpec};
use tokio::{
    task::JoinHandle,
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
    guest::{Following, Guest},
    machines::{Machine, Plan},
    notify_ip::Turn,
    slots::Ticket,
    ssh::Ssh,
};

/// First pause between two tries to reach sshd, and the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// How long a former agent's VM is asked for an answer before it is given up with whatever it does.
const SEEK_DEADLINE: Duration = Duration::from_secs(180);
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
    pub(super) vm: Option<Arc<dyn Machine>>,
    pub(super) cloning: Option<JoinHandle<Result<(), CloneError>>>,
    pub(super) launching: Option<JoinHandle<Result<Arc<dyn Machine>, VmError>>>,
    pub(super) ticket: Ticket,
    delete: CancellationToken,
    ssh: Ssh,
    guest: Option<Arc<dyn Guest>>,
    last_error: String,
}

impl Owner {
    pub(super) fn new(ctx: Arc<Context>, record: Record, ticket: Ticket) -> Self {
        let ssh = ctx.login.of_one_vm();
        Self {
            ctx,
            record,
            vm: None,
            cloning: None,
            launching: None,
            ticket,
            delete: CancellationToken::new(),
            ssh,
            guest: None,
            last_error: String::new(),
        }
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
            owner
                .in_time(deadline, async |owner| {
                    owner.make_bundle(&order).await?;
                    owner.launch().await?;
                    owner.boot().await
                })
                .await?;
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
            owner.seek().await?;
            if owner.record.meta.ssh_ready {
                owner.find_guest_again().await?;
            } else {
                owner.in_time(deadline, async |owner| owner.boot().await).await?;
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

    /// A life, cut short by whatever ends a runner from outside.
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
            ending = life(self) => ending.unwrap_or_else(|ending| ending),
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
                Err(Ending::late(deadline, stage, in_stage, &self.last_error, &self.record.bundle.path))
            }
        }
    }

    async fn make_bundle(&mut self, order: &Order) -> Result<(), Ending> {
        let plan = Plan {
            bundle: self.record.bundle.clone(),
            meta: self.record.meta.clone(),
            script: order.script.clone(),
            template: self.ctx.template.clone(),
            spec: self.spec(order),
        };
        let machines = self.ctx.machines.clone();
        let making = self.cloning.insert(tokio::spawn(async move { machines.make(plan).await }));
        let made = making.await;
        self.cloning = None;
        match made {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Ending::failed(format!("making the bundle failed: {}", chain(&error)))),
            Err(panic) => Err(Ending::failed(format!("making the bundle failed: {panic}"))),
        }
    }

    fn spec(&self, order: &Order) -> VmSpec {
        let ctx = &self.ctx;
        let meta = &self.record.meta;
        let limit = Duration::from_secs(meta.max_lifetime_seconds);
        let mut spec = VmSpec::of_template(&ctx.template);
        spec.hypervisor = ctx.hypervisor;
        spec.accelerator = ctx.accelerator;
        spec.display = ctx.display;
        spec.network = ctx.network;
        spec.mac_address = ctx.agent_id.parse().ok().map(|id: AgentId| id.slot_mac(self.ticket.index()));
        spec.cpus = ctx.template.meta.cpus(order.cpus);
        spec.memory_bytes = ctx.template.meta.memory_bytes(order.memory_bytes);
        spec.disk_bytes = ctx.template.disk_bytes.max(order.disk_bytes);
        spec.max_lifetime = (!limit.is_zero()).then(|| meta.created_at.checked_add(limit).ok()).flatten();
        spec
    }

    async fn launch(&mut self) -> Result<(), Ending> {
        self.record.enter(State::Booting, Stage::Start);
        let (machines, bundle) = (self.ctx.machines.clone(), self.record.bundle.path.clone());
        let launching = self.launching.insert(tokio::spawn(async move { machines.launch(&bundle).await }));
        let launched = launching.await;
        self.launching = None;
        match launched {
            Ok(Ok(vm)) => self.vm = Some(vm),
            Ok(Err(error)) => return Err(Ending::failed(chain(&error))),
            Err(panic) => return Err(Ending::failed(format!("starting the VM process failed: {panic}"))),
        }
        Ok(())
    }

    /// From a VM process to SSH.
    async fn boot(&mut self) -> Result<(), Ending> {
        let vm = self.vm()?;
        let state = vm.status().borrow().state();
        let mut turn = None;
        if matches!(state, VmState::Unspecified | VmState::Created) {
            // A guest that tells its address does so alone.
            if let (Transport::Tcp, Some(notices)) =
                (self.ctx.template.meta.guest_agent, self.ctx.notices.clone())
            {
                turn = Some(notices.turn().await);
            }
            let started = vm.start().await;
            if let Err(error) = started {
                // How it ended says more than that it would not start.
                let end = timeout(Duration::from_secs(2), vm.ended()).await;
                return Err(end.map_or_else(
                    |_| Ending::failed(chain(&error)),
                    |end| Ending::vm_over(&end, Stage::Start, &self.record.bundle.path),
                ));
            }
        }
        self.record.enter(State::Booting, Stage::Guest);
        self.find_guest(turn).await?;
        self.record.enter(State::Booting, Stage::Ssh);
        self.unless_over(async |owner| owner.reach_ssh().await).await?;
        self.record.ssh_ready();
        Ok(())
    }

    /// Finds the VM a former agent started, unless it is found already.
    async fn seek(&mut self) -> Result<(), Ending> {
        let machines = self.ctx.machines.clone();
        let path = self.record.bundle.path.clone();
        let tries = async {
            let mut pause = FIRST_PAUSE;
            loop {
                match machines.find(&path).await {
                    Ok(found) => return found,
                    Err(error) => {
                        tracing::debug!(%error, "the VM does not answer yet");
                        self.last_error = chain(&error);
                    }
                }
                sleep(pause).await;
                pause = LONGEST_PAUSE.min(pause * 2);
            }
        };
        if self.vm.is_some() {
            return Ok(());
        }
        match timeout(SEEK_DEADLINE, tries).await {
            Ok(Some(vm)) => {
                tracing::info!("the VM answers; adopting it");
                self.vm = Some(vm);
                Ok(())
            }
            Ok(None) => Err(self.found_dead()),
            Err(_) => Err(Ending::new(
                EndKind::VmDied,
                format!(
                    "the VM process did not answer this agent within {}: {}",
                    crate::duration::words(SEEK_DEADLINE),
                    self.last_error
                ),
            )),
        }
    }

    /// Waits until the guest is up, and knows then how to reach it.
    async fn find_guest(&mut self, turn: Option<Turn>) -> Result<(), Ending> {
        let known = self.record.meta.ip_address.parse().ok();
        let guest = self
            .unless_over(async |owner| {
                let vm = owner.vm()?;
                let ctx = &owner.ctx;
                let found = ctx.machines.guest(ctx, &*vm, owner.ssh.clone(), known, turn).await;
                found.map_err(|e| Ending::failed(e.to_string()))
            })
            .await?;
        if let Some(ip) = guest.address() {
            self.record.address(ip.to_string());
        }
        self.guest = Some(guest);
        Ok(())
    }

    /// Of a guest that was up before: one that is not any more is found out by following it.
    async fn find_guest_again(&mut self) -> Result<(), Ending> {
        match self.ctx.machines.guest_again(&self.ctx, &*self.vm()?, self.ssh.clone()) {
            Some(guest) => self.guest = Some(guest),
            None => self.find_guest(None).await?,
        }
        Ok(())
    }

    async fn reach_ssh(&mut self) -> Result<(), Ending> {
        let guest = self.guest()?;
        let mut pause = FIRST_PAUSE;
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
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
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
        let guest = self.guest()?;
        let handed_over = async |_: &mut Self| {
            let mut pause = FIRST_PAUSE;
            let tries = async {
                loop {
                    match guest.hand_over(runner, &script).await {
                        Ok(()) => return Ok(()),
                        Err(error) if error.is_final() => return Err(Ending::failed(error.to_string())),
                        Err(error) => tracing::warn!(%error, "handing over the setup script; trying again"),
                    }
                    sleep(pause).await;
                    pause = LONGEST_PAUSE.min(pause * 2);
                }
            };
            timeout(deadline, tries).await.unwrap_or_else(|_| {
                Err(Ending::failed("the guest agent did not take the setup script within the start deadline"))
            })
        };
        self.unless_over(handed_over).await?;
        self.record.handed_over();
        Ok(())
    }

    /// Follows the guest until its runner is done.
    async fn job(&mut self) -> Result<Ending, Ending> {
        let vm = self.vm()?;
        let log = self.record.bundle.file(file::SETUP_LOG);
        let mut following = self.guest()?.follow(self.runner(), &log);
        let mut seen = self.record.meta.runner_seen;
        let mut patience: Option<Instant> = None;
        let silence = silence(self.guest()?, vm.status(), following.watched(), self.ctx.silent_guest_limit);
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
                changed = following.status.changed() => if changed.is_err() {
                    return Err(Ending::failed("the task that follows the guest died"));
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
                crate::duration::words(self.ctx.registration_deadline)
            ),
        )
    }

    async fn setup_failed(&mut self, code: i32, log_bytes: u64, following: &mut Following) -> Ending {
        if timeout(LOG_DEADLINE, following.logged.wait_for(|n| *n >= log_bytes)).await.is_err() {
            tracing::warn!("the last of the setup script's output did not come over in time");
        }
        let tail = match files::last_bytes(&self.record.bundle.file(file::SETUP_LOG), 1 << 20) {
            Ok(bytes) => text::tail(&bytes, TAIL_LINES, TAIL_BYTES),
            Err(error) => format!("(setup.log cannot be read: {error})"),
        };
        let words = match code {
            129.. => format!("exit code {code} (signal {})", code - 128),
            _ => format!("exit code {code}"),
        };
        let reason = format!("the setup script ended with {words}; its last lines:\n{tail}");
        self.record.setup_tail(tail);
        Ending::failed(reason)
    }

    /// Awaits `what`, unless the VM is over first.
    async fn unless_over<T>(
        &mut self,
        what: impl AsyncFnOnce(&mut Self) -> Result<T, Ending>,
    ) -> Result<T, Ending> {
        let vm = self.vm()?;
        let stage = self.record.stage();
        let bundle = self.record.bundle.path.clone();
        tokio::select! {
            biased;
            end = vm.ended() => Err(Ending::vm_over(&end, stage, &bundle)),
            outcome = what(self) => outcome,
        }
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

    fn vm(&self) -> Result<Arc<dyn Machine>, Ending> {
        self.vm.clone().ok_or_else(|| Ending::failed("internal error: no VM at a stage that has one"))
    }

    fn guest(&self) -> Result<Arc<dyn Guest>, Ending> {
        self.guest.clone().ok_or_else(|| Ending::failed("internal error: no guest at a stage that has one"))
    }
}

/// An error and what it is because of, in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words = format!("{words}: {cause_words}");
        }
        source = cause.source();
    }
    words
}
