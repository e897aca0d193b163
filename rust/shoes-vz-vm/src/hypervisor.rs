//! What a VM process asks of a hypervisor, and the hypervisors there are.
//!
//! ```text
//! Hypervisor::create ─▶ CREATED ─ start ─▶ RUNNING ◀─ pause, resume ─▶ PAUSED
//!                          └────────────────┴── guest, kill, accident ──┴─▶ ENDED(kind, words)
//! ```
//! A machine whose last handle is dropped is killed, and so is one whose `create` is dropped half-way.

use std::{path::Path, sync::Arc};

use async_trait::async_trait;
use shoes_vz_channel::sockets::Sockets;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
};

use crate::{end::End, spec::VmSpec};

#[cfg(any(test, feature = "fake"))]
pub mod fake;
#[cfg(target_os = "linux")]
pub mod qemu;
pub mod vz;

/// Makes machines.
#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// A machine for the bundle, its hypervisor up and its guest not started.
    async fn create(&self, spec: &VmSpec, bundle: &Path) -> Result<Arc<dyn Machine>, HypervisorError>;
}

/// One VM.
#[async_trait]
pub trait Machine: Send + Sync + 'static {
    /// Lets the guest's first instruction run; returns when it does.
    async fn start(&self) -> Result<(), HypervisorError>;
    /// Stops the guest's time.
    async fn pause(&self) -> Result<(), HypervisorError>;
    /// Lets it go on.
    async fn resume(&self) -> Result<(), HypervisorError>;
    /// Writes the paused guest's memory and devices to `path`.
    async fn save(&self, path: &Path) -> Result<(), HypervisorError>;
    /// Presses the power button. The guest may ignore it; returns at once.
    async fn request_stop(&self) -> Result<(), HypervisorError>;
    /// Ends the machine now, whatever state it is in; the end shows in [`Machine::state`].
    fn kill(&self);
    /// The present state and every later one; `Ended` is the last.
    fn state(&self) -> watch::Receiver<MachineState>;
    /// The host's end of the guest channel; `None` once taken.
    fn take_channel(&self) -> Option<Channel>;
    /// "kvm", "tcg", "vz" …
    fn accelerator(&self) -> &'static str;
    /// The hypervisor's process; 0 = it has none of its own.
    fn pid(&self) -> u32;
}

/// What a hypervisor has for its guest's agent to be reached by.
pub enum Channel {
    /// One byte stream, to be multiplexed (virtio-serial).
    Stream(Box<dyn ChannelIo>),
    /// As many connections as are wanted (virtio sockets).
    Sockets(Sockets),
}

/// Bytes to and from the guest agent.
pub trait ChannelIo: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> ChannelIo for T {}

/// See [`Machine::state`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MachineState {
    /// The guest has not begun.
    Created,
    /// It runs.
    Running,
    /// Its time stands still.
    Paused,
    /// It is over, for this reason.
    Ended(End),
}

/// Why a hypervisor did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum HypervisorError {
    /// The machine is over (or never came up).
    #[error("{0}")]
    Ended(End),
    /// The hypervisor answered with an error.
    #[error("the hypervisor refused to {what}: {why}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Its words.
        why: String,
    },
    /// The hypervisor did not answer.
    #[error("the hypervisor did not {what} within {seconds} s; it hangs, or the host is overloaded")]
    Silent {
        /// What was asked.
        what: &'static str,
        /// How long it had.
        seconds: u64,
    },
    /// This build or host cannot do it.
    #[error("{0}")]
    Unsupported(String),
    /// A file or socket of the VM's could not be made.
    #[error("{what}")]
    Io {
        /// What was tried, on what.
        what: String,
        /// Why it failed.
        source: std::io::Error,
    },
}
