//! Why a VM did not become ready.

use std::io;

use shoes_vz_model::state::Stage;
use shoes_vz_process::chain::Chain;
use shoes_vz_proto::vm::VmEnd;
use shoes_vz_vm::{client::VmError, clone::CloneError};

use super::identity::IdentityError;
use crate::{guest::GuestError, ssh::SshError};

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProvisionError {
    /// By [`super::Bounds::cancel`]: the caller knows why.
    #[error("the start was cancelled")]
    Cancelled,
    /// [`super::Bounds::deadline`] has passed.
    #[error("not ready in time; the last attempt failed with: {last_error}")]
    Deadline { last_error: String },
    #[error("the VM ended at stage {}: {}", stage.as_str(), end.reason)]
    VmEnded { end: VmEnd, stage: Stage },
    #[error("creating the bundle failed: {}", Chain(.0))]
    Create(#[source] CloneError),
    #[error("{}", Chain(.0))]
    Launch(#[source] VmError),
    #[error("{}", Chain(.0))]
    Start(#[source] VmError),
    #[error("{0}")]
    Guest(#[source] GuestError),
    #[error("personalizing the guest failed: {0}")]
    Identity(#[source] IdentityError),
    #[error("personalizing the guest failed: {0}")]
    Personalize(#[source] GuestError),
    #[error("SSH into the guest failed: {0}")]
    Ssh(#[source] SshError),
    #[error("removing the VM, to boot another in its slot, failed: {0}")]
    Clear(String),
    #[error("claiming the hot VM failed: the setup script could not be written to its bundle: {0}")]
    KeepScript(#[source] io::Error),
    #[error("claiming the hot VM failed: RuntimeMetadata.json could not be written: {0}")]
    Metadata(#[source] io::Error),
    #[error("claiming the hot VM failed: {}", Chain(.0))]
    Rename(#[source] CloneError),
    #[error("no VM process serves the bundle")]
    NoVmProcess,
    #[error("the VM process did not answer this agent within {limit}: {last_error}")]
    VmProcessSilent { limit: String, last_error: String },
    /// A fault of the agent: the message of the panic.
    #[error("{0}")]
    Panicked(String),
}

impl ProvisionError {
    /// A deadline that passed while attempts failed is due to the last of them.
    pub(super) fn after(self, last_error: String) -> Self {
        match self {
            Self::Deadline { .. } => Self::Deadline { last_error },
            other => other,
        }
    }
}
