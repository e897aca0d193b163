//! The one task that owns the VM.
//!
//! ```text
//! CREATED ─ Start ─▶ STARTING ─ created, running ─▶ RUNNING ◀─▶ PAUSED
//!    │                   │                             │
//!    └─ Stop, SIGTERM, lifetime, never started ────────┴─▶ STOPPING ─ machine gone ─▶ STOPPED | FAILED
//! ```
//! Requests come through a mailbox; none blocks it: creating the machine is a future the loop polls, so a stop
//! overtakes a start, and pause, resume and save run beside it.

use std::{
    future::pending,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::future::BoxFuture;
use shoes_vz_channel::{Peer, api::GuestApi};
use shoes_vz_model::bundle::file;
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
    client::log_tail,
    end::{End, EndKind},
    hypervisor::{Hypervisor, HypervisorError, Machine, MachineState},
    spec::{StateUse, VmSpec},
};

/// Until the guest agent has taken the request to power off; then the power button is tried too.
const GUEST_ANSWER: Duration = Duration::from_secs(5);

/// What the service may ask.
#[derive(Debug)]
pub(super) enum Request {
    /// Answered when the guest runs.
    Start(Reply),
    /// Answered when the VM is gone. `None`: at once; else the guest is asked first.
    Stop(Option<Duration>, Reply),
    /// Answered when it is done.
    Machine(Action, Reply),
}

/// What is done to a running machine.
#[derive(Debug)]
pub(super) enum Action {
    Pause,
    Resume,
    Save(PathBuf),
}

pub(super) type Reply = oneshot::Sender<Result<(), Refusal>>;

/// Why a request was not done.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    /// Not in this state.
    #[error("{0}")]
    State(String),
    /// The hypervisor's word.
    #[error("{0}")]
    Hypervisor(String),
}

/// The service's hold on the owner.
#[derive(Clone)]
pub(super) struct Handle {
    pub(super) requests: mpsc::Sender<Request>,
    pub(super) status: watch::Receiver<VmStatus>,
    /// Our end of the guest channel, once the machine is there.
    pub(super) guest: watch::Receiver<Option<GuestHost>>,
}

pub(super) struct Owner {
    spec: VmSpec,
    bundle: PathBuf,
    hypervisor: Arc<dyn Hypervisor>,
    requests: mpsc::Receiver<Request>,
    status: watch::Sender<VmStatus>,
    guest: watch::Sender<Option<GuestHost>>,
    intent: Option<Intent>,
    /// When a polite stop turns into a kill.
    grace: Option<Instant>,
    start_replies: Vec<Reply>,
    stop_replies: Vec<Reply>,
    started: Option<Instant>,
    /// When a VM nobody has started ends itself.
    start_by: Instant,
    /// When its time is up.
    lifetime_end: Option<Instant>,
}

type Creating = BoxFuture<'static, Result<Arc<dyn Machine>, HypervisorError>>;

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
        // Fixed here: a clock that is set later, as a Mac's is when it finds its time server, ends no job.
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
            intent: None,
            grace: None,
            start_replies: Vec::new(),
            stop_replies: Vec::new(),
            started: None,
            start_by: Instant::now() + start_deadline,
            lifetime_end,
        };
        (owner, Handle { requests: sender, status: status_receiver, guest: guest_receiver })
    }

    /// What its watchers see, which outlives it.
    pub(super) fn status(&self) -> watch::Sender<VmStatus> {
        self.status.clone()
    }

    /// Until the VM is over. `record` is called with its end before anybody is told, so that whoever is told finds it
    /// on disk.
    pub(super) async fn run(
        mut self,
        terminated: impl Future<Output = ()>,
        record: impl FnOnce(&End),
    ) -> End {
        let end = self.live(terminated).await;
        tracing::info!(kind = ?end.kind, reason = %end.reason, "the VM is over");
        record(&end);
        self.guest.send_replace(None);
        tell(&self.status, &end);
        for reply in self.start_replies.drain(..) {
            drop(reply.send(Err(Refusal::Hypervisor(end.reason.clone()))));
        }
        for reply in self.stop_replies.drain(..) {
            drop(reply.send(Ok(())));
        }
        end
    }

    async fn live(&mut self, terminated: impl Future<Output = ()>) -> End {
        tokio::pin!(terminated);
        let mut creating: Option<Creating> = None;
        let mut machine: Option<Arc<dyn Machine>> = None;
        let mut machine_state: Option<watch::Receiver<MachineState>> = None;
        let mut peer: Option<watch::Receiver<Peer>> = None;
        let mut signalled = false;
        loop {
            if machine.is_none()
                && let Some(why) = self.intent
            {
                // Nothing runs yet, so nobody can be asked; dropping a half-made machine kills it.
                let why = if matches!(why, Intent::StopWithin(_)) { Intent::StopNow } else { why };
                return intent::end(Some(why), End::new(EndKind::Requested, "the VM was ended as asked"));
            }
            let lifetime = self.lifetime_end.filter(|_| self.may_stop(Intent::MaxLifetime));
            tokio::select! {
                // The machine's end first: it answers everything else. Then what ends it, the more urgent before the
                // less; a start or the guest's hello can wait for that.
                biased;
                end = ended(&mut machine_state, &self.status, &self.bundle) => return intent::end(self.intent, end),
                () = &mut terminated, if !signalled => { signalled = true; self.stop(Intent::Terminated, machine.as_ref()); }
                () = until(lifetime) => self.stop(Intent::MaxLifetime, machine.as_ref()),
                () = until(self.grace) => { self.grace = None; if let Some(m) = &machine { m.kill() } }
                Some(request) = self.requests.recv() => {
                    if let Some(future) = self.answer(request, machine.as_ref(), creating.is_some()) {
                        creating = Some(future);
                    }
                }
                made = made(&mut creating) => {
                    creating = None;
                    match made {
                        Ok(new) => {
                            machine_state = Some(new.state());
                            peer = self.begin(&new);
                            machine = Some(new);
                        }
                        Err(HypervisorError::Ended(end)) => return end,
                        Err(error) => return End::new(EndKind::HypervisorFailed, words(&error)),
                    }
                }
                up = guest_up(&mut peer) => self.note_guest(up),
                () = until(Some(self.start_by)), if self.started.is_none() => self.stop(Intent::NeverStarted, None),
            }
        }
    }

    /// Does what was asked, or begins to; a start gives the future that makes the machine.
    fn answer(
        &mut self,
        request: Request,
        machine: Option<&Arc<dyn Machine>>,
        creating: bool,
    ) -> Option<Creating> {
        match request {
            Request::Start(reply) => {
                if self.running() {
                    // A repeated start, its first answer lost: the VM is what was asked for.
                    drop(reply.send(Ok(())));
                    return None;
                }
                self.start_replies.push(reply);
                if creating || machine.is_some() {
                    return None;
                }
                self.started = Some(Instant::now());
                self.set_state(VmState::Starting);
                let (hypervisor, spec, bundle) =
                    (self.hypervisor.clone(), self.spec.clone(), self.bundle.clone());
                return Some(Box::pin(async move {
                    let machine = hypervisor.create(&spec, &bundle).await?;
                    machine.start().await?;
                    Ok(machine)
                }));
            }
            Request::Stop(grace, reply) => {
                self.stop_replies.push(reply);
                self.stop(grace.map_or(Intent::StopNow, Intent::StopWithin), machine);
            }
            Request::Machine(action, reply) => match machine.cloned() {
                None => drop(reply.send(Err(Refusal::State("the VM is not started".into())))),
                Some(machine) => drop(tokio::spawn(async move {
                    let done = match action {
                        Action::Pause => machine.pause().await,
                        Action::Resume => machine.resume().await,
                        Action::Save(path) => machine.save(&path).await,
                    };
                    drop(reply.send(done.map_err(|e| Refusal::Hypervisor(words(&e)))));
                })),
            },
        }
        None
    }

    fn running(&self) -> bool {
        let state = self.status.borrow().state;
        state == VmState::Running as i32 || state == VmState::Paused as i32
    }

    /// The guest runs: publish it, and serve its channel.
    fn begin(&mut self, machine: &Arc<dyn Machine>) -> Option<watch::Receiver<Peer>> {
        let took = self.since_start();
        tracing::info!(
            took_ms = took,
            accelerator = machine.accelerator(),
            pid = machine.pid(),
            "the guest runs"
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
        let host = GuestHost::spawn(machine.take_channel()?);
        let mut peer = host.peer();
        peer.mark_changed();
        self.guest.send_replace(Some(host));
        Some(peer)
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
                tracing::info!(took_ms = took, "the guest agent has said hello");
            }
            s.guest_up = up;
        });
    }

    fn set_state(&self, state: VmState) {
        self.status.send_modify(|s| s.state = state.into());
    }

    fn may_stop(&self, why: Intent) -> bool {
        self.intent.is_none_or(|now| now.yields_to(why))
    }

    /// Ends the VM, at once or politely; a stop under way is only ever made more urgent.
    fn stop(&mut self, why: Intent, machine: Option<&Arc<dyn Machine>>) {
        if !self.may_stop(why) {
            return;
        }
        tracing::info!(?why, "stopping the VM");
        self.intent = Some(why);
        self.set_state(VmState::Stopping);
        let Some(machine) = machine.cloned() else { return };
        let Intent::StopWithin(grace) = why else { return machine.kill() };
        self.grace = Some(Instant::now() + grace);
        // Should this task fail, the grace still ends. The guest agent first: many guests have nothing that listens to the power button.
        let agent =
            self.status.borrow().guest_up.then(|| GuestApi::new(self.bundle.join(file::GUEST_SOCKET)));
        tokio::spawn(async move {
            if let Some(agent) = agent {
                match tokio::time::timeout(GUEST_ANSWER, agent.shutdown()).await {
                    Ok(Ok(())) => return,
                    Ok(Err(error)) => {
                        tracing::info!(error = words(&error), "the guest agent cannot power the guest off")
                    }
                    Err(_) => tracing::info!("the guest agent does not answer"),
                }
            }
            if let Err(error) = machine.request_stop().await {
                tracing::info!(%error, "the guest's power button cannot be pressed");
            }
        });
    }
}

/// Tells every watcher of the VM's end.
pub(super) fn tell(status: &watch::Sender<VmStatus>, end: &End) {
    status.send_modify(|s| {
        s.state = end.state().into();
        s.end = Some(end.to_wire());
        s.guest_up = false;
    });
}

fn words(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(deeper) = source {
        text = format!("{text}: {deeper}");
        source = deeper.source();
    }
    text
}

async fn made(creating: &mut Option<Creating>) -> Result<Arc<dyn Machine>, HypervisorError> {
    match creating {
        Some(future) => future.await,
        None => pending().await,
    }
}

/// Follows the machine's pauses into `status`; returns with its end.
async fn ended(
    machine: &mut Option<watch::Receiver<MachineState>>,
    status: &watch::Sender<VmStatus>,
    bundle: &Path,
) -> End {
    let Some(machine) = machine else { return pending().await };
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
                format!("the task that owns the machine died, which is a fault of the VM process; {log}");
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
