//! The agent's runners against fakes that speak the real protocols: VM processes with a VM service, a guest socket, a
//! guest agent and an sshd behind it, and a server with the Sync stream.

#![allow(clippy::unwrap_used, reason = "a test's own helpers fail by panicking")]

mod fake_server;
mod fake_vm;
mod host;

mod accounting;
mod adoption;
mod hot;
mod life;
mod output;
mod panics;
mod silence;
mod talk;
#[cfg(target_os = "linux")]
mod two_agents;
