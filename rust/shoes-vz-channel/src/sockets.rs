//! The guest channel over virtio sockets: every stream is a connection, and one more connection, which the guest agent
//! opens and holds, shows that the guest agent is up.
//!
//! ```text
//!  VM process                                                       guest agent
//!  Host ◀── announcements ◀── listener on port 5422 ◀───────────────── announcement: HELLO {json}
//!   │                                         ──── OK ───────────────▶ (held open as long as it lives)
//!   │ open(22)
//!   └─ Dial::dial(5422) ─────────────────────────────────────────────▶ listener on port 5422
//!                        CONNECT 22 ─────────▶ ◀───── OK 22 | ERR reason
//!                        from here on the connection is the stream
//!   once, at the start:  ANNOUNCE ───────────▶ "announce yourself again": a guest restored from a saved state holds
//!                                              a connection to a host process that has ended, and may never see that
//! ```
//! Happy path: the guest agent listens, connects, sends its hello; the host publishes [`Peer::Up`], and from then on
//! dials. Nothing polls: an announcement is an event, and so is its end.
//!
//! | what happens | what it means |
//! |---|---|
//! | the announcement's connection ends | the guest agent has ended: [`Peer::Down`], until the next announcement |
//! | a later announcement comes | it replaces the one before, which is closed; [`Hello::start_id`] tells a restart from the same guest agent announcing itself again, which changes nothing |
//! | a hello is late, long, garbled, or of another protocol | it is refused with the reason, and the present guest agent stays |
//! | more than 16 connections owe their hello | the next ones are dropped; the guest agent tries again |
//! | the guest agent ends before it has answered a `CONNECT`, or while it is dialled | its successor is asked, once it has announced itself |
//! | a connection fails although the guest agent stays | the caller gets the error, after two seconds in which the guest agent's end would have shown |
//! | the hypervisor drops its end of [`Sockets::announcements`] | the VM has ended: [`Peer::Down`], the `watch` closes, every `open` fails |
//!
//! A stream whose guest agent was killed may read as cleanly ended: unlike [`crate::mux`] nothing stands between it
//! and the guest's kernel. What travels over it (HTTP, SSH) marks its own end.

use std::{future::pending, io, sync::Arc, time::Duration};

use async_trait::async_trait;
use shoes_vz_model::guest::port;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    sync::{mpsc, watch},
    task::{JoinError, JoinSet},
    time::timeout,
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info, warn};

pub use self::guest::{AnnounceError, HostRequest, announce};
use crate::{
    handshake::{Hello, PROTOCOL},
    line::{self, BoxedStream, Reply, invalid, one_line, read_line, write_refusal},
    peer::{OpenError, Peer},
};

mod guest;

/// Longest hello line, in bytes.
const MAX_HELLO: usize = 4096;
/// Connections at once that have not sent their hello yet: any process of the guest may open some.
const MAX_PENDING_HELLOS: usize = 16;

/// Opens connections to the guest.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// One connection to what listens on the guest's `port`; an error when nothing does. One that takes long to fail
    /// fails with [`io::ErrorKind::TimedOut`] and may be tried again. Dropping the future closes what comes of it.
    async fn dial(&self, port: u32) -> io::Result<BoxedStream>;
}

/// What a hypervisor hands over.
pub struct Sockets {
    pub dial: Arc<dyn Dial>,
    /// Each connection that the guest opened to the host's port [`port::VSOCK`]. The hypervisor holds the other end for
    /// as long as the VM lives, and no longer.
    pub announcements: mpsc::UnboundedReceiver<BoxedStream>,
}

/// How long the host waits for what a guest should do at once.
#[derive(Debug, Clone, Copy)]
struct Timeouts {
    /// From a connection to its hello.
    hello: Duration,
    /// From a connection's failure to the guest agent's end, if that is why it failed: its kernel closes all its
    /// connections at once, but not in an order one may rely on.
    settle: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self { hello: Duration::from_secs(10), settle: Duration::from_secs(2) }
    }
}

/// The host's end. Clones share it; the last of them closes the announcement's connection. Streams live on.
#[derive(Clone)]
pub struct Host {
    dial: Arc<dyn Dial>,
    peer: watch::Receiver<Peer>,
    timeouts: Timeouts,
    _task: Arc<AbortOnDropHandle<()>>,
}

impl Host {
    /// Takes the sockets over. Must be called within a tokio runtime.
    pub fn spawn(sockets: Sockets) -> Self {
        Self::with_timeouts(sockets, Timeouts::default())
    }

    fn with_timeouts(sockets: Sockets, timeouts: Timeouts) -> Self {
        let Sockets { dial, announcements } = sockets;
        let (sender, peer) = watch::channel(Peer::Down);
        let tracker = PresenceTracker {
            timeouts,
            peer: sender,
            present: None,
            latest: 0,
            arrived: 0,
            last_refusal: String::new(),
        };
        let task = tokio::spawn(tracker.run(announcements, dial.clone()));
        Self { dial, peer, timeouts, _task: Arc::new(AbortOnDropHandle::new(task)) }
    }

    /// Whether the guest agent is up. The sender goes away with the VM.
    pub fn peer(&self) -> watch::Receiver<Peer> {
        self.peer.clone()
    }

    /// A stream to the guest's `port`. Waits, without bound, for the guest agent to be up, and asks again when it
    /// restarts before it has answered.
    pub async fn open(&self, port: u16) -> Result<BoxedStream, OpenError> {
        let mut peer = self.peer.clone();
        loop {
            let hello = up(&mut peer).await.ok_or(OpenError::Closed)?;
            let error = tokio::select! {
                // A stream that is open is handed out, whatever became of the guest agent meanwhile.
                biased;
                asked = ask(&*self.dial, port) => match asked {
                    Err(error @ (OpenError::Unreachable { .. } | OpenError::Dropped { .. })) => error,
                    done => return done,
                },
                () = replaced(&mut peer, &hello) => {
                    debug!(port, "guest agent restarted; requesting the stream again");
                    continue;
                }
            };
            match timeout(self.timeouts.settle, replaced(&mut peer, &hello)).await {
                Ok(()) => debug!(port, reason = %error, "guest agent restarted; requesting the stream again"),
                Err(_) if timed_out(&error) => {
                    debug!(port, reason = %error, "guest agent is slow; requesting the stream again")
                }
                Err(_) => return Err(error),
            }
        }
    }
}

async fn up(peer: &mut watch::Receiver<Peer>) -> Option<Hello> {
    match &*peer.wait_for(|p| matches!(p, Peer::Up(_))).await.ok()? {
        Peer::Up(hello) => Some(hello.clone()),
        Peer::Down => None,
    }
}

/// Waits until the guest agent that sent `hello` is not the present one any more, or the VM has ended.
async fn replaced(peer: &mut watch::Receiver<Peer>, hello: &Hello) {
    let other = |p: &Peer| !matches!(p, Peer::Up(h) if h == hello);
    let _ended_or_other = peer.wait_for(other).await;
}

fn timed_out(error: &OpenError) -> bool {
    matches!(error, OpenError::Unreachable { source, .. } if source.kind() == io::ErrorKind::TimedOut)
}

async fn ask(dial: &dyn Dial, port: u16) -> Result<BoxedStream, OpenError> {
    let mut stream =
        dial.dial(port::VSOCK).await.map_err(|source| OpenError::Unreachable { port, source })?;
    match line::request(&mut stream, port).await {
        Ok(Reply::Accepted) => Ok(stream),
        Ok(Reply::Refused(reason)) => Err(OpenError::Refused { port, reason }),
        Err(source) => Err(OpenError::Dropped { port, source }),
    }
}

/// The one task that answers announcements and holds the connection of the present one.
struct PresenceTracker {
    timeouts: Timeouts,
    peer: watch::Sender<Peer>,
    present: Option<Present>,
    /// The latest announcement that was accepted; one that came before it and was slow is not.
    latest: u64,
    arrived: u64,
    /// So that a guest agent that tries again and again does not fill the log.
    last_refusal: String,
}

struct Present {
    hello: Hello,
    connection: BoxedStream,
    /// What is left of the answer to its hello.
    owed: &'static [u8],
}

struct Arrival {
    number: u64,
    hello: Result<(Hello, BoxedStream), NoHello>,
}

enum NoHello {
    /// The connection ended first.
    Ended(io::Error),
    /// It was refused for this reason.
    Refused(String),
}

impl PresenceTracker {
    async fn run(mut self, mut announcements: mpsc::UnboundedReceiver<BoxedStream>, dial: Arc<dyn Dial>) {
        let mut hellos = JoinSet::new();
        let requesting = request_announcement(&*dial);
        tokio::pin!(requesting);
        let mut requested = false;
        loop {
            tokio::select! {
                // A guest agent's end before its successor's beginning, so that watchers see it; connections that sent
                // their hello before those that have yet to.
                biased;
                ended = present_ended(&mut self.present) => self.on_end(ended),
                Some(arrival) = hellos.join_next() => self.on_hello(arrival),
                connection = announcements.recv() => match connection {
                    Some(connection) => self.on_connection(connection, &mut hellos),
                    None => break,
                },
                () = &mut requesting, if !requested => requested = true,
            }
        }
        info!("guest channel closed; the VM has ended");
        self.present = None;
        self.peer.send_replace(Peer::Down);
    }

    fn on_connection(&mut self, connection: BoxedStream, hellos: &mut JoinSet<Arrival>) {
        if hellos.len() >= MAX_PENDING_HELLOS {
            return debug!(
                pending = hellos.len(),
                "connection from the guest dropped; too many others have sent no announcement yet"
            );
        }
        self.arrived += 1;
        let (number, deadline) = (self.arrived, self.timeouts.hello);
        hellos.spawn(async move { Arrival { number, hello: hello_or_refusal(connection, deadline).await } });
    }

    fn on_hello(&mut self, arrival: Result<Arrival, JoinError>) {
        let (number, hello, connection) = match arrival {
            Ok(Arrival { number, hello: Ok((hello, connection)) }) => (number, hello, connection),
            Ok(Arrival { hello: Err(NoHello::Refused(reason)), .. }) => {
                if self.last_refusal != reason {
                    warn!(reason, "guest agent refused");
                    self.last_refusal = reason;
                }
                return;
            }
            Ok(Arrival { hello: Err(NoHello::Ended(error)), .. }) => {
                return debug!(reason = %error, "connection from the guest ended before its announcement");
            }
            Err(error) => return warn!(reason = %error, "task that reads announcements failed"),
        };
        if number < self.latest {
            return debug!(start_id = hello.start_id, "announcement ignored; a later one was accepted first");
        }
        self.latest = number;
        self.last_refusal.clear();
        // A guest agent that announces itself again holds its old connection until it has our answer, which comes once
        // the new one counts.
        let up = Peer::Up(hello.clone());
        self.present = Some(Present { hello, connection, owed: b"OK\n" });
        self.peer.send_if_modified(|peer| {
            let is_new = *peer != up;
            if let (true, Peer::Up(hello)) = (is_new, &up) {
                info!(version = hello.agent_version, start_id = hello.start_id, "guest agent connected");
                *peer = up;
            }
            is_new
        });
    }

    fn on_end(&mut self, ended: io::Result<usize>) {
        let Some(present) = self.present.take() else { return };
        let start_id = present.hello.start_id;
        match ended {
            Ok(0) => info!(start_id, "guest agent disconnected"),
            Ok(_) => {
                warn!(
                    start_id,
                    "guest agent violated the protocol: it sent data after its announcement; waiting for a new one"
                );
            }
            Err(error) => info!(start_id, reason = %error, "guest agent disconnected"),
        }
        self.peer.send_replace(Peer::Down);
    }
}

async fn hello_or_refusal(
    mut connection: BoxedStream,
    deadline: Duration,
) -> Result<(Hello, BoxedStream), NoHello> {
    let hello = timeout(deadline, read_hello(&mut connection)).await;
    let reason = match hello.unwrap_or_else(|_| Err(invalid(format!("no announcement within {deadline:?}"))))
    {
        Ok(hello) => return Ok((hello, connection)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => one_line(&error.to_string()),
        Err(error) => return Err(NoHello::Ended(error)),
    };
    let refusing = async {
        write_refusal(&mut connection, &reason).await?;
        connection.shutdown().await
    };
    // A guest that does not read its refusal goes without.
    if let Ok(Err(error)) = timeout(deadline, refusing).await {
        debug!(reason = %error, "writing a refusal to the guest failed");
    }
    Err(NoHello::Refused(reason))
}

/// What is wrong with the hello comes as [`io::ErrorKind::InvalidData`].
async fn read_hello(connection: &mut BoxedStream) -> io::Result<Hello> {
    let line = read_line(connection, MAX_HELLO).await?;
    let json = line
        .strip_prefix("HELLO ")
        .ok_or_else(|| invalid("the announcement does not begin with HELLO {…}"))?;
    let hello: Hello =
        serde_json::from_str(json).map_err(|e| invalid(format!("the announcement is not valid: {e}")))?;
    if hello.protocol != PROTOCOL {
        return Err(invalid(format!(
            "the guest agent {} speaks guest channel protocol {}, this host {PROTOCOL}: rebuild the template with \
             this release's guest agent",
            hello.agent_version, hello.protocol
        )));
    }
    Ok(hello)
}

/// Answers the present announcement, then waits for the end of its connection. May be dropped and called again.
async fn present_ended(present: &mut Option<Present>) -> io::Result<usize> {
    let Some(Present { connection, owed, .. }) = present else { return pending().await };
    while !owed.is_empty() {
        let written = connection.write(owed).await?;
        *owed = &owed[written..];
    }
    connection.flush().await?;
    connection.read(&mut [0; 1]).await
}

/// Asks a guest agent that may be up already to announce itself. Fails in every guest that boots, where there is none
/// yet.
async fn request_announcement(dial: &dyn Dial) {
    let requested = async {
        let mut stream = dial.dial(port::VSOCK).await?;
        stream.write_all(guest::ANNOUNCE.as_bytes()).await?;
        stream.flush().await?;
        stream.read(&mut [0; 1]).await
    };
    match requested.await {
        Ok(_) => debug!("guest agent was up already; it announces itself again"),
        Err(error) => debug!(reason = %error, "no guest agent yet"),
    }
}

#[cfg(test)]
mod tests;
