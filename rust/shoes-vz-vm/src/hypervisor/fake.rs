//! A hypervisor in this process, stepped by the test, failing on demand.

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

/// Makes fakes; [`FakeHypervisor::new`] gives the test the other end.
pub struct FakeHypervisor {
    requests: mpsc::UnboundedSender<CreateRequest>,
}

/// A `create` under way: the test answers it, or drops it, which fails it.
pub struct CreateRequest {
    /// What was asked for.
    pub spec: VmSpec,
    answer: oneshot::Sender<Result<Arc<FakeMachine>, HypervisorError>>,
}

/// The test's hold on a machine.
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
    /// The hypervisor's end of [`Sockets::knocks`].
    knocks: Mutex<Option<mpsc::UnboundedSender<BoxedStream>>>,
    refuse: Mutex<Option<String>>,
    asked_to_stop: watch::Sender<u32>,
}

impl FakeHypervisor {
    /// The hypervisor, and where its `create` calls arrive.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<CreateRequest>) {
        let (requests, receiver) = mpsc::unbounded_channel();
        (Self { requests }, receiver)
    }
}

#[async_trait]
impl Hypervisor for FakeHypervisor {
    async fn create(&self, spec: &VmSpec, _: &Path) -> Result<Arc<dyn Machine>, HypervisorError> {
        let (answer, answered) = oneshot::channel();
        let gone = || failed("the fake hypervisor's test is over");
        self.requests.send(CreateRequest { spec: spec.clone(), answer }).map_err(|_| gone())?;
        let machine: Arc<dyn Machine> = answered.await.map_err(|_| gone())??;
        Ok(machine)
    }
}

fn failed(why: &str) -> HypervisorError {
    HypervisorError::Ended(End::new(EndKind::HypervisorFailed, why))
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
        let (sender, knocks) = mpsc::unbounded_channel();
        let listener = Arc::default();
        let dial = Arc::new(ToGuest(Arc::clone(&listener)));
        let machine = self.answer(Channel::Sockets(Sockets { dial, knocks }), Some(sender));
        let guest = GuestSockets { listener, machine: Arc::downgrade(&machine) };
        Control { machine, guest }
    }

    fn answer(
        self,
        channel: Channel,
        knocks: Option<mpsc::UnboundedSender<BoxedStream>>,
    ) -> Arc<FakeMachine> {
        let machine = Arc::new(FakeMachine {
            state: watch::Sender::new(MachineState::Created),
            channel: Mutex::new(Some(channel)),
            knocks: Mutex::new(knocks),
            refuse: Mutex::new(None),
            asked_to_stop: watch::Sender::new(0),
        });
        // The asker may have gone away meanwhile; then the test holds the only handle.
        drop(self.answer.send(Ok(machine.clone())));
        machine
    }

    /// The hypervisor fails to start.
    pub fn fail(self, why: &str) {
        drop(self.answer.send(Err(failed(why))));
    }

    /// Waits until the asker has given up.
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
        let heard = lock(&self.0).as_ref().is_some_and(|l| l.send(guest).is_ok());
        if heard { Ok(Box::new(host)) } else { Err(io::ErrorKind::ConnectionReset.into()) }
    }
}

impl GuestSockets {
    /// Listens on the guest's port, until the receiver is dropped or another listens.
    pub fn listen(&self) -> mpsc::UnboundedReceiver<DuplexStream> {
        let (sender, connections) = mpsc::unbounded_channel();
        *lock(&self.listener) = Some(sender);
        connections
    }

    /// A connection to the host's port; one that has ended already when the machine has.
    pub fn connect(&self) -> DuplexStream {
        let (guest, host) = duplex(64 << 10);
        if let Some(machine) = self.machine.upgrade()
            && let Some(knocks) = &*lock(&machine.knocks)
        {
            drop(knocks.send(Box::new(host)));
        }
        guest
    }
}

impl<G> Control<G> {
    /// The guest, or an accident, ends the machine.
    pub fn end(&self, end: End) {
        self.machine.end(end);
    }

    /// From now on every command is refused with these words.
    pub fn refuse(&self, why: &str) {
        *lock(&self.machine.refuse) = Some(why.into());
    }

    /// The machine's state.
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
        *lock(&self.knocks) = None;
        self.state.send_if_modified(|state| {
            let first = !matches!(state, MachineState::Ended(_));
            if first {
                *state = MachineState::Ended(end);
            }
            first
        });
    }

    fn go(&self, what: &'static str, from: &[MachineState], to: MachineState) -> Result<(), HypervisorError> {
        if let Some(why) = lock(&self.refuse).clone() {
            return Err(HypervisorError::Refused { what, why });
        }
        let mut answer = Ok(());
        self.state.send_if_modified(|state| {
            if let MachineState::Ended(end) = state {
                answer = Err(HypervisorError::Ended(end.clone()));
            } else if from.contains(state) {
                *state = to;
                return true;
            } else {
                answer = Err(HypervisorError::Refused { what, why: format!("the machine is {state:?}") });
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
        self.end(End::new(EndKind::Requested, "the VM was ended as asked"));
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
