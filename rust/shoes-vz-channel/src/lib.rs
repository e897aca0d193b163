//! The guest channel: how a host process and a guest agent talk without any network (DESIGN §5).
//!
//! ```text
//!  agent ──guest.sock──▶ VM process ──one byte stream (virtio-serial)──▶ guest agent ──▶ API, sshd
//!         [`socket`]      [`mux::Host`]   [`wire`] frames, yamux inside     [`mux::Guest`]
//! ```
//!
//! - [`socket`]: `CONNECT <port>` over a Unix socket, one connection per stream.
//! - [`mux`]: many streams over one byte stream of which either end may restart at any moment.
//! - [`api`]: the guest agent's HTTP API, typed.
//!
//! On macOS the virtio socket takes [`mux`]'s place: there every connection is a stream already, and begins with
//! the same `CONNECT` line ([`Incoming::from_line`]).

pub mod api;
mod handshake;
mod incoming;
mod link;
pub mod mux;
mod session;
pub mod socket;
pub mod wire;

pub use handshake::{Hello, PROTOCOL};
pub use incoming::{BoxedStream, Incoming, Io};
