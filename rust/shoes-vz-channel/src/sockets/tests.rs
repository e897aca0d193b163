//! Both halves in one process, over a device whose guest agents are started and killed at will.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU32, Ordering},
};

use proptest::prelude::*;
use tokio::{
    io::{DuplexStream, duplex},
    sync::Notify,
    time::sleep,
};

use super::*;

const LONG: Duration = Duration::from_secs(30);
/// What comes by an event, comes long before this.
const LONG_TIMEOUTS: Timeouts = Timeouts { hello: LONG, settle: LONG };
const SHORT_TIMEOUTS: Timeouts =
    Timeouts { hello: Duration::from_millis(20), settle: Duration::from_millis(20) };

/// A VM's virtio sockets.
#[derive(Clone)]
struct Device {
    listener: Arc<Mutex<Option<mpsc::UnboundedSender<DuplexStream>>>>,
    to_host: Arc<Mutex<mpsc::UnboundedSender<BoxedStream>>>,
    /// How many dials found no listener.
    refused: Arc<watch::Sender<u32>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[async_trait]
impl Dial for Device {
    async fn dial(&self, port: u32) -> io::Result<BoxedStream> {
        assert_eq!(port, port::VSOCK);
        let (host, guest) = duplex(4096);
        let delivered = lock(&self.listener).as_ref().is_some_and(|l| l.send(guest).is_ok());
        if delivered {
            return Ok(Box::new(host));
        }
        self.refused.send_modify(|n| *n += 1);
        Err(io::ErrorKind::ConnectionReset.into())
    }
}

impl Device {
    fn new() -> (Self, mpsc::UnboundedReceiver<BoxedStream>) {
        let (to_host, announcements) = mpsc::unbounded_channel();
        let to_host = Arc::new(Mutex::new(to_host));
        (Self { listener: Arc::default(), to_host, refused: Arc::default() }, announcements)
    }

    /// Another host process starts the VM again.
    fn host(&self, timeouts: Timeouts) -> Host {
        let (to_host, announcements) = mpsc::unbounded_channel();
        *lock(&self.to_host) = to_host;
        Host::with_timeouts(Sockets { dial: Arc::new(self.clone()), announcements }, timeouts)
    }

    /// From the guest to the host's port.
    fn connect(&self) -> DuplexStream {
        let (guest, host) = duplex(4096);
        drop(lock(&self.to_host).send(Box::new(host)));
        guest
    }

    fn listen(&self) -> mpsc::UnboundedReceiver<DuplexStream> {
        let (sender, calls) = mpsc::unbounded_channel();
        *lock(&self.listener) = Some(sender);
        calls
    }

    fn agent(&self, start_id: &str) -> Agent {
        let calls = self.listen();
        let (device, hello) = (self.clone(), Hello::new("test", start_id));
        Agent(AbortOnDropHandle::new(tokio::spawn(async move {
            let again = Arc::new(Notify::new());
            tokio::join!(stay_announced(&device, &hello, &again), serve(calls, &hello, again.clone()));
        })))
    }
}

/// A guest agent; dropping it kills it, and closes all its connections.
struct Agent(#[expect(dead_code, reason = "held")] AbortOnDropHandle<()>);

async fn stay_announced(device: &Device, hello: &Hello, again: &Notify) {
    let mut held = None;
    loop {
        match announce(device.connect(), hello).await {
            Ok(connection) => {
                let connection = held.insert(connection);
                tokio::select! { _ended = connection.read_u8() => {} () = again.notified() => {} }
            }
            Err(_) => sleep(Duration::from_millis(1)).await,
        }
    }
}

async fn serve(mut calls: mpsc::UnboundedReceiver<DuplexStream>, hello: &Hello, again: Arc<Notify>) {
    let mut handlers = JoinSet::new();
    while let Some(connection) = calls.recv().await {
        let (again, start_id) = (again.clone(), hello.start_id.clone());
        handlers.spawn(async move {
            match HostRequest::read(connection).await {
                Ok(HostRequest::Open(request)) => drop(answer(request, &start_id).await),
                Ok(HostRequest::Announce) => again.notify_one(),
                Err(_) => {}
            }
        });
    }
}

/// Port 2 is refused, 4 dropped; the others echo behind the start id.
async fn answer(request: crate::StreamRequest, start_id: &str) -> io::Result<()> {
    match request.port() {
        2 => return request.refuse("nothing\nhere").await,
        4 => return Ok(()),
        _ => {}
    }
    let mut stream = request.accept().await?;
    stream.write_all(format!("{start_id}:").as_bytes()).await?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await?;
    stream.write_all(&bytes).await?;
    stream.shutdown().await
}

fn vm(timeouts: Timeouts) -> (Host, Device) {
    let (device, _) = Device::new();
    (device.host(timeouts), device)
}

async fn reaches(host: &Host, wanted: impl Fn(&Peer) -> bool) {
    let mut peer = host.peer();
    let waited = timeout(LONG, peer.wait_for(|p| wanted(p))).await.expect("the guest is as wanted");
    drop(waited.expect("the VM lives"));
}

async fn is_up(host: &Host, start_id: &str) {
    reaches(host, |p| matches!(p, Peer::Up(h) if h.start_id == start_id)).await;
}

/// What the guest answers to `sent`; cut short when the guest agent is killed.
async fn answer_to(mut stream: BoxedStream, sent: &str) -> String {
    let mut answer = Vec::new();
    // A killed guest agent's connection breaks in either.
    if stream.write_all(sent.as_bytes()).await.is_ok() && stream.shutdown().await.is_ok() {
        drop(stream.read_to_end(&mut answer).await);
    }
    String::from_utf8(answer).unwrap()
}

async fn opened(host: &Host, port: u16) -> Result<BoxedStream, OpenError> {
    timeout(LONG, host.open(port)).await.expect("an answer")
}

async fn line(connection: &mut DuplexStream) -> String {
    timeout(LONG, read_line(connection, 2048)).await.expect("an answer").unwrap()
}

async fn ends(connection: &mut DuplexStream) {
    let end = timeout(LONG, connection.read(&mut [0; 1])).await.expect("it ends");
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
}

#[tokio::test]
async fn the_guest_is_up_once_it_has_announced_itself_and_streams_reach_it() {
    let (host, device) = vm(LONG_TIMEOUTS);
    let early = tokio::spawn({
        let host = host.clone();
        async move { host.open(1).await.unwrap() }
    });
    assert_eq!(*host.peer().borrow(), Peer::Down);
    let _agent = device.agent("first");
    reaches(&host, |p| *p == Peer::Up(Hello::new("test", "first"))).await;
    let early = timeout(LONG, early).await.expect("an early request is served").unwrap();
    assert_eq!(answer_to(early, "hi").await, "first:hi");
    let error = opened(&host, 2).await.err().unwrap();
    assert_eq!(error.to_string(), "the guest refused a stream to its port 2: nothing; here");
}

#[tokio::test]
async fn the_end_of_an_announcement_is_the_guest_agents_and_the_next_one_its_return() {
    let (host, device) = vm(LONG_TIMEOUTS);
    let first = device.agent("first");
    is_up(&host, "first").await;
    drop(first);
    reaches(&host, |p| *p == Peer::Down).await;
    let _second = device.agent("second");
    is_up(&host, "second").await;
}

/// The first connection that asks for a stream.
async fn stream_request(calls: &mut mpsc::UnboundedReceiver<DuplexStream>) -> DuplexStream {
    loop {
        let mut call = timeout(LONG, calls.recv()).await.expect("a request").unwrap();
        if line(&mut call).await.starts_with("CONNECT ") {
            return call;
        }
    }
}

#[tokio::test]
async fn a_request_unanswered_by_a_killed_guest_agent_is_answered_by_the_next() {
    for its_connections_live_on in [false, true] {
        let (host, device) = vm(LONG_TIMEOUTS);
        let mut calls = device.listen();
        let first = announce(device.connect(), &Hello::new("t", "first")).await.unwrap();
        let waiting = tokio::spawn({
            let host = host.clone();
            async move { host.open(5).await }
        });
        let mut request = stream_request(&mut calls).await;
        let _second;
        if its_connections_live_on {
            // As those of a guest that was reset may.
            _second = device.agent("second");
            ends(&mut request).await;
        } else {
            drop((request, calls, first));
            reaches(&host, |p| *p == Peer::Down).await;
            _second = device.agent("second");
        }
        let stream = timeout(LONG, waiting).await.expect("answered").unwrap().unwrap();
        assert_eq!(answer_to(stream, "x").await, "second:x");
    }
}

#[tokio::test]
async fn a_dial_refused_while_the_guest_agent_restarts_waits_for_the_next_announcement() {
    let (host, device) = vm(LONG_TIMEOUTS);
    drop(device.listen());
    let mut refused = device.refused.subscribe();
    let dying = announce(device.connect(), &Hello::new("t", "first")).await.unwrap();
    let waiting = tokio::spawn({
        let host = host.clone();
        async move { host.open(1).await }
    });
    // What the host asks at its start, and the request.
    drop(timeout(LONG, refused.wait_for(|n| *n == 2)).await.expect("both are refused").unwrap());
    drop(dying);
    reaches(&host, |p| *p == Peer::Down).await;
    let _second = device.agent("second");
    let stream = timeout(LONG, waiting).await.expect("answered").unwrap().unwrap();
    assert_eq!(answer_to(stream, "x").await, "second:x");
}

#[tokio::test]
async fn a_connection_that_fails_while_the_guest_agent_stays_is_an_error() {
    let (host, device) = vm(SHORT_TIMEOUTS);
    let _agent = device.agent("first");
    let dropped = opened(&host, 4).await.err().unwrap();
    assert!(matches!(dropped, OpenError::Dropped { port: 4, .. }), "{dropped}");
    drop(device.listen());
    let refused = opened(&host, 1).await.err().unwrap();
    assert!(matches!(refused, OpenError::Unreachable { port: 1, .. }), "{refused}");
    assert!(refused.to_string().contains("connection reset"), "{refused}");
}

#[tokio::test]
async fn a_dial_that_took_too_long_is_tried_again() {
    struct Slow(Device, AtomicU32);
    #[async_trait]
    impl Dial for Slow {
        async fn dial(&self, port: u32) -> io::Result<BoxedStream> {
            match self.1.fetch_add(1, Ordering::Relaxed) {
                0..3 => Err(io::ErrorKind::TimedOut.into()),
                _ => self.0.dial(port).await,
            }
        }
    }
    let (device, announcements) = Device::new();
    let slow = Slow(device.clone(), AtomicU32::new(0));
    let host = Host::with_timeouts(Sockets { dial: Arc::new(slow), announcements }, SHORT_TIMEOUTS);
    let _agent = device.agent("first");
    let stream = opened(&host, 1).await.unwrap();
    assert_eq!(answer_to(stream, "x").await, "first:x");
}

#[tokio::test]
async fn a_caller_that_gives_up_closes_its_connection_to_the_guest() {
    let (host, device) = vm(LONG_TIMEOUTS);
    let mut calls = device.listen();
    let _announced = announce(device.connect(), &Hello::new("t", "s")).await.unwrap();
    is_up(&host, "s").await;
    let caller = tokio::spawn(async move { host.open(3).await });
    let mut request = stream_request(&mut calls).await;
    caller.abort();
    ends(&mut request).await;
}

#[tokio::test]
async fn a_bad_hello_is_refused_with_the_reason_and_the_present_guest_agent_stays() {
    let (host, device) = vm(LONG_TIMEOUTS);
    let _agent = device.agent("good");
    is_up(&host, "good").await;
    let mut peer = host.peer();
    peer.mark_unchanged();
    let foreign = serde_json::to_string(&Hello { protocol: 99, ..Hello::new("9.9", "f") }).unwrap();
    for (sent, reason) in [
        ("GET / HTTP/1.1\n".to_owned(), "does not begin with HELLO"),
        ("HELLO {\"protocol\":\n".to_owned(), "is not valid"),
        ("HELLO {}\n".to_owned(), "protocol 0"),
        (format!("HELLO {foreign}\n"), "the guest agent 9.9 speaks guest channel protocol 99, this host 1"),
        (format!("HELLO {}", "x".repeat(MAX_HELLO)), "line too long"),
    ] {
        let mut connection = device.connect();
        drop(connection.write_all(sent.as_bytes()).await); // the rest of an overlong line may be cut off
        let answer = line(&mut connection).await;
        assert!(answer.starts_with("ERR ") && answer.contains(reason), "{sent:.40}: {answer}");
        ends(&mut connection).await;
    }
    let refused = announce(device.connect(), &Hello { protocol: 99, ..Hello::new("9.9", "f") }).await;
    assert!(
        matches!(refused, Err(AnnounceError::Refused(reason)) if reason.contains("rebuild the template"))
    );
    assert!(!peer.has_changed().unwrap());
}

#[tokio::test]
async fn a_connection_without_a_hello_is_refused_after_a_while() {
    let (host, device) = vm(SHORT_TIMEOUTS);
    let mut silent = device.connect();
    assert_eq!(line(&mut silent).await, "ERR no announcement within 20ms");
    ends(&mut silent).await;
    assert_eq!(*host.peer().borrow(), Peer::Down);
}

#[tokio::test]
async fn connections_that_owe_their_hello_are_bounded() {
    let (host, device) = vm(LONG_TIMEOUTS);
    let mut silent: Vec<_> = (0..MAX_PENDING_HELLOS).map(|_| device.connect()).collect();
    ends(&mut device.connect()).await;
    drop(silent.pop());
    let _agent = device.agent("tries again");
    is_up(&host, "tries again").await;
}

#[tokio::test]
async fn the_same_guest_agent_announcing_itself_again_changes_nothing() {
    let (host, device) = vm(LONG_TIMEOUTS);
    let hello = Hello::new("t", "same");
    let mut before = announce(device.connect(), &hello).await.unwrap();
    is_up(&host, "same").await;
    let mut peer = host.peer();
    peer.mark_unchanged();
    let _now = announce(device.connect(), &hello).await.unwrap();
    ends(&mut before).await;
    assert!(!peer.has_changed().unwrap(), "{:?}", peer.borrow());
}

#[tokio::test]
async fn an_announcement_overtaken_by_a_later_one_is_closed_without_an_ok() {
    let (host, device) = vm(LONG_TIMEOUTS);
    let early = device.connect();
    let _late = announce(device.connect(), &Hello::new("t", "late")).await.unwrap();
    let overtaken = timeout(LONG, announce(early, &Hello::new("t", "early"))).await.expect("an answer");
    assert!(matches!(overtaken, Err(AnnounceError::Broken(_))));
    is_up(&host, "late").await;
}

#[tokio::test]
async fn a_guest_agent_that_sends_data_after_its_hello_must_announce_itself_again() {
    let (host, device) = vm(LONG_TIMEOUTS);
    let mut connection = announce(device.connect(), &Hello::new("t", "s")).await.unwrap();
    is_up(&host, "s").await;
    connection.write_all(b"and another thing").await.unwrap();
    reaches(&host, |p| *p == Peer::Down).await;
    ends(&mut connection).await;
}

#[tokio::test]
async fn a_guest_that_never_saw_its_hosts_end_is_asked_to_announce_itself() {
    let (device, mut old_host) = Device::new();
    let _agent = device.agent("restored");
    // The old host's end of the connection is part of a saved state: no process closes it.
    let mut old_connection = old_host.recv().await.unwrap();
    assert!(read_line(&mut old_connection, 2048).await.unwrap().starts_with("HELLO"));
    old_connection.write_all(b"OK\n").await.unwrap();
    let host = device.host(LONG_TIMEOUTS);
    is_up(&host, "restored").await;
    assert_eq!(answer_to(opened(&host, 1).await.unwrap(), "x").await, "restored:x");
}

#[tokio::test]
async fn the_vms_end_reaches_every_watcher_and_caller() {
    let (host, device) = vm(LONG_TIMEOUTS);
    let agent = device.agent("first");
    is_up(&host, "first").await;
    drop(agent);
    reaches(&host, |p| *p == Peer::Down).await;
    let waiting = tokio::spawn({
        let host = host.clone();
        async move { host.open(1).await }
    });
    let mut announced = announce(device.connect(), &Hello::new("t", "second")).await.unwrap();
    let mut peer = host.peer();
    // The hypervisor drops its end.
    *lock(&device.to_host) = mpsc::unbounded_channel().0;
    ends(&mut announced).await;
    timeout(LONG, async { while peer.changed().await.is_ok() {} }).await.expect("the watch closes");
    assert_eq!(*peer.borrow(), Peer::Down);
    let error = timeout(LONG, waiting).await.expect("every wait ends").unwrap().err().unwrap();
    assert!(matches!(error, OpenError::Closed), "{error}");
    assert!(matches!(opened(&host, 1).await, Err(OpenError::Closed)));
}

#[tokio::test]
async fn the_last_host_closes_the_announcements_connection() {
    let (host, device) = vm(LONG_TIMEOUTS);
    let mut announced = announce(device.connect(), &Hello::new("t", "s")).await.unwrap();
    let other = host.clone();
    drop(host);
    is_up(&other, "s").await;
    drop(other);
    ends(&mut announced).await;
}

#[derive(Debug, Clone)]
enum Step {
    Restart,
    Kill,
    /// A new host asks the present guest agent to announce itself again.
    Announce,
    /// A process of the guest that connects and sends nothing, or nonsense.
    Stray(Option<&'static str>),
    Open,
    /// Let the other tasks run for so many turns.
    Yield(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => Just(Step::Restart),
        2 => Just(Step::Kill),
        1 => Just(Step::Announce),
        1 => prop_oneof![Just(None), Just(Some("HELLO nonsense\n")), Just(Some("x"))].prop_map(Step::Stray),
        4 => Just(Step::Open),
        3 => (0usize..12).prop_map(Step::Yield),
    ];
    proptest::collection::vec(step, 1..40)
}

async fn any_order_loses_and_crosses_nothing(steps: Vec<Step>) {
    let (host, device) = vm(Timeouts { hello: Duration::from_millis(50), settle: LONG });
    let (mut agent, mut starts, mut strays) = (None, 0, Vec::new());
    let mut opens: JoinSet<(String, String)> = JoinSet::new();
    let open = |opens: &mut JoinSet<_>| {
        let (host, token) = (host.clone(), format!("token {}", opens.len()));
        opens.spawn(async move { (answer_to(host.open(1).await.unwrap(), &token).await, token) });
    };
    let mut restart = |agent: &mut Option<Agent>| {
        *agent = None;
        starts += 1;
        *agent = Some(device.agent(&format!("start {starts}")));
        starts
    };
    for step in steps {
        match step {
            Step::Restart => drop(restart(&mut agent)),
            Step::Kill => agent = None,
            Step::Announce => request_announcement(&device).await,
            Step::Stray(sent) => {
                let mut stray = device.connect();
                if let Some(sent) = sent {
                    stray.write_all(sent.as_bytes()).await.unwrap();
                }
                strays.push(stray);
            }
            Step::Open => open(&mut opens),
            Step::Yield(turns) => {
                for _ in 0..turns {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
    let last = format!("start {}", restart(&mut agent));
    while let Some(done) = timeout(LONG, opens.join_next()).await.expect("every stream asked for comes") {
        let (answer, token) = done.unwrap();
        match answer.split_once(':') {
            Some((start, echoed)) if start == last => assert_eq!(echoed, token),
            // The guest agent may have been killed while it answered.
            Some((_, echoed)) => assert!(token.starts_with(echoed), "{token} got {echoed}"),
            None => {
                assert!("start ".starts_with(&answer) || answer.starts_with("start "), "{token} got {answer}")
            }
        }
    }
    is_up(&host, &last).await;
    open(&mut opens);
    let (answer, token) = timeout(LONG, opens.join_next()).await.expect("an answer").unwrap().unwrap();
    assert_eq!(answer, format!("{last}:{token}"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn restarts_announcements_and_requests_in_any_order_lose_and_cross_no_stream(steps in steps(), threads: bool) {
        let mut builder = match threads {
            true => tokio::runtime::Builder::new_multi_thread(),
            false => tokio::runtime::Builder::new_current_thread(),
        };
        let runtime = builder.enable_all().build().unwrap();
        runtime.block_on(any_order_loses_and_crosses_nothing(steps));
    }
}
