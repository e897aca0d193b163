//! gRPC over the network of turmoil.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{Stream, stream};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tonic::transport::{Channel, Endpoint, server::Connected};
use turmoil::net::{TcpListener, TcpStream};

use crate::{wire::Wire, world::World};

/// Port of the server on its simulated host.
pub(crate) const PORT: u16 = 50051;

/// A [`Wire`] as tonic needs it.
pub(crate) struct Io(Arc<Wire>);

impl Io {
    fn over(stream: TcpStream, world: &World, host: &str) -> Self {
        let wire = Arc::new(Wire::new(stream));
        world.wired(host, &wire);
        Self(wire)
    }

    fn poll<T>(&self, poll: impl FnOnce(Pin<&mut TcpStream>) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        match &mut *self.0.lock() {
            Some(stream) => poll(Pin::new(stream)),
            // The process has crashed: it neither reads nor writes.
            None => Poll::Pending,
        }
    }
}

impl Connected for Io {
    type ConnectInfo = ();
    fn connect_info(&self) {}
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_read(cx, buf))
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll(|stream| stream.poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll(|stream| stream.poll_shutdown(cx))
    }
}

/// Connections to the simulated host `host`, on which this runs.
pub(crate) async fn incoming(
    world: Arc<World>,
    host: &'static str,
) -> io::Result<impl Stream<Item = io::Result<Io>>> {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    Ok(stream::unfold((listener, world), move |(listener, world)| async move {
        let accepted = listener.accept().await.map(|(stream, _)| Io::over(stream, &world, host));
        Some((accepted, (listener, world)))
    }))
}

/// A channel from the simulated host `host`, on which this runs, to the endpoint.
pub(crate) fn connect(endpoint: &Endpoint, world: &Arc<World>, host: &str) -> Channel {
    let (world, host) = (Arc::clone(world), host.to_owned());
    endpoint.connect_with_connector_lazy(tower::service_fn(move |uri: http::Uri| {
        let (world, host) = (Arc::clone(&world), host.clone());
        async move {
            let to = uri.host().unwrap_or_default().to_owned();
            let stream = TcpStream::connect((to, uri.port_u16().unwrap_or(PORT))).await?;
            Ok::<_, io::Error>(TokioIo::new(Io::over(stream, &world, &host)))
        }
    }))
}
