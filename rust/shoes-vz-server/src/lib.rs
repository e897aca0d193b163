//! The control plane of shoes-vz.
//!
//! ```text
//!  calls, Sync streams ─▶ edge ─▶ mailbox ─▶ owner ─▶ fleet (pure) ─▶ writes ─▶ store, durable ─▶ effects ─▶ callers, agents
//! ```
//! A call arrives through [`edge`] (gRPC) and becomes an event in the mailbox of the [`owner`] task. The owner lets the
//! [`fleet`] decide, makes the decision durable in the [`store`], and only then answers. [`metrics`] and [`http`] report,
//! [`log_limit`] keeps others from flooding the log, and [`settings`] and [`serve`] start and stop everything.
//!
//! Each module imports only from those below it: `serve` → `settings`, `http` → `edge` → `owner` → `store`, `metrics` →
//! `fleet` → `log_limit`.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod edge;
pub mod fleet;
pub mod http;
pub mod log_limit;
pub mod metrics;
pub mod owner;
pub mod serve;
pub mod settings;
pub mod store;

#[cfg(test)]
mod fleet_tests;
