//! The guest channel: how a host process and a guest agent talk without any network.
//!
//! ```text
//!                            ┌─ [`mux::Host`] ══ one byte stream (virtio-serial) ══ [`mux::Guest`] ─┐
//!  agent ──guest.sock──▶ VM process                                                     guest agent ──▶ API, sshd
//!         [`socket`]         └─ [`sockets::Host`] ══ many connections (virtio sockets) ═════════════┘
//! ```
//!
//! - [`socket`]: `CONNECT <port>` over a Unix socket, one connection for each stream.
//! - [`mux`]: many streams over one byte stream of which either end may restart at any moment ([`wire`] frames, yamux
//!   inside). For guests of QEMU.
//! - [`sockets`]: each stream is a separate connection that begins with the same `CONNECT` line. For macOS guests.
//! - [`api`]: the guest agent's HTTP API, typed.

pub mod api;
mod handshake;
mod line;
mod link;
pub mod mux;
mod peer;
mod request;
mod session;
pub mod socket;
pub mod sockets;
pub mod wire;

pub use handshake::{Hello, PROTOCOL, nonce};
pub use line::{BoxedStream, Io};
pub use peer::{OpenError, Peer};
pub use request::StreamRequest;
