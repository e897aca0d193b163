//! `guest.sock`: streams to the guest, from before it is started until the VM is over.

use shoes_vz_channel::{mux, socket::Open};
use tokio::sync::watch;

/// Opens streams through the mux once there is one.
#[derive(Clone)]
pub(super) struct Guest(pub(super) watch::Receiver<Option<mux::Host>>);

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub(super) enum GuestError {
    #[error("the VM is over")]
    Over,
    #[error(transparent)]
    Open(#[from] mux::OpenError),
}

impl Open for Guest {
    type Stream = mux::Stream;
    type Error = GuestError;

    async fn open(&self, port: u16) -> Result<mux::Stream, GuestError> {
        // Before Start there is no guest yet: whoever asks waits for it, up to its own deadline.
        let host = self.0.clone().wait_for(Option::is_some).await.map_err(|_| GuestError::Over)?.clone();
        Ok(host.ok_or(GuestError::Over)?.open(port).await?)
    }
}
