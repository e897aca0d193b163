//! The guest channel over a virtio socket (macOS guests): each connection is one stream, and begins with
//! `CONNECT <port>`.

use std::time::Duration;

use shoes_vz_channel::Incoming;
use shoes_vz_model::guest::port;
use tokio::time::sleep;
use tokio_vsock::{VMADDR_CID_ANY, VMADDR_CID_HOST, VsockAddr, VsockListener};
use tracing::{debug, info, warn};

use crate::channel::Handler;

/// `None`, said in a log line, when this guest has no virtio socket.
pub(crate) fn bind() -> Option<VsockListener> {
    match VsockListener::bind(VsockAddr::new(VMADDR_CID_ANY, port::VSOCK)) {
        Ok(listener) => {
            info!(port = port::VSOCK, "guest channel over a virtio socket");
            Some(listener)
        }
        Err(error) => {
            warn!(%error, port = port::VSOCK, "no guest channel over a virtio socket");
            None
        }
    }
}

pub(crate) async fn serve(listener: VsockListener, handler: Handler) -> anyhow::Result<()> {
    loop {
        match listener.accept().await {
            // Another guest, or a process in this one, is no host.
            Ok((_, from)) if from.cid() != VMADDR_CID_HOST => {
                warn!(cid = from.cid(), "refused a virtio socket")
            }
            Ok((stream, _)) => {
                let handler = handler.clone();
                tokio::spawn(async move {
                    match Incoming::from_line(stream).await {
                        Ok(incoming) => handler.handle(incoming).await,
                        Err(error) => debug!(%error, "a virtio socket without a request"),
                    }
                });
            }
            Err(error) => {
                warn!(%error, "accepting on the virtio socket failed; trying again");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}
