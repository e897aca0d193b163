//! The guest channel over virtio sockets: every stream is a connection of its own, and one more, which the guest agent
//! opens and holds, tells that it is there.
//!
//! ```text
//!  VM process                                                       guest agent
//!  Host ◀── knocks ◀── listener on port 5422 ◀──────────────────────── knock: HELLO {json}
//!   │                                         ──── OK ───────────────▶ (held open as long as it lives)
//!   │ open(22)
//!   └─ Dial::dial(5422) ─────────────────────────────────────────────▶ listener on port 5422
//!                        CONNECT 22 ─────────▶ ◀───── OK 22 | ERR words
//!                        from here on the connection is the stream
//!   once, at the start:  KNOCK ──────────────▶ "knock anew": a guest restored from a saved state holds a knock on a
//!                                              host that is no more, and may never hear of that
//! ```
//! Happy path: the guest agent listens, knocks, says hello; the host publishes [`Peer::Up`], and from then on dials.
//! Nothing polls: a knock is an event, and so is its end.
//!
//! | what happens | what it means |
//! |---|---|
//! | the knock's connection ends | the guest agent is gone: [`Peer::Down`], until the next knock |
//! | a later knock comes | it takes the place of the one before, which is closed; [`Hello::start_id`] tells a restart from the same guest agent knocking anew, which changes nothing |
//! | a hello is late, long, garbled, or of another protocol | it is refused in words, and the present guest agent stays |
//! | more than 16 connections owe their hello | the next ones are dropped; the guest agent tries again |
//! | the guest agent ends before it has answered a `CONNECT`, or as it is dialled | its successor is asked, once it has knocked |
//! | a connection fails though the guest agent stays | the caller is told, after two seconds in which its end would have shown |
//! | the hypervisor's hold on [`Sockets::knocks`] goes | the VM is over: [`Peer::Down`], the `watch` closes, every `open` fails |
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

pub use self::guest::{Call, KnockError, knock};
use crate::{
    handshake::{Hello, PROTOCOL},
    incoming::{BoxedStream, one_line},
    peer::{OpenError, Peer},
    socket::{self, Answer, invalid, read_line},
};

mod guest;

/// Longest hello with its word before it, in bytes.
const MAX_HELLO: usize = 4096;
/// Connections at once that have not said hello yet: any process of the guest may open some.
const MAX_GREETINGS: usize = 16;

/// Opens connections to the guest.
#[async_trait]
pub trait Dial: Send + Sync + 'static {
    /// One connection to what listens on the guest's `port`; an error when nothing does. One that takes long to fail
    /// fails with [`io::ErrorKind::TimedOut`] and may be tried again. Dropping the future closes what comes of it.
    async fn dial(&self, port: u32) -> io::Result<BoxedStream>;
}

/// What a hypervisor hands over.
pub struct Sockets {
    /// To the guest.
    pub dial: Arc<dyn Dial>,
    /// Each connection the guest opened to the host's port [`port::VSOCK`]. The hypervisor holds the other end for as
    /// long as the VM lives, and no longer.
    pub knocks: mpsc::UnboundedReceiver<BoxedStream>,
}

/// How long is waited for what a guest should do at once.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// From a connection to its hello.
    hello: Duration,
    /// From a connection's failure to the guest agent's end, if that is why it failed: its kernel closes all its
    /// connections at once, but not in an order one may rely on.
    settle: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { hello: Duration::from_secs(10), settle: Duration::from_secs(2) }
    }
}

/// The host's end. Clones share it; with the last of them the knock's connection is closed. Streams live on.
#[derive(Clone)]
pub struct Host {
    dial: Arc<dyn Dial>,
    peer: watch::Receiver<Peer>,
    patience: Patience,
    _task: Arc<AbortOnDropHandle<()>>,
}

impl Host {
    /// Takes the sockets over. Must be called within a tokio runtime.
    pub fn spawn(sockets: Sockets) -> Self {
        Self::with_patience(sockets, Patience::default())
    }

    fn with_patience(sockets: Sockets, patience: Patience) -> Self {
        let Sockets { dial, knocks } = sockets;
        let (sender, peer) = watch::channel(Peer::Down);
        let door = Door { patience, peer: sender, present: None, latest: 0, arrived: 0, said: String::new() };
        let task = tokio::spawn(door.attend(knocks, dial.clone()));
        Self { dial, peer, patience, _task: Arc::new(AbortOnDropHandle::new(task)) }
    }

    /// Whether the guest agent is there. The sender goes away with the VM.
    pub fn peer(&self) -> watch::Receiver<Peer> {
        self.peer.clone()
    }

    /// A stream to the guest's `port`. Waits, without bound, for the guest agent to be there, and asks again when it
    /// restarts before it has answered.
    pub async fn open(&self, port: u16) -> Result<BoxedStream, OpenError> {
        let mut peer = self.peer.clone();
        loop {
            let hello = up(&mut peer).await.ok_or(OpenError::Closed)?;
            let error = tokio::select! {
                // A stream that is there is handed out, whatever became of the guest agent meanwhile.
                biased;
                asked = ask(&*self.dial, port) => match asked {
                    Err(error @ (OpenError::Unreachable { .. } | OpenError::Dropped { .. })) => error,
                    done => return done,
                },
                () = gone(&mut peer, &hello) => {
                    debug!(port, "the guest agent started anew; asking it again");
                    continue;
                }
            };
            match timeout(self.patience.settle, gone(&mut peer, &hello)).await {
                Ok(()) => debug!(port, %error, "the guest agent ended; asking the next one"),
                Err(_) if timed_out(&error) => debug!(port, %error, "the guest agent is slow; asking again"),
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

/// Until the guest agent that said `hello` is not the present one any more, or the VM is over.
async fn gone(peer: &mut watch::Receiver<Peer>, hello: &Hello) {
    let other = |p: &Peer| !matches!(p, Peer::Up(h) if h == hello);
    let _over_or_other = peer.wait_for(other).await;
}

fn timed_out(error: &OpenError) -> bool {
    matches!(error, OpenError::Unreachable { source, .. } if source.kind() == io::ErrorKind::TimedOut)
}

async fn ask(dial: &dyn Dial, port: u16) -> Result<BoxedStream, OpenError> {
    let mut stream =
        dial.dial(port::VSOCK).await.map_err(|source| OpenError::Unreachable { port, source })?;
    match socket::request(&mut stream, port).await {
        Ok(Answer::Yes) => Ok(stream),
        Ok(Answer::No(words)) => Err(OpenError::Refused { port, words }),
        Err(source) => Err(OpenError::Dropped { port, source }),
    }
}

/// The one task that answers knocks and holds the present one.
struct Door {
    patience: Patience,
    peer: watch::Sender<Peer>,
    present: Option<Present>,
    /// The latest knock that was let in; one that came before it and has dawdled is not.
    latest: u64,
    arrived: u64,
    /// Why a knock was last refused, so that a guest agent trying again and again does not fill the log.
    said: String,
}

struct Present {
    hello: Hello,
    connection: BoxedStream,
    /// What is left of the answer to its hello.
    owed: &'static [u8],
}

struct Greeted {
    number: u64,
    heard: Result<(Hello, BoxedStream), NoHello>,
}

enum NoHello {
    /// The connection ended first.
    Ended(io::Error),
    /// It was refused with these words.
    Refused(String),
}

impl Door {
    async fn attend(mut self, mut knocks: mpsc::UnboundedReceiver<BoxedStream>, dial: Arc<dyn Dial>) {
        let mut greetings = JoinSet::new();
        let calling = call(&*dial);
        tokio::pin!(calling);
        let mut called = false;
        loop {
            tokio::select! {
                // A guest agent's end before its successor's beginning, so that it is told; those who said hello before
                // those who have yet to.
                biased;
                over = over(&mut self.present) => self.say_goodbye(over),
                Some(greeted) = greetings.join_next() => self.let_in(greeted),
                knock = knocks.recv() => match knock {
                    Some(connection) => self.greet(connection, &mut greetings),
                    None => break,
                },
                () = &mut calling, if !called => called = true,
            }
        }
        info!("the VM takes no more connections from its guest");
        self.present = None;
        self.peer.send_replace(Peer::Down);
    }

    fn greet(&mut self, connection: BoxedStream, greetings: &mut JoinSet<Greeted>) {
        if greetings.len() >= MAX_GREETINGS {
            return debug!("a connection from the guest is dropped: {MAX_GREETINGS} others owe their hello");
        }
        self.arrived += 1;
        let (number, deadline) = (self.arrived, self.patience.hello);
        greetings.spawn(async move { Greeted { number, heard: greet(connection, deadline).await } });
    }

    fn let_in(&mut self, greeted: Result<Greeted, JoinError>) {
        let (number, hello, connection) = match greeted {
            Ok(Greeted { number, heard: Ok((hello, connection)) }) => (number, hello, connection),
            Ok(Greeted { heard: Err(NoHello::Refused(words)), .. }) => {
                if self.said != words {
                    warn!(why = words, "refused a guest agent");
                    self.said = words;
                }
                return;
            }
            Ok(Greeted { heard: Err(NoHello::Ended(error)), .. }) => {
                return debug!(%error, "a connection from the guest ended before its hello");
            }
            Err(error) => return warn!(%error, "greeting a guest agent failed"),
        };
        if number < self.latest {
            return debug!(start_id = hello.start_id, "a knock was overtaken by a later one");
        }
        self.latest = number;
        self.said.clear();
        // A guest agent that knocks anew holds its old knock until it has our answer, which comes once this one counts.
        let up = Peer::Up(hello.clone());
        self.present = Some(Present { hello, connection, owed: b"OK\n" });
        self.peer.send_if_modified(|peer| {
            let news = *peer != up;
            if let (true, Peer::Up(hello)) = (news, &up) {
                info!(version = hello.agent_version, start_id = hello.start_id, "the guest agent is there");
                *peer = up;
            }
            news
        });
    }

    fn say_goodbye(&mut self, over: io::Result<usize>) {
        let Some(present) = self.present.take() else { return };
        let start_id = present.hello.start_id;
        match over {
            Ok(0) => info!(start_id, "the guest agent is gone"),
            Ok(_) => warn!(start_id, "the guest agent talks where it should only listen; it must knock anew"),
            Err(error) => info!(start_id, %error, "the guest agent is gone"),
        }
        self.peer.send_replace(Peer::Down);
    }
}

async fn greet(mut connection: BoxedStream, deadline: Duration) -> Result<(Hello, BoxedStream), NoHello> {
    let heard = timeout(deadline, hear(&mut connection)).await;
    let refused = match heard.unwrap_or_else(|_| Err(invalid(format!("no hello within {deadline:?}")))) {
        Ok(hello) => return Ok((hello, connection)),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => error.to_string(),
        Err(error) => return Err(NoHello::Ended(error)),
    };
    let words = one_line(&refused);
    let telling = async {
        connection.write_all(format!("ERR {words}\n").as_bytes()).await?;
        connection.shutdown().await
    };
    // Who does not take its refusal goes without.
    if let Ok(Err(error)) = timeout(deadline, telling).await {
        debug!(%error, "a refusal was not taken");
    }
    Err(NoHello::Refused(words))
}

/// What is wrong with the hello comes as [`io::ErrorKind::InvalidData`].
async fn hear(connection: &mut BoxedStream) -> io::Result<Hello> {
    let line = read_line(connection, MAX_HELLO).await?;
    let json =
        line.strip_prefix("HELLO ").ok_or_else(|| invalid("the connection does not begin with HELLO {…}"))?;
    let hello: Hello =
        serde_json::from_str(json).map_err(|e| invalid(format!("the hello is garbled: {e}")))?;
    if hello.protocol != PROTOCOL {
        return Err(invalid(format!(
            "the guest agent {} speaks guest channel protocol {}, this host {PROTOCOL}: rebuild the template with \
             this release's guest agent",
            hello.agent_version, hello.protocol
        )));
    }
    Ok(hello)
}

/// Answers the present knock, then waits for its end. May be dropped and called again.
async fn over(present: &mut Option<Present>) -> io::Result<usize> {
    let Some(Present { connection, owed, .. }) = present else { return pending().await };
    while !owed.is_empty() {
        let written = connection.write(owed).await?;
        *owed = &owed[written..];
    }
    connection.flush().await?;
    connection.read(&mut [0; 1]).await
}

/// Asks a guest agent that may be there already to knock. Fails in every guest that boots, where there is none yet.
async fn call(dial: &dyn Dial) {
    let called = async {
        let mut stream = dial.dial(port::VSOCK).await?;
        stream.write_all(guest::CALL.as_bytes()).await?;
        stream.flush().await?;
        stream.read(&mut [0; 1]).await
    };
    match called.await {
        Ok(_) => debug!("the guest agent was there already; it knocks anew"),
        Err(error) => debug!(%error, "no guest agent yet"),
    }
}

#[cfg(test)]
mod tests;
