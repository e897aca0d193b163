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
    #[error("the guest refused port {port}: {reason}")]
    Refused { port: u16, reason: String },
    #[error("the channel to the guest is closed: its VM has ended")]
    Closed,
    #[error("no further stream to the guest's port {port}: the channel carries as many as it can")]
    Full { port: u16 },
    /// The guest dropped the request without an answer.
    #[error("the guest dropped the request for port {port}")]
    Dropped { port: u16, source: io::Error },
    /// The guest agent is up, but takes no connection (virtio sockets only). The source is the hypervisor's error.
    #[error("no connection to the guest agent for port {port}, although it is up: {source}")]
    Unreachable { port: u16, source: io::Error },
}
