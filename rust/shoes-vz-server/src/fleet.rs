//! The fleet: a pure [`core`], and the one [`owner`] task that holds it.
//!
//! ```text
//!  calls, Sync streams ──▶ mailbox ──▶ owner ──▶ core (pure) ──▶ writes ──▶ store, durable ──▶ effects ──▶ callers, agents
//! ```
//! The owner takes whatever waits in its mailbox, lets the core decide, stores all of it in one transaction, and only
//! then answers anybody: what is not durable is not told. While the store cannot be written (a full disk) only what needs no
//! write goes on, see [`unwritten`]; a store that is damaged ends the server.

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
pub mod unwritten;

#[cfg(test)]
mod core_tests;
