//! The one task that owns the VM.
//!
//! ```text
//! CREATED ─ Start ─▶ STARTING ─ created, running ─▶ RUNNING ◀─▶ PAUSED
//!    │                   │                             │
//!    └─ Stop, SIGTERM, lifetime, never started ────────┴─▶ STOPPING ─ machine ended ─▶ STOPPED | FAILED
//!
//! Life: Waiting ─────▶ Creating ───────────────────▶ Running ──────▶ Stopping (which only becomes more urgent)
//!          └─ a stop ────┴─▶ ended                      └─ machine ended ─┴─▶ ended
//! ```
//! Requests come through a mailbox; none blocks it: creating the machine is a future that the loop polls, so a stop
//! overtakes a start, and pause, resume and save run beside it.

use std::{
    future::pending,
    ops::ControlFlow::{self, Break, Continue},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use shoes_vz_channel::{Peer, api::GuestApi};
use shoes_vz_model::bundle::file;
use shoes_vz_process::chain::Chain;
use shoes_vz_proto::vm::{VmState, VmStatus};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

use super::{
    guest::GuestHost,
    intent::{self, Intent},
};
use crate::{
    end::{End, EndKind},
    hypervisor::{Hypervisor, HypervisorError, Machine, MachineState},
    output::log_tail,
    spec::{StateUse, VmSpec},
};

/// Until the guest agent has answered the request to power off; then the power button is pressed too.
const GUEST_ANSWER: Duration = Duration::from_secs(5);

/// What the service may ask for.
#[derive(Debug)]
pub(super) enum Request {
    /// Answered when the guest runs.
    Start(Reply),
    /// Answered when the VM has ended. `None`: at once; else the guest is asked first.
    Stop(Option<Duration>, Reply),
    /// Answered when the action is done.
    Machine(Action, Reply),
}

/// Of a running machine.
#[derive(Debug)]
pub(super) enum Action {
    Pause,
    Resume,
    Save(PathBuf),
}

pub(super) type Reply = oneshot::Sender<Result<(), Refusal>>;

/// Why a request was refused.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// The VM is not in a state for it.
    #[error("{0}")]
    State(String),
    #[error("{0}")]
    Hypervisor(String),
}

/// The service's handle to the owner.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) status: watch::Receiver<VmStatus>,
    /// Our end of the guest channel, once the machine runs.
    pub(super) guest: watch::Receiver<Option<GuestHost>>,
}

pub(super) struct Owner {
    spec: VmSpec,
    bundle: PathBuf,
    hypervisor: Arc<dyn Hypervisor>,
    requests: mpsc::Receiver<Request>,
    status: watch::Sender<VmStatus>,
    guest: watch::Sender<Option<GuestHost>>,
    start_replies: Vec<Reply>,
    stop_replies: Vec<Reply>,
    started: Option<Instant>,
    /// When a VM without a start request ends itself.
    start_by: Instant,
    lifetime_end: Option<Instant>,
}

/// What there is of the VM.
enum Life {
    Waiting,
    /// The future makes the machine and starts its guest. Dropping it kills a half-made machine.
    Creating(BoxFuture<'static, Result<Arc<dyn Machine>, HypervisorError>>),
    Running(Running),
    /// At `kill_at` a polite stop turns into a kill.
    Stopping {
        vm: Running,
        intent: Intent,
        kill_at: Option<Instant>,
    },
}

struct Running {
    machine: Arc<dyn Machine>,
    state: watch::Receiver<MachineState>,
    /// `None` when the machine has no guest channel, or it has closed.
    peer: Option<watch::Receiver<Peer>>,
}

impl Life {
    fn intent(&self) -> Option<Intent> {
        if let Self::Stopping { intent, .. } = self { Some(*intent) } else { None }
    }

    /// Whether a stop for `intent` would change anything.
    fn yields_to(&self, intent: Intent) -> bool {
        self.intent().is_none_or(|now| now.yields_to(intent))
    }

    fn kill_at(&self) -> Option<Instant> {
        if let Self::Stopping { kill_at, .. } = self { *kill_at } else { None }
    }

    fn machine(&self) -> Option<&Arc<dyn Machine>> {
        match self {
            Self::Waiting | Self::Creating(_) => None,
            Self::Running(vm) | Self::Stopping { vm, .. } => Some(&vm.machine),
        }
    }
}

enum Event {
    MachineEnded(End),
    Stop(Intent),
    GraceOver,
    Request(Request),
    Created(Result<Arc<dyn Machine>, HypervisorError>),
    GuestUp(bool),
}

impl Owner {
    pub(super) fn new(
        spec: VmSpec,
        bundle: PathBuf,
        hypervisor: Arc<dyn Hypervisor>,
        start_deadline: Duration,
    ) -> (Self, Handle) {
        let (sender, requests) = mpsc::channel(16);
        let first =
            VmStatus { state: VmState::Created.into(), pid: std::process::id(), ..VmStatus::default() };
        let (status, status_receiver) = watch::channel(first);
        let (guest, guest_receiver) = watch::channel(None);
        // Computed once: a clock that is set later, as a Mac's is when it finds its time server, must not end a job.
        let lifetime_end = spec.max_lifetime.map(|moment| {
            let left = Duration::try_from(moment.duration_since(jiff::Timestamp::now())).unwrap_or_default();
            Instant::now() + left
        });
        let owner = Self {
            spec,
            bundle,
            hypervisor,
            requests,
            status,
            guest,
            start_replies: Vec::new(),
            stop_replies: Vec::new(),
            started: None,
            start_by: Instant::now() + start_deadline,
            lifetime_end,
        };
        (owner, Handle { requests: sender, status: status_receiver, guest: guest_receiver })
    }

    /// Outlives the owner.
    pub(super) fn status(&self) -> watch::Sender<VmStatus> {
        self.status.clone()
    }

    /// Runs until the VM has ended. `record` is called with its end before any watcher sees it, so that a watcher finds
    /// it on disk.
    pub(super) async fn run(
        mut self,
        terminated: impl Future<Output = ()>,
        record: impl FnOnce(&End),
    ) -> End {
        let end = self.live(terminated).await;
        tracing::info!(kind = ?end.kind, reason = %end.reason, "VM ended");
        record(&end);
        self.guest.send_replace(None);
        publish_end(&self.status, &end);
        for reply in self.start_replies.drain(..) {
            drop(reply.send(Err(Refusal::Hypervisor(end.reason.clone()))));
        }
        for reply in self.stop_replies.drain(..) {
            drop(reply.send(Ok(())));
        }
        end
    }

    async fn live(&mut self, terminated: impl Future<Output = ()>) -> End {
        let terminated = terminated.fuse();
        tokio::pin!(terminated);
        let mut life = Life::Waiting;
        loop {
            let event = self.next_event(&mut life, terminated.as_mut()).await;
            life = match self.apply(life, event) {
                Continue(life) => life,
                Break(end) => return end,
            };
        }
    }

    async fn next_event(&mut self, life: &mut Life, terminated: impl Future<Output = ()>) -> Event {
        let lifetime = self.lifetime_end.filter(|_| life.yields_to(Intent::MaxLifetime));
        let (kill_at, requests) = (life.kill_at(), &mut self.requests);
        // What ends the VM, the more urgent before the less; then what others ask for.
        let asked = async move {
            tokio::select! {
                biased;
                () = terminated => Event::Stop(Intent::Terminated),
                () = until(lifetime) => Event::Stop(Intent::MaxLifetime),
                () = until(kill_at) => Event::GraceOver,
                Some(request) = requests.recv() => Event::Request(request),
            }
        };
        match life {
            Life::Waiting => tokio::select! {
                biased;
                event = asked => event,
                // A start that comes at the last moment still counts.
                () = sleep_until(self.start_by) => Event::Stop(Intent::NeverStarted),
            },
            Life::Creating(creating) => tokio::select! {
                biased;
                event = asked => event,
                // A machine that comes up can wait for what would end it.
                created = creating => Event::Created(created),
            },
            Life::Running(vm) | Life::Stopping { vm, .. } => tokio::select! {
                biased;
                // The machine's end first: it answers everything else.
                end = ended(&mut vm.state, &self.status, &self.bundle) => Event::MachineEnded(end),
                event = asked => event,
                // The guest's hello can wait for all that.
                up = guest_up(&mut vm.peer) => Event::GuestUp(up),
            },
        }
    }

    fn apply(&mut self, life: Life, event: Event) -> ControlFlow<End, Life> {
        match event {
            Event::MachineEnded(end) => Break(intent::end(life.intent(), end)),
            Event::Stop(intent) => self.stop(life, intent),
            Event::GraceOver => Continue(kill(life)),
            Event::Request(Request::Start(reply)) => Continue(self.start(life, reply)),
            Event::Request(Request::Stop(grace, reply)) => {
                self.stop_replies.push(reply);
                self.stop(life, grace.map_or(Intent::StopNow, Intent::StopWithin))
            }
            Event::Request(Request::Machine(action, reply)) => {
                act(life.machine(), action, reply);
                Continue(life)
            }
            Event::Created(Ok(machine)) => Continue(Life::Running(self.begin(machine))),
            Event::Created(Err(HypervisorError::Ended(end))) => Break(end),
            Event::Created(Err(error)) => {
                Break(End::new(EndKind::HypervisorFailed, Chain(&error).to_string()))
            }
            Event::GuestUp(up) => {
                self.note_guest(up);
                Continue(life)
            }
        }
    }

    /// Waiting → Creating. In any other state nothing changes.
    fn start(&mut self, life: Life, reply: Reply) -> Life {
        if matches!(life, Life::Running(_)) {
            // A repeated start whose first answer was lost: the VM is as asked for.
            drop(reply.send(Ok(())));
            return life;
        }
        self.start_replies.push(reply);
        if !matches!(life, Life::Waiting) {
            return life;
        }
        self.started = Some(Instant::now());
        self.set_state(VmState::Starting);
        let (hypervisor, spec, bundle) = (self.hypervisor.clone(), self.spec.clone(), self.bundle.clone());
        Life::Creating(Box::pin(async move {
            let machine = hypervisor.create(&spec, &bundle).await?;
            machine.start().await?;
            Ok(machine)
        }))
    }

    /// Waiting, Creating → ended; Running → Stopping; Stopping → Stopping if `intent` is more urgent.
    fn stop(&mut self, life: Life, intent: Intent) -> ControlFlow<End, Life> {
        if !life.yields_to(intent) {
            return Continue(life);
        }
        tracing::info!(?intent, "stopping the VM");
        self.set_state(VmState::Stopping);
        let vm = match life {
            Life::Running(vm) | Life::Stopping { vm, .. } => vm,
            Life::Waiting | Life::Creating(_) => {
                // No guest runs that could be asked first.
                let intent = if matches!(intent, Intent::StopWithin(_)) { Intent::StopNow } else { intent };
                return Break(intent::end(Some(intent), End::as_asked()));
            }
        };
        let kill_at = if let Intent::StopWithin(grace) = intent {
            self.ask_to_power_off(vm.machine.clone());
            Some(Instant::now() + grace)
        } else {
            vm.machine.kill();
            None
        };
        Continue(Life::Stopping { vm, intent, kill_at })
    }

    /// In a task, so that the grace ends even if the request hangs. The guest agent first: in many guests nothing
    /// listens to the power button.
    fn ask_to_power_off(&self, machine: Arc<dyn Machine>) {
        let agent =
            self.status.borrow().guest_up.then(|| GuestApi::new(self.bundle.join(file::GUEST_SOCKET)));
        tokio::spawn(async move {
            if let Some(agent) = agent {
                match tokio::time::timeout(GUEST_ANSWER, agent.shutdown()).await {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => {
                        tracing::info!(reason = %Chain(&error), "powering the guest off through its guest agent failed; pressing the power button")
                    }
                    Err(_) => tracing::info!(
                        reason = "no answer",
                        "powering the guest off through its guest agent failed; pressing the power button"
                    ),
                }
            }
            if let Err(error) = machine.request_stop().await {
                tracing::info!(reason = %Chain(&error), "pressing the guest's power button failed");
            }
        });
    }

    /// Creating → Running: publishes that the guest runs, and serves its channel.
    fn begin(&mut self, machine: Arc<dyn Machine>) -> Running {
        let took = self.since_start();
        tracing::info!(
            took_ms = took,
            accelerator = machine.accelerator(),
            pid = machine.pid(),
            "guest started"
        );
        self.status.send_modify(|s| {
            s.state = VmState::Running.into();
            s.hypervisor_pid = machine.pid();
            s.accelerator = machine.accelerator().into();
            s.started_ms = took;
            s.restored = matches!(self.spec.state, StateUse::Restore(_));
        });
        for reply in self.start_replies.drain(..) {
            drop(reply.send(Ok(())));
        }
        let peer = machine.take_channel().map(|channel| {
            let host = GuestHost::spawn(channel);
            let mut peer = host.peer();
            peer.mark_changed();
            self.guest.send_replace(Some(host));
            peer
        });
        Running { state: machine.state(), machine, peer }
    }

    fn since_start(&self) -> u64 {
        // 0 means "not yet".
        let took = self.started.map_or(0, |at| at.elapsed().as_millis());
        u64::try_from(took).unwrap_or(u64::MAX).max(1)
    }

    fn note_guest(&mut self, up: bool) {
        let took = self.since_start();
        self.status.send_modify(|s| {
            if up && s.guest_up_ms == 0 {
                s.guest_up_ms = took;
                tracing::info!(took_ms = took, "guest is up");
            }
            s.guest_up = up;
        });
    }

    fn set_state(&self, state: VmState) {
        self.status.send_modify(|s| s.state = state.into());
    }
}

/// Stopping, its grace over: the machine's end is the next event.
fn kill(mut life: Life) -> Life {
    if let Life::Stopping { vm, kill_at, .. } = &mut life {
        vm.machine.kill();
        *kill_at = None;
    }
    life
}

/// In a task, so that the mailbox does not wait for it.
fn act(machine: Option<&Arc<dyn Machine>>, action: Action, reply: Reply) {
    let Some(machine) = machine.cloned() else {
        return drop(reply.send(Err(Refusal::State("the VM is not started".into()))));
    };
    tokio::spawn(async move {
        let done = match action {
            Action::Pause => machine.pause().await,
            Action::Resume => machine.resume().await,
            Action::Save(path) => machine.save(&path).await,
        };
        drop(reply.send(done.map_err(|e| Refusal::Hypervisor(Chain(&e).to_string()))));
    });
}

/// Every watcher sees the VM's end.
pub(super) fn publish_end(status: &watch::Sender<VmStatus>, end: &End) {
    status.send_modify(|s| {
        s.state = end.state().into();
        s.end = Some(end.to_wire());
        s.guest_up = false;
    });
}

/// Follows the machine's pauses into `status`; returns with its end.
async fn ended(
    machine: &mut watch::Receiver<MachineState>,
    status: &watch::Sender<VmStatus>,
    bundle: &Path,
) -> End {
    loop {
        let state = match machine.borrow_and_update().clone() {
            MachineState::Ended(end) => return end,
            MachineState::Created => VmState::Starting,
            MachineState::Running => VmState::Running,
            MachineState::Paused => VmState::Paused,
        };
        status.send_if_modified(|s| {
            let new = s.state != state as i32 && s.state != VmState::Stopping as i32;
            if new {
                s.state = state.into();
            }
            new
        });
        if machine.changed().await.is_err() {
            let log = log_tail(bundle);
            let reason =
                format!("the task that owns the machine died, which is a bug in the VM process; {log}");
            return End::new(EndKind::HypervisorFailed, reason);
        }
    }
}

async fn guest_up(peer: &mut Option<watch::Receiver<Peer>>) -> bool {
    if let Some(receiver) = peer {
        if receiver.changed().await.is_ok() {
            return matches!(*receiver.borrow_and_update(), Peer::Up(_));
        }
        *peer = None;
        return false;
    }
    pending().await
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => pending().await,
    }
}
