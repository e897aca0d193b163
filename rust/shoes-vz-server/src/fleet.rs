//! The fleet: a pure [`core`], and the one [`owner`] task that holds it.
//!
//! ```text
//!  calls, Sync streams ──▶ mailbox ──▶ owner ──▶ core (pure) ──▶ writes ──▶ store, durable ──▶ effects ──▶ callers, agents
//! ```
//! The owner takes whatever waits in its mailbox, lets the core decide, stores all of it in one transaction, and only
//! then answers anybody. A store that fails ends the server: what is not durable is not told.

pub mod agent;
pub mod commands;
pub mod core;
pub mod demand;
pub mod hot;
pub mod labels;
pub mod owner;
pub mod report;
pub mod runner;
pub mod schedule;
pub mod types;

#[cfg(test)]
mod core_tests;
