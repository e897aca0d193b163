//! The fleet as a value: agents, runners and the queue. Nothing here does I/O or reads a clock; the owner task
//! ([`crate::owner`]) feeds the [`core`] with events and carries out its decisions.
//!
//! Each module imports only from those below it:
//! `core` → `commands`, `event`, `schedule`, `policy` → `runner` → `agent`, `report`, `requirements` → `hot`, `labels`,
//! `observation` → `values`. `snapshot` imports none.

pub mod agent;
pub mod commands;
pub mod core;
pub mod event;
pub mod hot;
pub mod labels;
pub mod observation;
pub mod policy;
pub mod report;
pub mod requirements;
pub mod runner;
pub mod schedule;
pub mod snapshot;
pub mod values;
