//! What a VM process asks of a hypervisor; each hypervisor is a child module.
//!
//! ```text
//! Hypervisor::create ─▶ CREATED ─ start ─▶ RUNNING ◀─ pause, resume ─▶ PAUSED
//!                          └────────────────┴── guest, kill, accident ──┴─▶ ENDED(kind, reason)
//! ```
//! A machine whose last handle is dropped is killed, and so is one whose `create` is dropped half-way.

use std::{io, path::Path, sync::Arc};

use async_trait::async_trait;
use shoes_vz_channel::{BoxedStream, sockets::Sockets};
use tokio::sync::watch;

use crate::{end::End, spec::VmSpec};

#[cfg(any(test, feature = "fake"))]
pub mod fake;
#[cfg(target_os = "linux")]
pub mod qemu;
pub mod vz;

#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// A machine for the bundle. The hypervisor runs, the guest is not started.
    async fn create(&self, spec: &VmSpec, bundle: &Path) -> Result<Arc<dyn Machine>, HypervisorError>;
}

#[async_trait]
pub trait Machine: Send + Sync + 'static {
    /// Returns when the guest runs its first instruction.
    async fn start(&self) -> Result<(), HypervisorError>;
    async fn pause(&self) -> Result<(), HypervisorError>;
    async fn resume(&self) -> Result<(), HypervisorError>;
    /// Writes the paused guest's memory and devices to `path`.
    async fn save(&self, path: &Path) -> Result<(), HypervisorError>;
    /// Presses the power button. The guest may ignore it; returns at once.
    async fn request_stop(&self) -> Result<(), HypervisorError>;
    /// Ends the machine now, in any state; the end shows in [`Machine::state`].
    fn kill(&self);
    /// `Ended` is the last state.
    fn state(&self) -> watch::Receiver<MachineState>;
    /// The host's end of the guest channel; `None` once taken.
    fn take_channel(&self) -> Option<Channel>;
    /// "kvm", "tcg", "vz" …
    fn accelerator(&self) -> &'static str;
    /// The hypervisor's process; 0: it runs in this one.
    fn pid(&self) -> u32;
}

/// How a hypervisor lets us reach its guest's agent.
pub enum Channel {
    /// One byte stream, to be multiplexed (virtio-serial).
    Stream(BoxedStream),
    /// Any number of connections (virtio sockets).
    Sockets(Sockets),
}

/// See [`Machine::state`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineState {
    /// The guest is not started.
    Created,
    Running,
    Paused,
    Ended(End),
}

/// Why a hypervisor did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// The machine has ended (or never came up).
    #[error("{0}")]
    Ended(End),
    #[error("the hypervisor refused to {what}: {reason}")]
    Refused { what: &'static str, reason: String },
    #[error("the hypervisor did not {what} within {seconds} s; it hangs, or the host is overloaded")]
    TimedOut { what: &'static str, seconds: u64 },
    /// This build or host cannot do it.
    #[error("{0}")]
    Unsupported(String),
    #[error("{what} failed")]
    Io { what: String, source: io::Error },
}

impl HypervisorError {
    fn io(what: String) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }
}
