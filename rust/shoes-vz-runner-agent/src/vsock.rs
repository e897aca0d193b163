//! The guest channel over virtio sockets (macOS guests): the guest's half of `shoes_vz_channel::sockets`.
//!
//! ```text
//!  host ── connects to us on port 5422 ──▶ CONNECT <port>: a stream      ANNOUNCE: announce yourself again
//!  host ◀── we connect to its port 5422 ── HELLO …, held open: the announcement of this guest agent
//! ```
//! The Linux stand-in of Virtualization.framework has a directory of Unix sockets instead: only [`Transport`] differs.

use std::{
    convert::Infallible,
    fs, io,
    os::unix::{
        fs::{FileTypeExt as _, PermissionsExt as _},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use shoes_vz_channel::{
    Hello, Io,
    sockets::{AnnounceError, HostRequest, announce},
};
use shoes_vz_model::guest::port;
use shoes_vz_process::backoff::Backoff;
use tokio::{
    io::AsyncReadExt as _,
    net::{UnixListener, UnixStream},
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use tracing::{debug, info, warn};

use crate::channel::Handler;

/// After an announcement that the host did not accept, or dropped at once.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// After an announcement has lasted this long, the pauses start over.
const STEADY: Duration = Duration::from_secs(1);
/// For the host's answer to a hello.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// How host and guest agent reach each other.
pub(crate) trait Transport: Send + Sync + 'static {
    type Stream: Io + 'static;
    /// The host's next connection to this guest.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
    /// A new connection to the host.
    fn connect(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

pub(crate) struct Vsock(VsockListener);

impl Vsock {
    /// `None`, and a line in the log, when this guest has no virtio socket.
    pub(crate) fn bind() -> Option<Self> {
        match VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port::VSOCK)) {
            Ok(listener) => {
                info!(port = port::VSOCK, "guest channel over a virtio socket");
                Some(Self(listener))
            }
            Err(error) => {
                warn!(reason = %error, port = port::VSOCK, "listening on a virtio socket failed; no guest channel");
                None
            }
        }
    }
}

impl Transport for Vsock {
    type Stream = VsockStream;

    async fn accept(&self) -> io::Result<VsockStream> {
        loop {
            match self.0.accept().await? {
                (stream, from) if from.cid() == VMADDR_CID_HOST => return Ok(stream),
                // Another guest, or a process in this one.
                (_, from) => warn!(cid = from.cid(), "connection refused: not from the host"),
            }
        }
    }

    async fn connect(&self) -> io::Result<VsockStream> {
        VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port::VSOCK)).await
    }
}

/// Unix sockets in a directory: the guest agent listens on `guest-5422`, the host on `host-5422`.
pub(crate) struct UnixSockets {
    listener: UnixListener,
    host: PathBuf,
}

impl UnixSockets {
    /// `None`, and a line in the log, when the socket cannot be created.
    pub(crate) fn bind(dir: &Path) -> Option<Self> {
        let ours = dir.join(format!("guest-{}", port::VSOCK));
        match listen(&ours) {
            Ok(listener) => {
                info!(path = %ours.display(), "guest channel over Unix sockets");
                Some(Self { listener, host: dir.join(format!("host-{}", port::VSOCK)) })
            }
            Err(error) => {
                warn!(reason = %error, path = %ours.display(), "listening on a Unix socket failed; no guest channel");
                None
            }
        }
    }
}

/// Replaces the socket of a guest agent that has ended, never that of one that runs; with virtio sockets the kernel does so.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match StdUnixStream::connect(path) {
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another guest agent listens there")),
        // Connecting to a file that is not a socket is refused as well.
        Err(error)
            if error.kind() == io::ErrorKind::ConnectionRefused
                && fs::symlink_metadata(path)?.file_type().is_socket() =>
        {
            fs::remove_file(path)?
        }
        // Usually the path does not exist; otherwise `bind` reports the error.
        Err(_) => {}
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

impl Transport for UnixSockets {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<UnixStream> {
        Ok(self.listener.accept().await?.0)
    }

    async fn connect(&self) -> io::Result<UnixStream> {
        UnixStream::connect(&self.host).await
    }
}

/// Serves the channel without end: a host that disconnects comes back.
pub(crate) async fn serve(transport: impl Transport, hello: Hello, handler: Handler) -> anyhow::Result<()> {
    let announce_again = Arc::new(Notify::new());
    tokio::select! {
        // The announcement first: the host measures a boot by it, and may connect as soon as it has it.
        biased;
        never = stay_announced(&transport, &hello, &announce_again) => match never {},
        never = accept_calls(&transport, &handler, &announce_again) => match never {},
    }
}

/// Announces this guest agent, and does so again when the host drops the announcement or asks for another one.
async fn stay_announced(transport: &impl Transport, hello: &Hello, announce_again: &Notify) -> Infallible {
    let (mut backoff, mut logged) = (Backoff::new(FIRST_PAUSE, LONGEST_PAUSE), Vec::<String>::new());
    // The old connection stays until the host has accepted the new one: to the host the guest agent is always present.
    let mut held = None;
    loop {
        let began = Instant::now();
        match announce_in_time(transport, hello).await {
            Ok(connection) => {
                info!(start_id = hello.start_id, "host accepted the announcement");
                logged.clear();
                let connection = held.insert(connection);
                tokio::select! {
                    ended = connection.read_u8() => {
                        debug!(ended = ?ended.map(drop), "host dropped the announcement");
                        held = None;
                    }
                    () = announce_again.notified() => info!("host asked for another announcement"),
                }
                if began.elapsed() >= STEADY {
                    backoff.reset();
                    continue;
                }
            }
            Err(error) => {
                // Each refusal is logged once. Broken connections count as one: their texts differ without meaning.
                let refusal = if let AnnounceError::Refused(reason) = &error { reason.as_str() } else { "" };
                if !logged.iter().any(|l| l == refusal) {
                    warn!(reason = %error, "announcement failed; retrying");
                    logged.push(refusal.to_owned());
                }
            }
        }
        sleep(backoff.pause()).await;
    }
}

async fn announce_in_time<T: Transport>(transport: &T, hello: &Hello) -> Result<T::Stream, AnnounceError> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "the host does not answer");
    timeout(ANSWER_TIMEOUT, async { announce(transport.connect().await?, hello).await })
        .await
        .unwrap_or_else(|_| Err(late().into()))
}

async fn accept_calls(
    transport: &impl Transport,
    handler: &Handler,
    announce_again: &Arc<Notify>,
) -> Infallible {
    loop {
        let connection = match transport.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                // Usually there are no file descriptors left: wait until some are closed.
                warn!(reason = %error, "accepting a connection from the host failed; retrying");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (handler, announce_again) = (handler.clone(), announce_again.clone());
        tokio::spawn(async move {
            match HostRequest::read(connection).await {
                Ok(HostRequest::Open(incoming)) => handler.handle(incoming).await,
                Ok(HostRequest::Announce) => announce_again.notify_one(),
                Err(error) => {
                    debug!(reason = %error, "reading the request of a connection from the host failed")
                }
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_socket_of_a_guest_agent_that_has_ended_is_replaced_and_that_of_a_running_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guest-5422");
        let first = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(path.exists(), "as after a kill");
        let second = UnixSockets::bind(dir.path()).unwrap();
        assert!(UnixSockets::bind(dir.path()).is_none());
        drop(second);
        assert!(UnixSockets::bind(&dir.path().join("nowhere")).is_none());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "what somebody keeps there").unwrap();
        assert!(UnixSockets::bind(dir.path()).is_none());
        assert_eq!(fs::read_to_string(&path).unwrap(), "what somebody keeps there");
    }
}
