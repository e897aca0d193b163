//! The real program with Unix sockets in the place of virtio sockets; the host's half runs in this process.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::{
    fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use common::{Guest, LONG};
use shoes_vz_channel::{
    BoxedStream, Peer,
    api::GuestApi,
    socket,
    sockets::{Dial, Host, Sockets},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    sync::mpsc,
    time::timeout,
};

/// A guest's virtio sockets.
struct Device {
    dir: tempfile::TempDir,
}

struct ToGuest(PathBuf);

#[async_trait::async_trait]
impl Dial for ToGuest {
    async fn dial(&self, port: u32) -> io::Result<BoxedStream> {
        Ok(Box::new(UnixStream::connect(self.0.join(format!("guest-{port}"))).await?))
    }
}

impl Device {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn flag(&self) -> String {
        format!("unix:{}", self.dir.path().display())
    }

    fn listen(&self) -> UnixListener {
        let path = self.dir.path().join("host-5422");
        let _absent = fs::remove_file(&path);
        UnixListener::bind(path).unwrap()
    }

    /// A VM process.
    fn host(&self) -> Host {
        serve(self.listen(), self.dir.path())
    }
}

fn serve(listener: UnixListener, dir: &Path) -> Host {
    let (announced, announcements) = mpsc::unbounded_channel::<BoxedStream>();
    tokio::spawn(async move {
        // Until the host is dropped.
        while let Ok((connection, _)) = tokio::select! {
            accepted = listener.accept() => accepted,
            () = announced.closed() => return,
        } {
            drop(announced.send(Box::new(connection)));
        }
    });
    Host::spawn(Sockets { dial: Arc::new(ToGuest(dir.to_owned())), announcements })
}

async fn is_up(host: &Host, other_than: &str) -> String {
    let mut peer = host.peer();
    let up = |p: &Peer| matches!(p, Peer::Up(hello) if hello.start_id != other_than);
    match &*timeout(LONG, peer.wait_for(up)).await.expect("an announcement").unwrap() {
        Peer::Up(hello) => {
            assert_eq!(hello.agent_version, env!("CARGO_PKG_VERSION"));
            hello.start_id.clone()
        }
        Peer::Down => unreachable!(),
    }
}

async fn is_down(host: &Host) {
    let mut peer = host.peer();
    drop(timeout(LONG, peer.wait_for(|p| *p == Peer::Down)).await.expect("the guest agent ends").unwrap());
}

/// The guest agent's API through a new `guest.sock`.
fn api(guest: &Guest, name: &str, host: &Host) -> GuestApi {
    let path = guest.path().join(name);
    tokio::spawn(socket::serve(UnixListener::bind(&path).unwrap(), host.clone()));
    GuestApi::new(path)
}

async fn start(api: &GuestApi) -> String {
    timeout(LONG, api.status()).await.expect("a status").unwrap().agent_start
}

#[tokio::test]
async fn the_guest_agent_announces_itself_when_it_starts_and_again_after_it_was_killed() {
    let (guest, device) = (Guest::new(), Device::new());
    let host = device.host();
    let first = guest.agent(&["-vsock", &device.flag()]).await;
    let before = is_up(&host, "").await;
    let ours = fs::metadata(device.dir.path().join("guest-5422")).unwrap();
    assert_eq!(ours.permissions().mode() & 0o777, 0o600);
    let api = api(&guest, "guest.sock", &host);
    assert_eq!(start(&api).await, before);
    first.kill().await;
    is_down(&host).await;
    let _second = guest.agent(&["-vsock", &device.flag()]).await;
    let after = is_up(&host, &before).await;
    assert_eq!(start(&api).await, after);
}

#[tokio::test]
async fn the_guest_agent_waits_for_its_host_and_outlives_it() {
    let (guest, device) = (Guest::new(), Device::new());
    let _agent = guest.agent(&["-vsock", &device.flag()]).await;
    let first = device.host();
    let start_id = is_up(&first, "").await;
    drop(first);
    let second = device.host();
    assert_eq!(is_up(&second, "").await, start_id);
    assert_eq!(start(&api(&guest, "guest.sock", &second)).await, start_id);
}

#[tokio::test]
async fn a_host_that_drops_every_announcement_is_logged_once() {
    let (guest, device) = (Guest::new(), Device::new());
    let listener = device.listen();
    let agent = guest.agent(&["-vsock", &device.flag()]).await;
    for _ in 0..4 {
        drop(timeout(LONG, listener.accept()).await.expect("an announcement").unwrap());
    }
    let host = serve(listener, device.dir.path());
    is_up(&host, "").await;
    let mut logged = agent.logged.clone();
    let accepted = |log: &String| log.contains("host accepted the announcement");
    let log = timeout(LONG, logged.wait_for(accepted)).await.expect("a line in the log").unwrap().clone();
    assert_eq!(log.matches("announcement failed").count(), 1, "{log}");
}

#[tokio::test]
async fn a_guest_restored_from_a_saved_state_announces_itself_to_its_new_host() {
    let (guest, device) = (Guest::new(), Device::new());
    let saved = device.listen();
    let _agent = guest.agent(&["-vsock", &device.flag()]).await;
    // The announcement in the saved state, which is never closed.
    let (connection, _) = timeout(LONG, saved.accept()).await.expect("an announcement").unwrap();
    let mut connection = BufReader::new(connection);
    let mut hello = String::new();
    timeout(LONG, connection.read_line(&mut hello)).await.expect("a hello").unwrap();
    assert!(hello.starts_with("HELLO {"), "{hello}");
    connection.write_all(b"OK\n").await.unwrap();
    let host = device.host();
    let start_id = is_up(&host, "").await;
    assert!(hello.contains(&start_id), "{hello}");
}

#[tokio::test]
async fn with_a_channel_a_port_in_use_does_not_end_the_guest_agent() {
    let (guest, device) = (Guest::new(), Device::new());
    let host = device.host();
    let job = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let taken = job.local_addr().unwrap().to_string();
    let mut child = guest.command(&["-listen", &taken, "-vsock", &device.flag()]).spawn().unwrap();
    let start_id = is_up(&host, "").await;
    assert_eq!(start(&api(&guest, "guest.sock", &host)).await, start_id);
    assert!(child.try_wait().unwrap().is_none());
}
