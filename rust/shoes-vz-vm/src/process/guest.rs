//! `guest.sock`: streams to the guest, from before it is started until the VM has ended.

use shoes_vz_channel::{BoxedStream, OpenError, Peer, mux, socket::Open, sockets};
use tokio::sync::watch;

use crate::hypervisor::Channel;

/// Our end of the guest channel, of the kind that the hypervisor has.
#[derive(Clone)]
pub(super) enum GuestHost {
    Stream(mux::Host),
    Sockets(sockets::Host),
}

impl GuestHost {
    pub(super) fn spawn(channel: Channel) -> Self {
        match channel {
            Channel::Stream(io) => Self::Stream(mux::Host::spawn(io)),
            Channel::Sockets(sockets) => Self::Sockets(sockets::Host::spawn(sockets)),
        }
    }

    pub(super) fn peer(&self) -> watch::Receiver<Peer> {
        match self {
            Self::Stream(host) => host.peer(),
            Self::Sockets(host) => host.peer(),
        }
    }

    async fn open(&self, port: u16) -> Result<BoxedStream, OpenError> {
        match self {
            Self::Stream(host) => Ok(Box::new(host.open(port).await?)),
            Self::Sockets(host) => host.open(port).await,
        }
    }
}

/// Opens streams through the guest channel once there is one.
#[derive(Clone)]
pub(super) struct Guest(pub(super) watch::Receiver<Option<GuestHost>>);

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum GuestError {
    #[error("the VM has ended")]
    Ended,
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl Open for Guest {
    type Stream = BoxedStream;
    type Error = GuestError;

    async fn open(&self, port: u16) -> Result<BoxedStream, GuestError> {
        // Before Start there is no guest yet: a caller waits for it, up to the caller's deadline.
        let host = self.0.clone().wait_for(Option::is_some).await.map_err(|_| GuestError::Ended)?.clone();
        Ok(host.ok_or(GuestError::Ended)?.open(port).await?)
    }
}
