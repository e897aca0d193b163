//! What the host sees of its guest, over whichever channel.

use std::io;

use crate::handshake::Hello;

/// The guest, as the host sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// Not there, or not yet.
    Down,
    /// Said this, and has proved to be listening now.
    Up(Hello),
}

/// Why the host got no stream.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The guest's words.
    #[error("the guest refused port {port}: {words}")]
    Refused {
        /// What was asked for.
        port: u16,
        /// Why not.
        words: String,
    },
    /// The channel to the guest has ended: its VM is gone.
    #[error("the channel to the guest is closed: its VM is gone")]
    Closed,
    /// Too many streams.
    #[error("no further stream to the guest's port {port}: the channel carries as many as it can")]
    Full {
        /// What was asked for.
        port: u16,
    },
    /// The guest dropped the request without a word.
    #[error("the guest dropped the request for port {port}")]
    Dropped {
        /// What was asked for.
        port: u16,
        /// How that showed.
        source: io::Error,
    },
    /// The guest agent is there, but takes no connection (virtio sockets only).
    #[error("no connection to the guest agent for port {port}, though it is there: {source}")]
    Unreachable {
        /// What was asked for.
        port: u16,
        /// The hypervisor's words.
        source: io::Error,
    },
}
