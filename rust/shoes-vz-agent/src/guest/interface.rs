//! What the rest of the agent may ask of a guest.

use std::{net::IpAddr, path::Path};

use async_trait::async_trait;
use shoes_vz_model::{
    guest::{Personalization, Status},
    id::RunnerId,
};

use super::follow::GuestFollower;
use crate::{bundles::Script, ssh::SshError};

/// One VM's guest.
#[async_trait]
pub trait Guest: Send + Sync + 'static {
    /// Its address, where the guest is reached by TCP.
    fn address(&self) -> Option<IpAddr>;
    /// One attempt to log in and run `true`.
    async fn try_ssh(&self) -> Result<(), SshError>;
    /// Hands over the setup script, which the guest then runs. A second call for the same runner changes nothing.
    async fn hand_over(&self, runner: RunnerId, script: &Script) -> Result<(), GuestError>;
    /// Makes the guest differ from every other clone of its saved state, as far as `personalization` says.
    async fn personalize(&self, personalization: &Personalization) -> Result<(), GuestError>;
    /// Prepares the guest for its state to be saved.
    async fn prepare_save(&self) -> Result<(), GuestError>;
    /// The current status; `None` when the guest answers with something else, as one whose disk is full may. The caller
    /// sets the timeout.
    async fn query_status(&self) -> Result<Option<Status>, GuestError>;
    /// Follows the status from now on, and appends the output of the setup script to `log`.
    fn follow(&self, runner: RunnerId, log: &Path) -> GuestFollower;
}

#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The guest agent was not reached, or the connection broke: another attempt may succeed.
    #[error("{0}")]
    Unavailable(String),
    /// The guest refused the request: another attempt has the same result.
    #[error("{0}")]
    Refused(String),
    /// Templates with the Go guest agent only.
    #[error("SSH into the guest failed: {0}")]
    Ssh(#[from] SshError),
}

impl GuestError {
    /// Whether no further attempt can succeed.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Unavailable(_) => false,
            Self::Refused(_) => true,
            Self::Ssh(e) => e.is_final(),
        }
    }
}
