//! The host agent: this host's slots, the VMs in them, and the operator's commands for both.
//!
//! ```text
//! server ──Sync──▶ server.rs ─▶ runners.rs ─▶ runner.rs (one task each) ─▶ shoes_vz_vm::client ─▶ the VM process
//!                     ▲                          │                     └─▶ guest.rs, ssh.rs ───▶ the guest
//!                     └──── context::Board ◀─────┘  (every state, told on each change)
//! ```
//! On disk: `RuntimeMetadata.json` in each bundle, enough to adopt its VM; `.ends`, the reasons the server has not
//! acknowledged; `.agent-id`; `.agent.lock`.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod cli;
pub mod settings;

pub mod run;

pub mod server;

pub mod runners;

pub mod accounting;

pub mod runner;

mod slot_vm;

pub mod hot;

pub mod states;

mod personalization;

pub mod machines;

pub mod guest;

pub mod ssh;

pub mod notify_ip;

pub mod context;
pub mod disk;
pub mod slots;
pub mod tasks;

pub mod bundles;
pub mod ends;

pub mod commands;

pub mod warm;

pub mod template_build;
pub mod template_install;

mod files;
