//! The host agent: this host's slots, the VMs in them, and the operator's commands for both.
//!
//! ```text
//! server ──Sync──▶ control_plane ─▶ runners ─▶ runner (one task each) ─▶ provision ─▶ vms ─▶ the VM process
//!                     ▲                │         │                   └─▶ pool (hot VMs, one task each) ─▶ provision
//!                     └── board ◀──────┘         └─▶ guest, ssh ───▶ the guest
//! ```
//! A module imports only modules on lower floors; ARCHITECTURE.md has the order.
//!
//! On disk: `RuntimeMetadata.json` in each bundle, enough to adopt its VM; `.ends`, the ends that the server has not
//! acknowledged; `.agent-id`; `.agent.lock`.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod commands;
pub mod run;
pub mod template;
pub mod warm;

pub mod settings;

pub mod control_plane;
pub mod runners;

mod runner;

pub mod agent;

pub mod pool;

mod provision;

pub mod host;

pub mod saved_states;
pub mod vms;

pub mod guest;
pub mod orphans;

pub mod ip_notices;
pub mod ssh;

pub mod board;
pub mod bundles;
pub mod disk;
pub mod ends;
pub mod slots;
pub mod tasks;

mod files;
