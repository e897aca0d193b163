//! The client of shoes-vz-server, in two shapes of one binary:
//!
//! ```text
//! myshoes ──go-plugin (unix socket)──▶ plugin ─┐
//!                                              ├─▶ upstream ──gRPC──▶ shoes-vz-server
//! a person ──command line────────────▶ cli ────┘
//! ```
//! myshoes spawns the plugin anew for each call and kills it afterwards, so it holds nothing and starts fast.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod goplugin;
pub mod plugin;
pub mod upstream;

/// The largest gRPC message taken and sent: a setup script of some megabytes passes, a runaway one does not.
pub const MAX_MESSAGE: usize = 16 << 20;
