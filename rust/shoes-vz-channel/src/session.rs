//! One session: yamux over the session's bytes, and the streams made of it.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::{mpsc, oneshot},
};
use tokio_util::{
    compat::{Compat, FuturesAsyncReadCompatExt},
    sync::PollSender,
};
use tracing::debug;

use crate::wire::MAX_PAYLOAD;

/// Streams at once in one session.
const MAX_STREAMS: usize = 128;
/// yamux' window of one stream.
const WINDOW: usize = 256 * 1024;
/// yamux' own header before each of its frames (its specification).
const YAMUX_HEADER: usize = 12;
/// What an other end that keeps to the protocol can have in flight: all windows, and their frames' headers.
pub(crate) const MAX_QUEUED: usize = MAX_STREAMS * WINDOW + (4 << 20);

/// Where the link puts received bytes; it never waits, so both ends can always read.
pub(crate) struct Inbound {
    queue: mpsc::UnboundedSender<Bytes>,
    queued: Arc<AtomicUsize>,
}

/// The session takes no more.
#[derive(Debug)]
pub(crate) struct Overflow;

impl Inbound {
    pub(crate) fn push(&self, bytes: Bytes) -> Result<(), Overflow> {
        if self.queued.fetch_add(bytes.len(), Ordering::Relaxed) + bytes.len() > MAX_QUEUED {
            return Err(Overflow);
        }
        // Fails only when the session's task has ended, which it reports itself.
        let _ = self.queue.send(bytes);
        Ok(())
    }
}

/// yamux' side of a session's bytes.
pub(crate) struct Pipe {
    inbound: mpsc::UnboundedReceiver<Bytes>,
    queued: Arc<AtomicUsize>,
    current: Bytes,
    outbound: PollSender<Bytes>,
    gathered: BytesMut,
}

/// Both sides of a session's bytes: yamux', and the link's, which are what it received and what it is to send.
pub(crate) fn pipe() -> (Pipe, Inbound, mpsc::Receiver<Bytes>) {
    let (queue, inbound) = mpsc::unbounded_channel();
    let (outbound, outgoing) = mpsc::channel(4);
    let queued = Arc::new(AtomicUsize::new(0));
    let pipe = Pipe {
        inbound,
        queued: queued.clone(),
        current: Bytes::new(),
        outbound: PollSender::new(outbound),
        gathered: BytesMut::new(),
    };
    (pipe, Inbound { queue, queued }, outgoing)
}

impl futures::io::AsyncRead for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut [u8]) -> Poll<io::Result<usize>> {
        if self.current.is_empty() {
            match ready!(self.inbound.poll_recv(cx)) {
                Some(bytes) => {
                    self.queued.fetch_sub(bytes.len(), Ordering::Relaxed);
                    self.current = bytes;
                }
                None => return Poll::Ready(Ok(0)),
            }
        }
        let n = buf.len().min(self.current.len());
        buf[..n].copy_from_slice(&self.current[..n]);
        self.current.advance(n);
        Poll::Ready(Ok(n))
    }
}

fn link_ended() -> io::Error {
    io::Error::new(io::ErrorKind::BrokenPipe, "the guest channel's link has ended")
}

impl Pipe {
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.gathered.is_empty() {
            return Poll::Ready(Ok(()));
        }
        ready!(self.outbound.poll_reserve(cx)).map_err(|_| link_ended())?;
        let bytes = self.gathered.split().freeze();
        Poll::Ready(self.outbound.send_item(bytes).map_err(|_| link_ended()))
    }
}

impl futures::io::AsyncWrite for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.gathered.len() >= MAX_PAYLOAD {
            ready!(self.poll_send(cx))?;
        }
        // A multiplexer's header and body, written one after the other, leave in one frame.
        let n = buf.len().min(MAX_PAYLOAD - self.gathered.len());
        self.gathered.extend_from_slice(&buf[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_send(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(cx)
    }
}

/// Whether a session has ended; set before its streams are closed.
#[derive(Debug, Clone, Default)]
pub(crate) struct EndedFlag(Arc<AtomicBool>);

impl EndedFlag {
    pub(crate) fn set(&self) {
        self.0.store(true, Ordering::Release);
    }

    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// One stream between host and guest.
///
/// Half-close works: after `shutdown` the other end reads to the end and may go on writing. A stream whose session
/// ended (the other side restarted) or which the other side dropped without closing reads as `ConnectionReset`, never as
/// a clean end.
pub struct Stream {
    inner: Compat<yamux::Stream>,
    session_ended: EndedFlag,
    read_to_end: bool,
    closed: bool,
}

impl std::fmt::Debug for Stream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Stream({})", self.inner.get_ref().id())
    }
}

impl Stream {
    fn new(inner: yamux::Stream, session_ended: EndedFlag) -> Self {
        Self { inner: inner.compat(), session_ended, read_to_end: false, closed: false }
    }

    fn reset(&self) -> io::Error {
        let reason = if self.session_ended.is_set() {
            "the guest channel's session ended: the guest agent or the VM process restarted"
        } else {
            "the other end of the guest channel dropped the stream"
        };
        io::Error::new(io::ErrorKind::ConnectionReset, reason)
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.read_to_end || buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        if ready!(Pin::new(&mut self.inner).poll_read(cx, buf)).is_err() {
            return Poll::Ready(Err(self.reset()));
        }
        if buf.filled().len() == before {
            // yamux: "Closed" without our having closed it means reset, here or there.
            if self.session_ended.is_set() || (!self.closed && self.inner.get_ref().is_closed()) {
                return Poll::Ready(Err(self.reset()));
            }
            self.read_to_end = true;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, buf).map_err(|_| self.reset())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx).map_err(|_| self.reset())
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closed {
            return Poll::Ready(Ok(()));
        }
        let closed = ready!(Pin::new(&mut self.inner).poll_shutdown(cx));
        self.closed = closed.is_ok();
        Poll::Ready(closed.map_err(|_| self.reset()))
    }
}

/// Asks a session's task for a new stream to the other end.
pub(crate) type OpenRequest = oneshot::Sender<Stream>;

/// Runs yamux until the session breaks; `inbound` gets the streams the other end opens. No stream is opened any more
/// once the senders of `opens` are dropped.
pub(crate) async fn drive(
    pipe: Pipe,
    mode: yamux::Mode,
    ended: EndedFlag,
    mut opens: mpsc::Receiver<OpenRequest>,
    mut inbound: impl FnMut(Stream),
) {
    let mut config = yamux::Config::default();
    config.set_max_num_streams(MAX_STREAMS);
    config.set_max_connection_receive_window(Some(MAX_STREAMS * WINDOW));
    config.set_split_send_size(MAX_PAYLOAD - YAMUX_HEADER);
    let mut connection = yamux::Connection::new(pipe, config, mode);
    let mut wanted: Option<OpenRequest> = None;
    let mut opens_closed = false;
    let error = futures::future::poll_fn(|cx| {
        loop {
            if wanted.is_none() && !opens_closed {
                match opens.poll_recv(cx) {
                    Poll::Ready(Some(request)) => wanted = Some(request),
                    Poll::Ready(None) => opens_closed = true,
                    Poll::Pending => {}
                }
            }
            if wanted.is_some() {
                match connection.poll_new_outbound(cx) {
                    Poll::Ready(Ok(stream)) => {
                        if let Some(request) = wanted.take() {
                            // A caller that has given up meanwhile drops the stream, which resets it.
                            drop(request.send(Stream::new(stream, ended.clone())));
                        }
                        continue;
                    }
                    // Full: the request is dropped, which its caller sees; the session goes on.
                    Poll::Ready(Err(yamux::ConnectionError::TooManyStreams)) => {
                        wanted = None;
                        continue;
                    }
                    Poll::Ready(Err(e)) => return Poll::Ready(e),
                    Poll::Pending => {}
                }
            }
            match connection.poll_next_inbound(cx) {
                Poll::Ready(Some(Ok(stream))) => inbound(Stream::new(stream, ended.clone())),
                Poll::Ready(Some(Err(e))) => return Poll::Ready(e),
                Poll::Ready(None) => return Poll::Ready(yamux::ConnectionError::Closed),
                Poll::Pending => return Poll::Pending,
            }
        }
    })
    .await;
    ended.set();
    debug!(reason = %error, "guest channel session ended");
}
