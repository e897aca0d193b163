//! `guest.sock`: a Unix socket through which one stream after the other reaches the guest, by Firecracker's hybrid-vsock
//! convention: the client sends `CONNECT <port>\n` and gets `OK <port>\n` or `ERR <words>\n`, then it is the stream.

use std::{
    fmt::Display,
    future::Future,
    io,
    path::{Path, PathBuf},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt, Interest},
    net::{UnixListener, UnixStream},
    task::JoinSet,
};
use tracing::{debug, warn};

use crate::{
    incoming::{BoxedStream, Io, MAX_WORDS, one_line},
    mux,
    peer::OpenError,
    sockets,
};

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody serves the socket.
    #[error("connecting to {path}: {source}; is the VM process alive?", path = .path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The connection broke before the answer.
    #[error("asking {path} for the guest's port {port}: {source}", path = .path.display())]
    Broken {
        /// The socket.
        path: PathBuf,
        /// What was asked for.
        port: u16,
        /// How.
        source: io::Error,
    },
    /// The other side's words.
    #[error("{words}")]
    Refused {
        /// What was asked for.
        port: u16,
        /// Why not.
        words: String,
    },
}

/// A stream to the guest's `port`. Waits for the guest as long as the VM process lives; the caller sets the deadline.
pub async fn dial(path: &Path, port: u16) -> Result<UnixStream, DialError> {
    let mut stream = UnixStream::connect(path)
        .await
        .map_err(|source| DialError::Connect { path: path.to_owned(), source })?;
    let broken = |source| DialError::Broken { path: path.to_owned(), port, source };
    match request(&mut stream, port).await.map_err(broken)? {
        Answer::Yes => Ok(stream),
        Answer::No(words) => Err(DialError::Refused { port, words }),
    }
}

pub(crate) enum Answer {
    Yes,
    /// In the other side's words.
    No(String),
}

/// Asks for a stream to `port` on a fresh connection; after a [`Answer::Yes`] the connection is that stream.
pub(crate) async fn request(stream: &mut (impl Io + ?Sized), port: u16) -> io::Result<Answer> {
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    stream.flush().await?;
    let line = read_line(stream, MAX_WORDS + 8).await?;
    if line == format!("OK {port}") {
        return Ok(Answer::Yes);
    }
    match line.strip_prefix("ERR ") {
        Some(words) => Ok(Answer::No(words.to_owned())),
        None => Err(invalid(format!("unexpected answer {line:?}"))),
    }
}

pub(crate) fn invalid(why: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// Reads up to and without the newline, byte by byte: what follows it belongs to the stream.
pub(crate) async fn read_line(
    stream: &mut (impl AsyncRead + Unpin + ?Sized),
    most: usize,
) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        let byte = stream.read_u8().await?;
        if byte == b'\n' {
            return String::from_utf8(line).map_err(invalid);
        }
        if line.len() == most {
            return Err(invalid("line too long"));
        }
        line.push(byte);
    }
}

/// Longest first line of a stream.
pub(crate) const MAX_REQUEST: usize = 32;

pub(crate) async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<u16> {
    parse_request(&read_line(stream, MAX_REQUEST).await?)
}

pub(crate) fn parse_request(line: &str) -> io::Result<u16> {
    line.strip_prefix("CONNECT ")
        .and_then(|port| port.parse().ok())
        .ok_or_else(|| invalid("the stream does not begin with CONNECT <port>"))
}

/// Whatever can open streams to a guest.
pub trait Open: Clone + Send + Sync + 'static {
    /// The stream.
    type Stream: Io + 'static;
    /// Why there is none; its words go to the client.
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
    let mut pause = std::time::Duration::ZERO;
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    pause = std::time::Duration::ZERO;
                    let host = host.clone();
                    clients.spawn(async move {
                        if let Err(error) = serve_client(client, host).await {
                            debug!(%error, "a stream to the guest broke");
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors, mostly: back off until some are closed.
                    warn!(%error, "accepting on guest.sock failed; trying again");
                    pause = (pause * 2).clamp(std::time::Duration::from_millis(10), std::time::Duration::from_secs(1));
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
        Err(error) => {
            return client.write_all(format!("ERR {}\n", one_line(&error.to_string())).as_bytes()).await;
        }
    };
    let mut early = Vec::new();
    let opened = tokio::select! {
        opened = host.open(port) => opened,
        () = client_gone(&client, &mut early) => return Ok(()),
    };
    let mut guest = match opened {
        Ok(guest) => guest,
        Err(error) => {
            return client.write_all(format!("ERR {}\n", one_line(&error.to_string())).as_bytes()).await;
        }
    };
    client.write_all(format!("OK {port}\n").as_bytes()).await?;
    guest.write_all(&early).await?;
    guest.flush().await?;
    tokio::io::copy_bidirectional_with_sizes(&mut client, &mut guest, 16 * 1024, 16 * 1024).await?;
    Ok(())
}

/// Resolves when the client hangs up before its stream is there; keeps what it sends early.
async fn client_gone(client: &UnixStream, early: &mut Vec<u8>) {
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
