//! A hypervisor in this process, controlled by the test, that fails on demand.

use std::{
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use async_trait::async_trait;
use shoes_vz_channel::{
    BoxedStream,
    sockets::{Dial, Sockets},
};
use tokio::{
    io::{DuplexStream, duplex},
    sync::{mpsc, oneshot, watch},
};

use super::{Channel, Hypervisor, HypervisorError, Machine, MachineState};
use crate::{
    end::{End, EndKind},
    spec::VmSpec,
};

/// [`FakeHypervisor::new`] returns the test's end of it.
pub struct FakeHypervisor {
    requests: mpsc::UnboundedSender<CreateRequest>,
}

/// A `create` in progress: the test answers it, or drops it, which fails it.
pub struct CreateRequest {
    pub spec: VmSpec,
    answer: oneshot::Sender<Result<Arc<FakeMachine>, HypervisorError>>,
}

/// The test's handle to a machine.
pub struct Control<G = DuplexStream> {
    machine: Arc<FakeMachine>,
    /// The guest's end of the guest channel.
    pub guest: G,
}

/// A guest's virtio sockets.
#[derive(Clone)]
pub struct GuestSockets {
    listener: Listener,
    machine: Weak<FakeMachine>,
}

struct FakeMachine {
    state: watch::Sender<MachineState>,
    channel: Mutex<Option<Channel>>,
    /// The hypervisor's end of [`Sockets::announcements`].
    announced: Mutex<Option<mpsc::UnboundedSender<BoxedStream>>>,
    refusal: Mutex<Option<String>>,
    asked_to_stop: watch::Sender<u32>,
}

impl FakeHypervisor {
    /// The hypervisor, and the receiver of its `create` calls.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<CreateRequest>) {
        let (requests, receiver) = mpsc::unbounded_channel();
        (Self { requests }, receiver)
    }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    async fn create(&self, spec: &VmSpec, _: &Path) -> Result<Arc<dyn Machine>, HypervisorError> {
        let (answer, answered) = oneshot::channel();
        let dropped = || failed("the fake hypervisor's test has ended");
        self.requests.send(CreateRequest { spec: spec.clone(), answer }).map_err(|_| dropped())?;
        let machine: Arc<dyn Machine> = answered.await.map_err(|_| dropped())??;
        Ok(machine)
    }
}

fn failed(reason: &str) -> HypervisorError {
    HypervisorError::Ended(End::new(EndKind::HypervisorFailed, reason))
}

impl CreateRequest {
    /// The machine comes up, its guest channel one byte stream.
    pub fn succeed(self) -> Control {
        let (host, guest) = duplex(64 << 10);
        let machine = self.answer(Channel::Stream(Box::new(host)), None);
        Control { machine, guest }
    }

    /// The machine comes up, with virtio sockets.
    pub fn succeed_with_sockets(self) -> Control<GuestSockets> {
        let (announced, announcements) = mpsc::unbounded_channel();
        let listener = Arc::default();
        let dial = Arc::new(ToGuest(Arc::clone(&listener)));
        let machine = self.answer(Channel::Sockets(Sockets { dial, announcements }), Some(announced));
        let guest = GuestSockets { listener, machine: Arc::downgrade(&machine) };
        Control { machine, guest }
    }

    fn answer(
        self,
        channel: Channel,
        announced: Option<mpsc::UnboundedSender<BoxedStream>>,
    ) -> Arc<FakeMachine> {
        let machine = Arc::new(FakeMachine {
            state: watch::Sender::new(MachineState::Created),
            channel: Mutex::new(Some(channel)),
            announced: Mutex::new(announced),
            refusal: Mutex::new(None),
            asked_to_stop: watch::Sender::new(0),
        });
        // The caller may have given up meanwhile; then the test has the only handle.
        drop(self.answer.send(Ok(machine.clone())));
        machine
    }

    /// The hypervisor fails to start.
    pub fn fail(self, reason: &str) {
        drop(self.answer.send(Err(failed(reason))));
    }

    /// Waits until the caller has given up.
    pub async fn abandoned(&mut self) {
        self.answer.closed().await;
    }
}

type Listener = Arc<Mutex<Option<mpsc::UnboundedSender<DuplexStream>>>>;

struct ToGuest(Listener);

#[async_trait]
impl Dial for ToGuest {
    async fn dial(&self, _port: u32) -> io::Result<BoxedStream> {
        let (host, guest) = duplex(64 << 10);
        let delivered = lock(&self.0).as_ref().is_some_and(|l| l.send(guest).is_ok());
        if delivered { Ok(Box::new(host)) } else { Err(io::ErrorKind::ConnectionReset.into()) }
    }
}

impl GuestSockets {
    /// Listens on the guest's port, until the receiver is dropped or another listens.
    pub fn listen(&self) -> mpsc::UnboundedReceiver<DuplexStream> {
        let (sender, connections) = mpsc::unbounded_channel();
        *lock(&self.listener) = Some(sender);
        connections
    }

    /// A connection to the host's port; it has ended already if the machine has.
    pub fn connect(&self) -> DuplexStream {
        let (guest, host) = duplex(64 << 10);
        if let Some(machine) = self.machine.upgrade()
            && let Some(announced) = &*lock(&machine.announced)
        {
            drop(announced.send(Box::new(host)));
        }
        guest
    }
}

impl<G> Control<G> {
    /// The guest, or an accident, ends the machine.
    pub fn end(&self, end: End) {
        self.machine.end(end);
    }

    /// From now on every command is refused for this reason.
    pub fn refuse(&self, reason: &str) {
        *lock(&self.machine.refusal) = Some(reason.into());
    }

    pub fn state(&self) -> watch::Receiver<MachineState> {
        self.machine.state.subscribe()
    }

    /// How often the power button was pressed.
    pub fn stop_requests(&self) -> watch::Receiver<u32> {
        self.machine.asked_to_stop.subscribe()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl FakeMachine {
    fn end(&self, end: End) {
        *lock(&self.announced) = None;
        self.state.send_if_modified(|state| {
            let first = !matches!(state, MachineState::Ended(_));
            if first {
                *state = MachineState::Ended(end);
            }
            first
        });
    }

    fn go(&self, what: &'static str, from: &[MachineState], to: MachineState) -> Result<(), HypervisorError> {
        if let Some(reason) = lock(&self.refusal).clone() {
            return Err(HypervisorError::Refused { what, reason });
        }
        let mut answer = Ok(());
        self.state.send_if_modified(|state| {
            if let MachineState::Ended(end) = state {
                answer = Err(HypervisorError::Ended(end.clone()));
            } else if from.contains(state) {
                *state = to;
                return true;
            } else {
                answer = Err(HypervisorError::Refused { what, reason: format!("the machine is {state:?}") });
            }
            false
        });
        answer
    }
}

#[async_trait]
impl Machine for FakeMachine {
    async fn start(&self) -> Result<(), HypervisorError> {
        self.go("start the guest", &[MachineState::Created], MachineState::Running)
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        self.go("pause the guest", &[MachineState::Running], MachineState::Paused)
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        self.go("resume the guest", &[MachineState::Paused], MachineState::Running)
    }

    async fn save(&self, _: &Path) -> Result<(), HypervisorError> {
        self.go("save the guest", &[MachineState::Paused], MachineState::Paused)
    }

    async fn request_stop(&self) -> Result<(), HypervisorError> {
        self.asked_to_stop.send_modify(|n| *n += 1);
        Ok(())
    }

    fn kill(&self) {
        self.end(End::as_asked());
    }

    fn state(&self) -> watch::Receiver<MachineState> {
        self.state.subscribe()
    }

    fn take_channel(&self) -> Option<Channel> {
        lock(&self.channel).take()
    }

    fn accelerator(&self) -> &'static str {
        "fake"
    }

    fn pid(&self) -> u32 {
        0
    }
}
