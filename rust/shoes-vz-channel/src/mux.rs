//! Many streams over one byte stream of which either end may restart at any moment.

use std::{future::Future, io, sync::Arc};

use futures::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
};
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, info};

pub use crate::{
    handshake::Hello,
    line::BoxedStream,
    peer::{OpenError, Peer},
    request::StreamRequest,
    session::Stream,
};
use crate::{
    handshake::Role,
    line::MAX_REASON,
    link::{self, Sessions},
    session::{self, EndedFlag, OpenRequest, Pipe},
};

/// The host's end. Clones share it; the channel closes with the last of them.
#[derive(Debug, Clone)]
pub struct Host {
    peer: watch::Receiver<Peer>,
    session: watch::Receiver<Option<Handle>>,
    _task: Arc<AbortOnDropHandle<()>>,
}

#[derive(Debug, Clone)]
struct Handle {
    opens: mpsc::Sender<OpenRequest>,
    ended: EndedFlag,
}

impl Host {
    /// Takes the byte stream over. Must be called within a tokio runtime.
    pub fn spawn<IO>(io: IO) -> Self
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (peer_tx, peer) = watch::channel(Peer::Down);
        let (session_tx, session) = watch::channel(None);
        let sessions = HostSessions { peer: peer_tx, session: session_tx };
        let hello = Hello::new(env!("CARGO_PKG_VERSION"), "");
        let task = tokio::spawn(async move {
            match link::run(io, Role::Host, hello, sessions).await {
                Ok(()) => info!("guest channel closed"),
                Err(error) => info!(reason = %error, "guest channel failed"),
            }
        });
        Self { peer, session, _task: Arc::new(AbortOnDropHandle::new(task)) }
    }

    /// Whether the guest agent is up. The sender goes away with the byte stream.
    pub fn peer(&self) -> watch::Receiver<Peer> {
        self.peer.clone()
    }

    /// A stream to the guest's `port`. Waits, without bound, for the guest agent to be up, and asks again when it
    /// restarts before it has answered.
    pub async fn open(&self, port: u16) -> Result<Stream, OpenError> {
        let mut session = self.session.clone();
        loop {
            let handle = session
                .wait_for(|s| s.as_ref().is_some_and(|h| !h.ended.is_set()))
                .await
                .map_err(|_| OpenError::Closed)?
                .clone();
            let Some(handle) = handle else { continue };
            match ask(&handle, port).await {
                Ok(stream) => return Ok(stream),
                Err(_) if handle.ended.is_set() => {
                    debug!(port, "guest agent restarted; requesting the stream again");
                    // Until another session replaces it (or the link ends, which the next wait sees).
                    let _ = session.wait_for(|s| s.as_ref().is_none_or(|h| !h.ended.is_set())).await;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

async fn ask(handle: &Handle, port: u16) -> Result<Stream, OpenError> {
    let (reply, stream) = oneshot::channel();
    let full = || OpenError::Full { port };
    handle.opens.send(reply).await.map_err(|_| full())?;
    let mut stream = stream.await.map_err(|_| full())?;
    let dropped = |source| OpenError::Dropped { port, source };
    stream.write_u16(port).await.map_err(dropped)?;
    stream.flush().await.map_err(dropped)?;
    if stream.read_u8().await.map_err(dropped)? == 0 {
        return Ok(stream);
    }
    let length = usize::from(stream.read_u16().await.map_err(dropped)?);
    let mut reason = vec![0; length.min(MAX_REASON)];
    stream.read_exact(&mut reason).await.map_err(dropped)?;
    Err(OpenError::Refused { port, reason: String::from_utf8_lossy(&reason).into_owned() })
}

struct HostSessions {
    peer: watch::Sender<Peer>,
    session: watch::Sender<Option<Handle>>,
}

impl Sessions for HostSessions {
    fn begin(&mut self, peer: Hello, pipe: Pipe, ended: EndedFlag) -> BoxFuture<'static, ()> {
        let (opens, requests) = mpsc::channel(16);
        info!(version = peer.agent_version, start_id = peer.start_id, "guest agent connected");
        self.session.send_replace(Some(Handle { opens, ended: ended.clone() }));
        self.peer.send_replace(Peer::Up(peer));
        // A guest opens no streams to its host; any that it does open are reset by dropping them.
        Box::pin(session::drive(pipe, yamux::Mode::Client, ended, requests, drop))
    }

    fn end(&mut self) {
        self.session.send_replace(None);
        self.peer.send_replace(Peer::Down);
    }
}

/// The guest's end.
#[derive(Debug)]
pub struct Guest;

impl Guest {
    /// Serves `io` until it ends (`Ok`) or fails. `handler` is called for each stream that the host asks for; its futures
    /// end with the session they belong to, or when this one is dropped.
    pub async fn serve<IO, H, F>(io: IO, hello: Hello, handler: H) -> io::Result<()>
    where
        IO: AsyncRead + AsyncWrite + Send + Unpin,
        H: Fn(StreamRequest) -> F + Clone + Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        link::run(io, Role::Guest, hello, GuestSessions { handler }).await
    }
}

struct GuestSessions<H> {
    handler: H,
}

impl<H, F> Sessions for GuestSessions<H>
where
    H: Fn(StreamRequest) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    fn begin(&mut self, _: Hello, pipe: Pipe, ended: EndedFlag) -> BoxFuture<'static, ()> {
        let handler = self.handler.clone();
        Box::pin(async move {
            let (_, requests) = mpsc::channel(1); // a guest opens no streams
            let (streams, mut opened) = mpsc::unbounded_channel();
            let mut handlers = JoinSet::new();
            let driving = session::drive(pipe, yamux::Mode::Server, ended, requests, move |stream| {
                drop(streams.send(stream)); // the receiver lives in this very task
            });
            tokio::pin!(driving);
            loop {
                tokio::select! {
                    () = &mut driving => return,
                    Some(stream) = opened.recv() => {
                        let handler = handler.clone();
                        handlers.spawn(async move {
                            match StreamRequest::from_mux(stream).await {
                                Ok(request) => handler(request).await,
                                Err(error) => debug!(reason = %error, "host dropped a stream before its request"),
                            }
                        });
                    }
                    Some(_) = handlers.join_next(), if !handlers.is_empty() => {}
                }
            }
        })
    }
}
