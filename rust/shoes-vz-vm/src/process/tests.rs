//! The VM process with the fake hypervisor, through its real sockets.

use std::{future::pending, path::Path};

use shoes_vz_channel::{
    Hello, StreamRequest, mux, socket,
    sockets::{HostRequest, announce},
};
use shoes_vz_model::{
    guest::port,
    template::{Os, Transport},
};
use shoes_vz_proto::vm::{VmEndKind, VmState};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::mpsc,
    task::JoinSet,
};

use super::*;
use crate::{
    client::{Stop, Vm},
    hypervisor::fake::{Control, CreateRequest, FakeHypervisor, GuestSockets},
    spec::{Accelerator, Display, Network, StateUse},
};

fn spec() -> VmSpec {
    VmSpec {
        hypervisor: HypervisorKind::Qemu,
        accelerator: Accelerator::Tcg,
        cpus: 1,
        memory_bytes: 64 << 20,
        disk_bytes: 0,
        template: "/nowhere".into(),
        kernel_cmdline: String::new(),
        display: Display::Headless,
        mac_address: None,
        network: Network::Nat,
        max_lifetime: None,
        os: Os::Linux,
        transport: Transport::Channel,
        state: StateUse::None,
    }
}

struct Served {
    dir: tempfile::TempDir,
    creates: mpsc::UnboundedReceiver<CreateRequest>,
    process: JoinHandle<Result<End, ProcessError>>,
}

impl Served {
    async fn new(spec: VmSpec, terminated: impl Future<Output = ()> + Send + 'static) -> Self {
        Self::with_start_deadline(spec, START_DEADLINE, terminated).await
    }

    async fn with_start_deadline(
        spec: VmSpec,
        start_deadline: Duration,
        terminated: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        spec.write(dir.path()).unwrap();
        let (hypervisor, creates) = FakeHypervisor::new();
        let (is_ready, ready) = oneshot::channel();
        let bundle = dir.path().to_owned();
        let process = tokio::spawn(async move {
            serve(&bundle, spec, Arc::new(hypervisor), start_deadline, terminated, || {
                is_ready.send(()).unwrap()
            })
            .await
        });
        ready.await.unwrap();
        Self { dir, creates, process }
    }

    fn bundle(&self) -> &Path {
        self.dir.path()
    }

    async fn vm(&self) -> Vm {
        Vm::adopt(self.bundle()).await.unwrap().unwrap()
    }

    /// The process' end, and what it left in the bundle.
    async fn end(self) -> End {
        let end =
            tokio::time::timeout(Duration::from_secs(30), self.process).await.unwrap().unwrap().unwrap();
        assert_eq!(End::read(self.dir.path()).unwrap(), Some(end.clone()));
        for socket in [file::VM_SOCKET, file::GUEST_SOCKET] {
            assert!(!self.dir.path().join(socket).exists(), "{socket} is left");
        }
        assert!(Vm::adopt(self.dir.path()).await.unwrap().is_none());
        end
    }
}

async fn started(served: &mut Served) -> (Vm, Control) {
    started_by(served, CreateRequest::succeed).await
}

async fn started_by<G>(
    served: &mut Served,
    succeed: impl FnOnce(CreateRequest) -> Control<G>,
) -> (Vm, Control<G>) {
    let vm = served.vm().await;
    let starting = tokio::spawn({
        let vm = vm.clone();
        async move { vm.start().await }
    });
    let control = succeed(served.creates.recv().await.unwrap());
    starting.await.unwrap().unwrap();
    (vm, control)
}

async fn reaches(vm: &Vm, state: VmState) {
    vm.status().wait_for(|s| s.state == state as i32).await.unwrap();
}

#[tokio::test]
async fn a_vm_starts_pauses_resumes_and_stops_as_asked() {
    let mut served = Served::new(spec(), pending()).await;
    let (vm, _control) = started(&mut served).await;
    reaches(&vm, VmState::Running).await;
    assert!(vm.status().borrow().started_ms > 0);
    assert_eq!(vm.status().borrow().accelerator, "fake");
    vm.start().await.unwrap();
    vm.pause().await.unwrap();
    reaches(&vm, VmState::Paused).await;
    vm.resume().await.unwrap();
    reaches(&vm, VmState::Running).await;

    vm.stop(Stop::Force).await.unwrap();
    let last = vm.status().borrow().clone();
    assert_eq!((last.state, last.end.unwrap().kind), (VmState::Stopped as i32, VmEndKind::Requested as i32));
    vm.stop(Stop::Force).await.unwrap();
    assert_eq!(served.end().await.kind, EndKind::Requested);
}

#[tokio::test]
async fn a_stop_overtakes_a_start_under_way() {
    let mut served = Served::new(spec(), pending()).await;
    let vm = served.vm().await;
    let starting = tokio::spawn({
        let vm = vm.clone();
        async move { vm.start().await }
    });
    let mut create = served.creates.recv().await.unwrap();
    vm.stop(Stop::Grace(Duration::from_secs(600))).await.unwrap();
    create.abandoned().await;
    assert!(starting.await.unwrap().unwrap_err().to_string().contains("ended as asked"));
    assert_eq!(served.end().await.kind, EndKind::Requested);
}

#[tokio::test]
async fn the_reason_of_a_hypervisor_that_does_not_start_reaches_the_client() {
    let mut served = Served::new(spec(), pending()).await;
    let vm = served.vm().await;
    let starting = tokio::spawn({
        let vm = vm.clone();
        async move { vm.start().await }
    });
    served.creates.recv().await.unwrap().fail("no such machine");
    let error = starting.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("no such machine"), "{error}");
    let end = vm.ended().await;
    assert_eq!((end.kind, end.reason.as_str()), (VmEndKind::HypervisorFailed as i32, "no such machine"));
    assert_eq!(served.end().await.kind, EndKind::HypervisorFailed);
}

#[tokio::test]
async fn an_unrequested_end_reaches_every_watcher() {
    let mut served = Served::new(spec(), pending()).await;
    let (vm, control) = started(&mut served).await;
    let other = served.vm().await;
    control.end(End::new(EndKind::GuestPanic, "it panicked"));
    for vm in [vm, other] {
        let last = vm.status().wait_for(|s| s.end.is_some()).await.unwrap().clone();
        assert_eq!(last.state, VmState::Failed as i32);
        assert_eq!(vm.ended().await.reason, "it panicked");
        assert!(vm.pause().await.unwrap_err().to_string().contains("it panicked"));
    }
    assert_eq!(served.end().await.kind, EndKind::GuestPanic);
}

#[tokio::test]
async fn a_polite_stop_presses_the_power_button_and_a_forced_one_overtakes_it() {
    let mut served = Served::new(spec(), pending()).await;
    let (vm, control) = started(&mut served).await;
    let polite = tokio::spawn({
        let vm = vm.clone();
        async move { vm.stop(Stop::Grace(Duration::from_secs(600))).await }
    });
    control.stop_requests().wait_for(|n| *n == 1).await.unwrap();
    reaches(&vm, VmState::Stopping).await;
    vm.stop(Stop::Force).await.unwrap();
    polite.await.unwrap().unwrap();
    assert_eq!(served.end().await.reason, "the VM was ended as asked");
}

#[tokio::test]
async fn a_guest_that_powers_off_within_its_grace_was_stopped_as_asked() {
    let mut served = Served::new(spec(), pending()).await;
    let (vm, control) = started(&mut served).await;
    let polite = tokio::spawn(async move { vm.stop(Stop::Grace(Duration::from_secs(600))).await });
    control.stop_requests().wait_for(|n| *n == 1).await.unwrap();
    control.end(End::new(EndKind::GuestPoweroff, "off"));
    polite.await.unwrap().unwrap();
    assert_eq!(served.end().await, End::new(EndKind::Requested, "the guest powered off, as asked"));
}

#[tokio::test]
async fn a_guest_that_ignores_its_grace_is_ended() {
    let mut served = Served::new(spec(), pending()).await;
    let (vm, _control) = started(&mut served).await;
    vm.stop(Stop::Grace(Duration::ZERO)).await.unwrap();
    assert!(served.end().await.reason.contains("did not power off"));
}

#[tokio::test]
async fn a_vm_is_ended_at_its_maximum_lifetime() {
    let late = jiff::Timestamp::now() + Duration::from_millis(300);
    let mut served = Served::new(VmSpec { max_lifetime: Some(late), ..spec() }, pending()).await;
    let (_vm, _control) = started(&mut served).await;
    assert_eq!(served.end().await.kind, EndKind::MaxLifetime);
}

#[tokio::test]
async fn a_terminated_vm_process_ends_its_vm() {
    let (terminate, terminated) = oneshot::channel::<()>();
    let mut served = Served::new(spec(), async { drop(terminated.await) }).await;
    let (_vm, _control) = started(&mut served).await;
    drop(terminate);
    let end = served.end().await;
    assert!(end.kind == EndKind::Requested && end.reason.contains("SIGTERM"), "{end}");
}

#[tokio::test]
async fn a_vm_that_is_not_started_ends_itself() {
    let served = Served::with_start_deadline(spec(), Duration::from_millis(10), pending()).await;
    assert!(served.end().await.reason.contains("no agent started"));
}

#[tokio::test]
async fn one_bundle_has_one_vm_process() {
    let served = Served::new(spec(), pending()).await;
    let (hypervisor, _creates) = FakeHypervisor::new();
    let second = serve(served.bundle(), spec(), Arc::new(hypervisor), START_DEADLINE, pending(), || ()).await;
    assert!(matches!(second.unwrap_err(), ProcessError::Taken(_)));
    // The first one's sockets are untouched.
    served.vm().await.stop(Stop::Force).await.unwrap();
    assert_eq!(served.end().await.kind, EndKind::Requested);
}

#[tokio::test]
async fn a_machine_command_before_start_is_refused_with_the_reason() {
    let served = Served::new(spec(), pending()).await;
    let vm = served.vm().await;
    assert!(vm.pause().await.unwrap_err().to_string().contains("not started"));
    vm.stop(Stop::Force).await.unwrap();
    assert_eq!(served.end().await.kind, EndKind::Requested);
}

#[tokio::test]
async fn the_reason_of_a_machine_that_refuses_reaches_the_client() {
    let mut served = Served::new(spec(), pending()).await;
    let (vm, control) = started(&mut served).await;
    control.refuse("the disk is being resized");
    assert!(vm.pause().await.unwrap_err().to_string().contains("the disk is being resized"));
    vm.stop(Stop::Force).await.unwrap();
    assert_eq!(served.end().await.kind, EndKind::Requested);
}

#[tokio::test]
async fn the_guests_hello_is_published_and_streams_asked_for_before_start_reach_it() {
    let mut served = Served::new(spec(), pending()).await;
    let socket = served.bundle().join(file::GUEST_SOCKET);
    let early = tokio::spawn(async move { socket::dial(&socket, 22).await });
    let (vm, control) = started(&mut served).await;
    assert!(!vm.status().borrow().guest_up);
    let Control { guest, .. } = control;
    let hello = Hello::new("1", "start");
    let agent = tokio::spawn(mux::Guest::serve(guest, hello, |request: StreamRequest| async move {
        request.accept().await.unwrap().write_all(b"hi").await.unwrap();
    }));
    let mut stream = early.await.unwrap().unwrap();
    let mut received = String::new();
    stream.read_to_string(&mut received).await.unwrap();
    assert_eq!(received, "hi");
    let up = vm.status().wait_for(|s| s.guest_up).await.unwrap().clone();
    assert!(up.guest_up_ms > 0);
    agent.abort();
    vm.stop(Stop::Force).await.unwrap();
    assert_eq!(served.end().await.kind, EndKind::Requested);
}

/// A guest agent on virtio sockets; dropping it kills it.
struct Agent {
    task: JoinHandle<()>,
    /// The first lines of the HTTP requests that reached it.
    asked: mpsc::UnboundedReceiver<String>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn agent(guest: &GuestSockets, start_id: &'static str) -> Agent {
    let (ask, asked) = mpsc::unbounded_channel();
    let (guest, mut connections) = (guest.clone(), guest.listen());
    let task = tokio::spawn(async move {
        let _announced = announce(guest.connect(), &Hello::new("1", start_id)).await.unwrap();
        let mut handlers = JoinSet::new();
        while let Some(connection) = connections.recv().await {
            let ask = ask.clone();
            handlers.spawn(async move {
                match HostRequest::read(connection).await.unwrap() {
                    HostRequest::Open(request) => answer(request, start_id, &ask).await,
                    HostRequest::Announce => {} // it has, or is about to
                }
            });
        }
    });
    Agent { task, asked }
}

/// The API accepts every request; sshd sends the start id, and keeps the connection.
async fn answer(request: StreamRequest, start_id: &str, ask: &mpsc::UnboundedSender<String>) {
    let api = request.port() == port::API;
    let mut stream = request.accept().await.unwrap();
    if api {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
        let head = String::from_utf8(head).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        ask.send(head.lines().next().unwrap().to_owned()).unwrap();
    } else {
        stream.write_all(start_id.as_bytes()).await.unwrap();
    }
    let _until_the_caller_ends = stream.read_u8().await;
}

/// The next stream that the host asks for.
async fn asked_for(connections: &mut mpsc::UnboundedReceiver<tokio::io::DuplexStream>) -> StreamRequest {
    loop {
        if let HostRequest::Open(request) =
            HostRequest::read(connections.recv().await.unwrap()).await.unwrap()
        {
            return request;
        }
    }
}

async fn sshd_of(served: &Served, start_id: &str) -> tokio::net::UnixStream {
    let mut stream = socket::dial(&served.bundle().join(file::GUEST_SOCKET), port::SSH).await.unwrap();
    let mut received = vec![0; start_id.len()];
    stream.read_exact(&mut received).await.unwrap();
    assert_eq!(received, start_id.as_bytes());
    stream
}

#[tokio::test]
async fn a_guest_with_virtio_sockets_is_up_once_it_has_announced_itself_and_early_streams_reach_it() {
    let mut served = Served::new(spec(), pending()).await;
    let socket = served.bundle().join(file::GUEST_SOCKET);
    let early = tokio::spawn(async move { socket::dial(&socket, port::SSH).await });
    let (vm, control) = started_by(&mut served, CreateRequest::succeed_with_sockets).await;
    reaches(&vm, VmState::Running).await;
    // It listens, but it has not announced itself yet.
    drop(control.guest.listen());
    assert!(!vm.status().borrow().guest_up && !early.is_finished());
    let _agent = agent(&control.guest, "first");
    let up = vm.status().wait_for(|s| s.guest_up).await.unwrap().clone();
    assert!(up.guest_up_ms > 0);
    let mut received = [0; 5];
    early.await.unwrap().unwrap().read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"first");
    vm.stop(Stop::Force).await.unwrap();
    assert_eq!(served.end().await.kind, EndKind::Requested);
}

#[tokio::test]
async fn a_restarted_guest_agent_is_down_and_then_up_again() {
    let mut served = Served::new(spec(), pending()).await;
    let (vm, control) = started_by(&mut served, CreateRequest::succeed_with_sockets).await;
    let first = agent(&control.guest, "first");
    let up = vm.status().wait_for(|s| s.guest_up).await.unwrap().clone();
    let mut old = sshd_of(&served, "first").await;
    drop(first);
    vm.status().wait_for(|s| !s.guest_up).await.unwrap();
    assert_eq!(old.read(&mut [0; 1]).await.unwrap_or(0), 0, "its streams end with it");
    let _second = agent(&control.guest, "second");
    let again = vm.status().wait_for(|s| s.guest_up).await.unwrap().clone();
    assert_eq!(again.guest_up_ms, up.guest_up_ms, "a boot is measured once");
    sshd_of(&served, "second").await;
    vm.stop(Stop::Force).await.unwrap();
    assert_eq!(served.end().await.kind, EndKind::Requested);
}

#[tokio::test]
async fn a_polite_stop_asks_the_guest_agent_over_virtio_sockets() {
    let mut served = Served::new(spec(), pending()).await;
    let (vm, control) = started_by(&mut served, CreateRequest::succeed_with_sockets).await;
    let mut agent = agent(&control.guest, "a");
    vm.status().wait_for(|s| s.guest_up).await.unwrap();
    let polite = tokio::spawn(async move { vm.stop(Stop::Grace(Duration::from_secs(600))).await });
    assert_eq!(agent.asked.recv().await.unwrap(), "POST /shutdown HTTP/1.1");
    control.end(End::new(EndKind::GuestPoweroff, "off"));
    polite.await.unwrap().unwrap();
    assert_eq!(*control.stop_requests().borrow(), 0, "the power button is not needed");
    assert_eq!(served.end().await.reason, "the guest powered off, as asked");
}

#[tokio::test]
async fn the_vms_end_closes_its_virtio_sockets_and_every_stream() {
    let mut served = Served::new(spec(), pending()).await;
    let (_vm, control) = started_by(&mut served, CreateRequest::succeed_with_sockets).await;
    let mut connections = control.guest.listen();
    let mut announced = announce(control.guest.connect(), &Hello::new("1", "s")).await.unwrap();
    let socket = served.bundle().join(file::GUEST_SOCKET);
    let unanswered = tokio::spawn(async move { socket::dial(&socket, port::SSH).await });
    let mut asked = asked_for(&mut connections).await;
    let other = served.bundle().join(file::GUEST_SOCKET);
    let opening = tokio::spawn(async move { socket::dial(&other, port::API).await });
    let request = asked_for(&mut connections).await;
    let mut guests = request.accept().await.unwrap();
    let mut ours = opening.await.unwrap().unwrap();

    control.end(End::new(EndKind::GuestPanic, "it panicked"));
    assert_eq!(served.end().await.kind, EndKind::GuestPanic);
    assert_eq!(announced.read(&mut [0; 1]).await.unwrap(), 0);
    asked.caller_closed().await;
    assert_eq!(guests.read(&mut [0; 1]).await.unwrap(), 0);
    assert_eq!(ours.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert!(unanswered.await.unwrap().is_err());
}

thread_local! {
    static LOG: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// Logs of `info` and above go to [`LOG`] of their thread from now on. One subscriber for the whole process: with one for each
/// test, whether a line is logged at all would depend on the tests beside it (tracing caches that for all threads).
fn capture_log() {
    struct ThreadLog;
    impl io::Write for ThreadLog {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            LOG.with_borrow_mut(|log| log.extend(bytes));
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| tracing_subscriber::fmt().with_ansi(false).with_writer(|| ThreadLog).init());
    LOG.with_borrow_mut(Vec::clear);
}

fn captured() -> String {
    LOG.with_borrow(|log| String::from_utf8_lossy(log).into_owned())
}

#[tokio::test]
async fn a_stop_of_a_vm_that_has_ended_logs_nothing() {
    capture_log();
    let mut served = Served::new(spec(), pending()).await;
    let (vm, _control) = started(&mut served).await;
    vm.stop(Stop::Force).await.unwrap();
    assert_eq!(served.end().await.kind, EndKind::Requested);
    // As before a bundle is removed whose VM was ended once its state was saved.
    vm.stop(Stop::Force).await.unwrap();
    vm.stop(Stop::Grace(Duration::from_secs(600))).await.unwrap();
    let log = captured();
    assert!(log.contains("VM ended"), "the log is captured: {log}");
    assert!(!log.contains("No such file") && !log.contains("WARN") && !log.contains("did not stop"), "{log}");
}

#[tokio::test]
async fn a_socket_that_is_not_served_any_more_is_a_named_fault_of_the_vm_process() {
    let waits = || tokio::spawn(pending::<()>());
    let serves = || tokio::spawn(pending::<Result<(), io::Error>>());
    let mut panics = tokio::spawn(async { panic!("the seam broke") });
    let fault = socket_task_ended(&mut serves(), &mut panics).await;
    assert!(fault.contains("guest.sock") && fault.contains("the seam broke"), "{fault}");
    let mut fails = tokio::spawn(async { Err(io::Error::other("out of files")) });
    let fault = socket_task_ended(&mut fails, &mut waits()).await;
    assert_eq!(fault, "serving vm.sock failed: out of files");
}

#[tokio::test]
async fn a_panic_of_the_vm_process_ends_its_vm_with_that_as_its_reason() {
    let (fault, faulty) = oneshot::channel::<()>();
    let faulty = async move {
        drop(faulty.await);
        panic!("the seam broke");
    };
    let mut served = Served::new(spec(), faulty).await;
    let (vm, control) = started(&mut served).await;
    drop(fault);
    let end = served.end().await;
    assert_eq!(end.kind, EndKind::HypervisorFailed);
    assert_eq!(end.reason, "a bug in the VM process ended the VM: it panicked: the seam broke");
    assert_eq!(vm.ended().await.reason, end.reason, "its agent reads it");
    drop(control);
}
