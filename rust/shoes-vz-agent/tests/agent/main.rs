//! The agent's runners against fakes that speak the real protocols: VM processes with a VM service and a guest socket, which
//! leads to a guest agent and an sshd; and a server with the Sync stream.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

mod fake_server;
mod fake_vm;
mod host;

mod adoption;
mod control_plane;
mod hot;
mod lifecycle;
mod orphans;
mod output;
mod panics;
#[cfg(target_os = "linux")]
mod two_agents;
mod unresponsive;
