//! What the host sees of its guest, over either channel.

use std::io;

use crate::handshake::Hello;

/// The guest agent, as the host sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    Down,
    /// The guest agent sent this, and has proved that it listens now.
    Up(Hello),
}

/// Why the host got no stream.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The reason is the guest agent's.
    #[error("the guest refused a stream to its port {port}: {reason}")]
    Refused { port: u16, reason: String },
    #[error("the guest channel is closed: its VM has ended")]
    Closed,
    #[error(
        "no further stream to the guest's port {port}: the guest channel has reached its limit of streams"
    )]
    Full { port: u16 },
    /// The guest dropped the request without an answer.
    #[error("the guest dropped the request for its port {port}")]
    Dropped { port: u16, source: io::Error },
    /// The guest agent is up, but takes no connection (virtio sockets only). The source is the hypervisor's error.
    #[error("connecting to the guest's port {port} failed, although its guest agent is up: {source}")]
    Unreachable { port: u16, source: io::Error },
}
