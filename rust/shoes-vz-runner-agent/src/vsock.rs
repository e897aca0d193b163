//! The guest channel over virtio sockets (macOS guests): `shoes_vz_channel::sockets`' guest half.
//!
//! ```text
//!  host ── connects to us on port 5422 ──▶ CONNECT <port>: a stream      KNOCK: knock anew
//!  host ◀── we connect to its port 5422 ── HELLO …, held open: this guest agent is there
//! ```
//! The same over a directory of Unix sockets, for the Linux stand-in of Virtualization.framework: [`Transport`] is all
//! that differs.

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
    sockets::{Call, KnockError, knock},
};
use shoes_vz_model::guest::port;
use tokio::{
    io::AsyncReadExt as _,
    net::{UnixListener, UnixStream},
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener, VsockStream};
use tracing::{debug, info, warn};

use crate::channel::Handler;

/// Between two knocks the host did not take, or dropped at once.
const FIRST: Duration = Duration::from_millis(50);
const MOST: Duration = Duration::from_secs(1);
/// A knock that held this long was a good one.
const GOOD: Duration = Duration::from_secs(1);
/// Until the host has answered a hello.
const ANSWER: Duration = Duration::from_secs(10);

/// How host and guest agent reach each other.
pub(crate) trait Transport: Send + Sync + 'static {
    /// A connection.
    type Stream: Io + 'static;
    /// The next connection of the host's to us.
    fn accept(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
    /// A connection of ours to the host.
    fn reach(&self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

/// AF_VSOCK.
pub(crate) struct Vsock(VsockListener);

impl Vsock {
    /// `None`, said in a log line, when this guest has no virtio socket.
    pub(crate) fn bind() -> Option<Self> {
        match VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port::VSOCK)) {
            Ok(listener) => {
                info!(port = port::VSOCK, "guest channel over a virtio socket");
                Some(Self(listener))
            }
            Err(error) => {
                warn!(%error, port = port::VSOCK, "no guest channel over a virtio socket");
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
                // Another guest, or a process in this one, is no host.
                (_, from) => warn!(cid = from.cid(), "refused a virtio socket"),
            }
        }
    }

    async fn reach(&self) -> io::Result<VsockStream> {
        VsockStream::connect(VsockAddr::new(VMADDR_CID_HOST, port::VSOCK)).await
    }
}

/// Unix sockets in a directory: we listen on `guest-5422`, the host on `host-5422`.
pub(crate) struct UnixSockets {
    listener: UnixListener,
    host: PathBuf,
}

impl UnixSockets {
    /// `None`, said in a log line, when the directory does not take our socket.
    pub(crate) fn bind(dir: &Path) -> Option<Self> {
        let ours = dir.join(format!("guest-{}", port::VSOCK));
        match listen(&ours) {
            Ok(listener) => {
                info!(path = %ours.display(), "guest channel over Unix sockets");
                Some(Self { listener, host: dir.join(format!("host-{}", port::VSOCK)) })
            }
            Err(error) => {
                warn!(%error, path = %ours.display(), "no guest channel over Unix sockets");
                None
            }
        }
    }
}

/// Takes the place of a guest agent that is dead, never that of one that lives; so does the kernel with virtio sockets.
fn listen(path: &Path) -> io::Result<UnixListener> {
    match StdUnixStream::connect(path) {
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another guest agent listens there")),
        // Connecting to what is no socket is refused as well.
        Err(error)
            if error.kind() == io::ErrorKind::ConnectionRefused
                && fs::symlink_metadata(path)?.file_type().is_socket() =>
        {
            fs::remove_file(path)?
        }
        // Not there, mostly; what is in the way, `bind` says.
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

    async fn reach(&self) -> io::Result<UnixStream> {
        UnixStream::connect(&self.host).await
    }
}

/// Serves the channel, for ever: a host that goes away comes back.
pub(crate) async fn serve(transport: impl Transport, hello: Hello, handler: Handler) -> anyhow::Result<()> {
    let again = Arc::new(Notify::new());
    tokio::select! {
        // The knock first: the host measures a boot by it, and whoever is told may connect already.
        biased;
        never = stay_announced(&transport, &hello, &again) => match never {},
        never = take_calls(&transport, &handler, &again) => match never {},
    }
}

/// Knocks, and again when the host drops the knock or asks for another.
async fn stay_announced(transport: &impl Transport, hello: &Hello, again: &Notify) -> Infallible {
    let (mut pause, mut said) = (Duration::ZERO, Vec::<String>::new());
    // While the host takes the next, it still has the one before: to it we were there all the time.
    let mut held = None;
    loop {
        let began = Instant::now();
        let mut good = false;
        match announce(transport, hello).await {
            Ok(connection) => {
                info!(start_id = hello.start_id, "the host knows of this guest agent");
                said.clear();
                let connection = held.insert(connection);
                tokio::select! {
                    ended = connection.read_u8() => {
                        debug!(ended = ?ended.map(drop), "the host dropped the knock");
                        held = None;
                    }
                    () = again.notified() => info!("the host asks for another knock"),
                }
                good = began.elapsed() >= GOOD;
            }
            Err(error) => {
                // How a connection breaks may differ each time, and says no more than the first.
                let what = if let KnockError::Refused(words) = &error { words.as_str() } else { "" };
                if !said.iter().any(|w| w == what) {
                    warn!(%error, "the host does not know of this guest agent; knocking again");
                    said.push(what.to_owned());
                }
            }
        }
        pause = if good { Duration::ZERO } else { (pause * 2).clamp(FIRST, MOST) };
        sleep(pause).await;
    }
}

async fn announce<T: Transport>(transport: &T, hello: &Hello) -> Result<T::Stream, KnockError> {
    let late = || io::Error::new(io::ErrorKind::TimedOut, "the host does not answer");
    timeout(ANSWER, async { knock(transport.reach().await?, hello).await })
        .await
        .unwrap_or_else(|_| Err(late().into()))
}

async fn take_calls(transport: &impl Transport, handler: &Handler, again: &Arc<Notify>) -> Infallible {
    loop {
        let connection = match transport.accept().await {
            Ok(connection) => connection,
            Err(error) => {
                // Out of file descriptors, mostly: back off until some are closed.
                warn!(%error, "accepting from the host failed; trying again");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (handler, again) = (handler.clone(), again.clone());
        tokio::spawn(async move {
            match Call::read(connection).await {
                Ok(Call::Open(incoming)) => handler.handle(incoming).await,
                Ok(Call::Knock) => again.notify_one(),
                Err(error) => debug!(%error, "a connection of the host's without a request"),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_dead_guest_agents_socket_is_taken_over_and_a_living_ones_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("guest-5422");
        let first = listen(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(listen(&path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(first);
        assert!(path.exists(), "as after a death");
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
