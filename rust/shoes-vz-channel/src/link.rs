//! The byte stream's owner: frames in and out, hellos, and one session after the other.
//!
//! One task per end. Reading never waits for the session and writing never for reading, so two busy ends cannot block
//! each other.

use std::{io, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use crate::{
    handshake::{Handshake, Hello, Message, PROTOCOL, Role, nonce},
    session::{EndedFlag, Inbound, Pipe, pipe},
    wire::{Decoder, Frame, Kind, MAX_PAYLOAD, encode, filler},
};

const REPEAT_FIRST: Duration = Duration::from_millis(50);
const REPEAT_MOST: Duration = Duration::from_secs(1);

/// What an end does with its sessions.
pub(crate) trait Sessions {
    /// A session began. The future runs yamux over `pipe` until the session breaks; it is dropped when the session ends.
    fn begin(&mut self, peer: Hello, pipe: Pipe, ended: EndedFlag) -> BoxFuture<'static, ()>;
    /// The session has ended; its `ended` is set.
    fn end(&mut self) {}
}

enum Control {
    /// Whole frames.
    Frames(Bytes),
    /// From now on send this session's bytes, and none of the one before.
    Session(u64, mpsc::Receiver<Bytes>),
    NoSession,
}

struct Current {
    id: u64,
    next_seq: u32,
    inbound: Inbound,
    ended: EndedFlag,
    _task: AbortOnDropHandle<()>,
}

struct Link<S> {
    handshake: Handshake,
    sessions: S,
    current: Option<Current>,
    out: mpsc::UnboundedSender<Control>,
    broken: mpsc::UnboundedSender<u64>,
    warned_foreign: bool,
    /// The last unknown session that we answered.
    unknown: Option<u64>,
}

/// Serves `io` until it ends or fails.
pub(crate) async fn run<IO, S>(io: IO, role: Role, hello: Hello, sessions: S) -> io::Result<()>
where
    IO: AsyncRead + AsyncWrite,
    S: Sessions,
{
    let (mut reader, writer) = tokio::io::split(io);
    let (out, out_queue) = mpsc::unbounded_channel();
    let (broken, mut broke) = mpsc::unbounded_channel();
    let mut link = Link {
        handshake: Handshake::new(role, hello, nonce()),
        sessions,
        current: None,
        out,
        broken,
        warned_foreign: false,
        unknown: None,
    };
    let writing = write(writer, out_queue);
    tokio::pin!(writing);
    link.send(&link.handshake.message());
    let mut decoder = Decoder::default();
    let mut pause = REPEAT_FIRST;
    let mut repeat_at = Instant::now() + pause;
    let outcome = loop {
        tokio::select! {
            read = reader.read_buf(decoder.buffer()) => match read {
                Ok(0) => break Ok(()),
                Ok(_) => while let Some(frame) = decoder.next_frame() {
                    link.on_frame(frame);
                },
                Err(e) => break Err(e),
            },
            Err(e) = &mut writing => break Err(e),
            Some(id) = broke.recv() => link.on_broken(id),
            // Both ends of a byte stream may lose bytes at a restart, so an unanswered hello is sent again.
            () = sleep_until(repeat_at), if link.handshake.wants_repeat() => {
                link.send(&link.handshake.message());
                pause = (pause * 2).min(REPEAT_MOST);
                repeat_at = Instant::now() + pause;
            }
        }
        if !link.handshake.wants_repeat() {
            pause = REPEAT_FIRST;
            repeat_at = Instant::now() + pause;
        }
    };
    if decoder.skipped() > 0 {
        debug!(bytes = decoder.skipped(), "skipped bytes that belonged to no frame");
    }
    link.end_session();
    outcome
}

impl<S: Sessions> Link<S> {
    /// The writer lives as long as the link, so sending cannot fail while it matters.
    fn send(&self, message: &Message) {
        let payload = message.encode();
        let mut bytes = BytesMut::new();
        encode(&Frame { kind: Kind::Hello, session: 0, seq: 0, payload }, &mut bytes);
        drop(self.out.send(Control::Frames(bytes.freeze())));
    }

    fn on_frame(&mut self, frame: Frame) {
        match frame.kind {
            Kind::Hello => {
                if let Some(message) = Message::decode(&frame.payload) {
                    self.on_hello(message);
                }
            }
            Kind::Data => self.on_data(frame),
        }
    }

    fn on_hello(&mut self, message: Message) {
        let reaction = self.handshake.on_message(&message);
        if let (Some(theirs), false) = (reaction.foreign, self.warned_foreign) {
            self.warned_foreign = true;
            warn!(
                theirs,
                ours = PROTOCOL,
                version = message.hello.agent_version,
                "guest channel protocols differ; rebuild the template with this release's guest agent"
            );
        }
        let begun = reaction.begin.map(|id| Control::Session(id, self.begin_session(id, message.hello)));
        // The other end must know of the session before its first bytes come.
        if let Some(reply) = &reaction.reply {
            self.send(reply);
        }
        if let Some(session) = begun {
            drop(self.out.send(session));
        }
    }

    /// Returns what the session is to send.
    fn begin_session(&mut self, id: u64, peer: Hello) -> mpsc::Receiver<Bytes> {
        self.end_session();
        let (ended, broken) = (EndedFlag::default(), self.broken.clone());
        let (pipe, inbound, outbound) = pipe();
        let session = self.sessions.begin(peer, pipe, ended.clone());
        let task = tokio::spawn(async move {
            session.await;
            let _ = broken.send(id); // fails only when the link has ended as well
        });
        let task = AbortOnDropHandle::new(task);
        self.current = Some(Current { id, next_seq: 0, inbound, ended, _task: task });
        outbound
    }

    fn on_data(&mut self, frame: Frame) {
        let Some(current) = self.current.as_mut().filter(|c| c.id == frame.session) else {
            // Of a session that has ended, or replayed; or the other end believes in one that we do not know.
            if self.unknown.replace(frame.session) != Some(frame.session) {
                self.send(&self.handshake.message());
            }
            return;
        };
        let ahead = frame.seq.wrapping_sub(current.next_seq);
        if ahead > u32::MAX / 2 {
            return; // received before: replayed
        }
        if ahead != 0 {
            warn!(
                expected = current.next_seq,
                got = frame.seq,
                "bytes lost on the guest channel; starting a new session"
            );
            return self.restart();
        }
        current.next_seq = current.next_seq.wrapping_add(1);
        if current.inbound.push(frame.payload).is_err() {
            warn!("guest channel flow control violated by the other end; starting a new session");
            self.restart();
        }
    }

    fn on_broken(&mut self, id: u64) {
        if self.current.as_ref().is_some_and(|c| c.id == id) {
            self.restart();
        }
    }

    fn restart(&mut self) {
        self.end_session();
        drop(self.out.send(Control::NoSession));
        let message = self.handshake.restart(nonce());
        self.send(&message);
    }

    fn end_session(&mut self) {
        if let Some(current) = self.current.take() {
            current.ended.set();
            self.sessions.end();
        }
    }
}

async fn write<W: AsyncWrite + Unpin>(
    mut to: W,
    mut queue: mpsc::UnboundedReceiver<Control>,
) -> io::Result<()> {
    to.write_all(&filler()).await?;
    let mut session = None;
    let mut buffer = BytesMut::new();
    while let Some(step) = next(&mut queue, &mut session, &mut buffer).await {
        match step {
            Control::Frames(frames) => {
                to.write_all(&frames).await?;
                to.flush().await?;
            }
            Control::Session(id, outbound) => session = Some((id, 0, outbound)),
            Control::NoSession => session = None,
        }
    }
    Ok(())
}

/// What to do next; control first, since a new session's hello must precede its bytes.
async fn next(
    queue: &mut mpsc::UnboundedReceiver<Control>,
    session: &mut Option<(u64, u32, mpsc::Receiver<Bytes>)>,
    buffer: &mut BytesMut,
) -> Option<Control> {
    let Some((id, seq, outbound)) = session else { return queue.recv().await };
    let mut next = tokio::select! {
        biased;
        control = queue.recv() => return control,
        payload = outbound.recv() => payload,
    };
    while let Some(payload) = next {
        encode(&Frame { kind: Kind::Data, session: *id, seq: *seq, payload }, buffer);
        *seq = seq.wrapping_add(1);
        next = if buffer.len() > MAX_PAYLOAD { None } else { outbound.try_recv().ok() };
    }
    if buffer.is_empty() {
        return Some(Control::NoSession);
    }
    Some(Control::Frames(buffer.split().freeze()))
}
