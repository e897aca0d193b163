//! The client of shoes-vz-server: one binary with two roles.
//!
//! ```text
//! myshoes ──go-plugin (unix socket)──▶ plugin ─┐
//!                                              ├─▶ upstream ──gRPC──▶ shoes-vz-server
//! operator ──command line────────────▶ cli ────┘
//! ```
//! myshoes starts a new plugin process for each call and kills it afterwards, so the plugin holds no state and starts fast.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod goplugin;
pub mod plugin;
mod settings;
pub mod upstream;
