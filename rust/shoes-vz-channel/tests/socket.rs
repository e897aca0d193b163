//! `guest.sock` and the typed API behind it, with the multiplexer or a stand-in behind the socket.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use shoes_vz_channel::{
    Hello, StreamRequest,
    api::GuestApi,
    mux::{Guest, Host},
    socket::{DialError, Open, dial, serve},
    sockets::HostRequest,
};
use shoes_vz_model::guest::{RunnerActivity, port};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::UnixListener,
    sync::Notify,
    time::timeout,
};

const LONG: Duration = Duration::from_secs(20);

struct Sock {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn served(host: impl Open) -> Sock {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("guest.sock");
    let listener = UnixListener::bind(&path).unwrap();
    tokio::spawn(serve(listener, host));
    Sock { path, _dir: dir }
}

/// Never opens; notifies when a wait for it is dropped.
#[derive(Clone)]
struct Never {
    asked: Arc<Notify>,
    dropped: Arc<Notify>,
}

struct OnDrop(Arc<Notify>);
impl Drop for OnDrop {
    fn drop(&mut self) {
        self.0.notify_one();
    }
}

impl Open for Never {
    type Stream = DuplexStream;
    type Error = io::Error;
    async fn open(&self, _port: u16) -> io::Result<DuplexStream> {
        let _on_drop = OnDrop(self.dropped.clone());
        self.asked.notify_one();
        std::future::pending().await
    }
}

fn guest(handler: impl AsyncHandler) -> Sock {
    let (a, b) = duplex(4096);
    let handler = move |request| handler.clone().handle(request);
    tokio::spawn(Guest::serve(b, Hello::new("t", "s"), handler));
    served(Host::spawn(a))
}

trait AsyncHandler: Clone + Send + 'static {
    fn handle(self, request: StreamRequest) -> impl Future<Output = ()> + Send + 'static;
}
impl<F, R> AsyncHandler for F
where
    F: Fn(StreamRequest) -> R + Clone + Send + 'static,
    R: Future<Output = ()> + Send + 'static,
{
    fn handle(self, request: StreamRequest) -> impl Future<Output = ()> + Send + 'static {
        self(request)
    }
}

/// Answers every request on a stream with `answer`, byte for byte, and gives the request to `seen`.
fn canned(answer: &'static [u8], seen: tokio::sync::mpsc::UnboundedSender<String>) -> impl AsyncHandler {
    move |request: StreamRequest| {
        let seen = seen.clone();
        async move {
            assert_eq!(request.port(), port::API);
            let mut stream = request.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let n = stream.read(&mut request).await.unwrap();
            seen.send(String::from_utf8_lossy(&request[..n]).into_owned()).unwrap();
            stream.write_all(answer).await.unwrap();
            let _ = stream.shutdown().await;
        }
    }
}

#[tokio::test]
async fn a_stream_through_the_socket_keeps_half_close() {
    let sock = guest(|request: StreamRequest| async move {
        let mut stream = request.accept().await.unwrap();
        let mut got = String::new();
        stream.read_to_string(&mut got).await.unwrap();
        stream.write_all(format!("got {got}").as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
    });
    let mut stream = dial(&sock.path, 22).await.unwrap();
    stream.write_all(b"all").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut got = String::new();
    timeout(LONG, stream.read_to_string(&mut got)).await.unwrap().unwrap();
    assert_eq!(got, "got all");
}

#[tokio::test]
async fn a_refusal_keeps_the_guests_reason() {
    let sock = guest(|request: StreamRequest| async move { request.refuse("no sshd\nhere").await.unwrap() });
    let error = dial(&sock.path, 22).await.unwrap_err();
    assert!(matches!(&error, DialError::Refused { port: 22, .. }));
    assert_eq!(error.to_string(), "the guest refused a stream to its port 22: no sshd; here");
}

#[tokio::test]
async fn a_client_that_hangs_up_while_waiting_ends_the_wait() {
    let never = Never { asked: Arc::default(), dropped: Arc::default() };
    let sock = served(never.clone());
    let path = sock.path.clone();
    let waiting = tokio::spawn(async move { dial(&path, 22).await });
    timeout(LONG, never.asked.notified()).await.unwrap();
    waiting.abort();
    timeout(LONG, never.dropped.notified()).await.expect("the wait is dropped with its client");
}

#[tokio::test]
async fn a_first_line_that_is_not_a_request_is_refused_with_the_reason() {
    let sock = served(Never { asked: Arc::default(), dropped: Arc::default() });
    for bad in ["GET / HTTP/1.1\n", "CONNECT 70000\n", "CONNECT -1\n", &"x".repeat(100)] {
        let mut stream = tokio::net::UnixStream::connect(&sock.path).await.unwrap();
        stream.write_all(bad.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // The rest of an overlong line unread, the kernel may reset the connection after the answer.
        let _ = timeout(LONG, stream.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.starts_with(b"ERR "), "{bad:?}: {answer:?}");
    }
}

#[tokio::test]
async fn an_error_without_a_vm_process_names_the_path() {
    let error = dial("/nonexistent/guest.sock".as_ref(), 22).await.unwrap_err().to_string();
    assert!(error.contains("/nonexistent/guest.sock") && error.contains("VM process"), "{error}");
}

#[tokio::test]
async fn a_stream_asked_for_by_a_line_is_accepted_and_refused_like_any_other() {
    for (accept, answer) in [(true, "OK 22\nhello"), (false, "ERR not here\n")] {
        let (mut client, server) = duplex(4096);
        client.write_all(b"CONNECT 22\n").await.unwrap();
        let request = HostRequest::read(server).await.unwrap();
        let HostRequest::Open(request) = request else { panic!("{request:?}") };
        assert_eq!(request.port(), 22);
        if accept {
            request.accept().await.unwrap().write_all(b"hello").await.unwrap();
        } else {
            request.refuse("not here").await.unwrap();
        }
        let mut got = String::new();
        client.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, answer);
    }
}

#[tokio::test]
async fn events_come_line_by_line_and_their_end_is_an_error() {
    let (seen, _requests) = tokio::sync::mpsc::unbounded_channel();
    let sock = guest(canned(
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nd\r\n{\"state\":1}\n{\r\nb\r\n\"state\":2}\n\r\n0\r\n\r\n",
        seen,
    ));
    let mut events = GuestApi::new(&sock.path).events();
    assert_eq!(events.next().await.unwrap().unwrap().state, RunnerActivity::Offline);
    assert_eq!(events.next().await.unwrap().unwrap().state, RunnerActivity::Idle);
    let error = events.next().await.unwrap().unwrap_err().to_string();
    assert!(error.contains("ended the stream"), "{error}");
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn a_refused_call_carries_its_status_and_reason_but_never_the_script() {
    let (seen, mut requests) = tokio::sync::mpsc::unbounded_channel();
    let sock = guest(canned(b"HTTP/1.1 409 Conflict\r\ncontent-length: 5\r\n\r\nother", seen));
    let error = GuestApi::new(&sock.path).put_setup("id-1", Bytes::from_static(b"SECRET")).await.unwrap_err();
    assert_eq!(error.status(), Some(http::StatusCode::CONFLICT));
    let text = format!("{error} {error:?}");
    assert!(text.contains("other") && text.contains("/setup/id-1") && !text.contains("SECRET"), "{text}");
    assert!(requests.recv().await.unwrap().starts_with("PUT /setup/id-1 "));
}

#[tokio::test]
async fn a_log_cut_short_is_an_error_and_not_an_end() {
    let (seen, _requests) = tokio::sync::mpsc::unbounded_channel();
    let sock = guest(canned(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n", seen));
    let mut log = GuestApi::new(&sock.path).setup_log(0);
    assert_eq!(log.next().await.unwrap().unwrap(), "abc");
    assert!(log.next().await.unwrap().is_err());
}
