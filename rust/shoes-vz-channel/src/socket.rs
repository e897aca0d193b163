//! `guest.sock`: a Unix socket through which one stream after the other reaches the guest, by Firecracker's hybrid-vsock
//! convention: the client sends `CONNECT <port>\n` and gets `OK <port>\n` or `ERR <reason>\n`, then it is the stream.

use std::{
    fmt::Display,
    future::Future,
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::{
    io::{AsyncWriteExt, Interest},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};
use tracing::{debug, warn};

use crate::{
    line::{BoxedStream, Io, Reply, read_request, request, write_refusal},
    mux,
    peer::OpenError,
    sockets,
};

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// No process serves the socket.
    #[error("connecting to {path} failed: {source}; is the VM process running?", path = .path.display())]
    Connect { path: PathBuf, source: io::Error },
    /// The connection broke before the answer.
    #[error("requesting the guest's port {port} at {path} failed: {source}", path = .path.display())]
    Broken { path: PathBuf, port: u16, source: io::Error },
    /// The reason is the other side's.
    #[error("{reason}")]
    Refused { port: u16, reason: String },
}

/// A stream to the guest's `port`. Waits for the guest as long as the VM process lives; the caller sets the deadline.
pub async fn dial(path: &Path, port: u16) -> Result<UnixStream, DialError> {
    let mut stream = UnixStream::connect(path)
        .await
        .map_err(|source| DialError::Connect { path: path.to_owned(), source })?;
    let broken = |source| DialError::Broken { path: path.to_owned(), port, source };
    match request(&mut stream, port).await.map_err(broken)? {
        Reply::Accepted => Ok(stream),
        Reply::Refused(reason) => Err(DialError::Refused { port, reason }),
    }
}

/// Opens streams to a guest.
pub trait Open: Clone + Send + Sync + 'static {
    type Stream: Io + 'static;
    /// The client receives its text.
    type Error: Display + Send;
    /// A stream to `port`, waiting for the guest as long as it takes.
    fn open(&self, port: u16) -> impl Future<Output = Result<Self::Stream, Self::Error>> + Send;
}

impl Open for mux::Host {
    type Stream = mux::Stream;
    type Error = OpenError;
    fn open(&self, port: u16) -> impl Future<Output = Result<mux::Stream, OpenError>> + Send {
        mux::Host::open(self, port)
    }
}

impl Open for sockets::Host {
    type Stream = BoxedStream;
    type Error = OpenError;
    fn open(&self, port: u16) -> impl Future<Output = Result<BoxedStream, OpenError>> + Send {
        sockets::Host::open(self, port)
    }
}

/// Serves the socket until this future is dropped, which ends all its streams.
pub async fn serve(listener: UnixListener, host: impl Open) {
    let mut clients = JoinSet::new();
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    pause = Duration::ZERO;
                    let host = host.clone();
                    clients.spawn(async move {
                        if let Err(error) = serve_client(client, host).await {
                            debug!(reason = %error, "stream to the guest failed");
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors, mostly: back off until some are closed.
                    warn!(reason = %error, "accepting a connection on guest.sock failed; retrying");
                    pause = (pause * 2).clamp(Duration::from_millis(10), Duration::from_secs(1));
                    tokio::time::sleep(pause).await;
                }
            },
            Some(_) = clients.join_next(), if !clients.is_empty() => {}
        }
    }
}

async fn serve_client(mut client: UnixStream, host: impl Open) -> io::Result<()> {
    let port = match read_request(&mut client).await {
        Ok(port) => port,
        Err(error) => return write_refusal(&mut client, &error.to_string()).await,
    };
    let mut early = Vec::new();
    let opened = tokio::select! {
        opened = host.open(port) => opened,
        () = client_closed(&client, &mut early) => return Ok(()),
    };
    let mut guest = match opened {
        Ok(guest) => guest,
        Err(error) => return write_refusal(&mut client, &error.to_string()).await,
    };
    client.write_all(format!("OK {port}\n").as_bytes()).await?;
    guest.write_all(&early).await?;
    guest.flush().await?;
    tokio::io::copy_bidirectional_with_sizes(&mut client, &mut guest, 16 * 1024, 16 * 1024).await?;
    Ok(())
}

/// Resolves when the client closes its connection before its stream is open; keeps what it sends early.
async fn client_closed(client: &UnixStream, early: &mut Vec<u8>) {
    const MOST: usize = 64 * 1024;
    loop {
        if early.len() >= MOST || client.ready(Interest::READABLE).await.is_err() {
            return std::future::pending().await;
        }
        let mut bytes = [0; 4096];
        match client.try_read(&mut bytes) {
            Ok(0) => return,
            Ok(n) => early.extend_from_slice(&bytes[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}
