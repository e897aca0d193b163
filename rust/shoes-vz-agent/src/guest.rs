//! How a runner's owner reaches its guest: over the guest channel, or, for templates with the Go guest agent, by TCP.

mod channel;
mod follow;
mod tcp;

use std::{net::IpAddr, path::Path, sync::Arc};

use async_trait::async_trait;
use shoes_vz_model::{
    guest::{ExecRequest, ExecResponse, Personalization, Status},
    id::RunnerId,
    template::Transport,
};
use shoes_vz_proto::vm::VmStatus;
use tokio::sync::watch;

pub(crate) use follow::lost;
pub use follow::{Following, Watched};

use self::{channel::ChannelGuest, tcp::TcpGuest};
use crate::{
    bundles::Script,
    ip_notices::{IpClaim, IpNotices},
    ssh::{Ssh, SshError},
};

/// How the guests of a host are reached.
#[derive(Clone)]
pub struct Route {
    pub transport: Transport,
    pub notices: Option<IpNotices>,
}

/// How one guest is reached for the first time.
pub struct Contact {
    pub route: Route,
    pub ssh: Ssh,
    /// Its address, where that is known from before.
    pub known: Option<IpAddr>,
    /// Held since before the VM was started, where the guest is to report its address.
    pub claim: Option<IpClaim>,
}

/// One VM's guest.
#[async_trait]
pub trait Guest: Send + Sync + 'static {
    /// Its address, where that is how it is reached.
    fn address(&self) -> Option<IpAddr>;
    /// One try to log in and run `true`.
    async fn try_ssh(&self) -> Result<(), SshError>;
    /// Hands the setup script over. The same runner's again changes nothing.
    async fn hand_over(&self, runner: RunnerId, script: &Script) -> Result<(), GuestError>;
    /// Makes it unlike every other clone of its state, as far as that is asked for.
    async fn personalize(&self, personalization: &Personalization) -> Result<(), GuestError>;
    /// Gets it ready for its state to be saved.
    async fn prepare_save(&self) -> Result<(), GuestError>;
    /// Its state now; `None` when it answers with something else, as one whose disk is full may. The caller sets the
    /// deadline.
    async fn ask(&self) -> Result<Option<Status>, GuestError>;
    /// Follows its state from now on, and appends the script's output to `log`.
    fn follow(&self, runner: RunnerId, log: &Path) -> Following;
}

/// Why a guest was not found, or did not do as told.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The guest agent was not reached, or broke off: another try may work.
    #[error("{0}")]
    Broken(String),
    /// The guest said no: another try will not change that.
    #[error("{0}")]
    Refused(String),
    /// SSH did not work (templates with the Go guest agent only).
    #[error("SSH into the guest: {0}")]
    Ssh(#[from] SshError),
}

impl GuestError {
    /// Whether another try could end otherwise.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Broken(_) => false,
            Self::Refused(_) => true,
            Self::Ssh(e) => e.is_final(),
        }
    }
}

/// Waits until the guest is up ([`crate::vms::Vms::guest`]).
pub(crate) async fn find(
    mut status: watch::Receiver<VmStatus>,
    socket: &Path,
    contact: Contact,
) -> Result<Arc<dyn Guest>, GuestError> {
    let Contact { route, ssh, known, claim } = contact;
    match (route.transport, &route.notices) {
        (Transport::Channel, _) => {
            if status.wait_for(|s| s.guest_up || s.end.is_some()).await.is_err() {
                return Err(GuestError::Refused("the task that follows the VM process died".into()));
            }
            Ok(Arc::new(ChannelGuest::new(socket, ssh)))
        }
        (Transport::Tcp, Some(notices)) => {
            let ip = match (known, claim) {
                (Some(ip), _) => notices.known(ip),
                (None, Some(claim)) => claim.address().await,
                (None, None) => {
                    return Err(GuestError::Refused(
                        "the agent was restarted before the guest reported its address, so the address cannot be \
                         attributed to this VM"
                            .into(),
                    ));
                }
            };
            Ok(Arc::new(TcpGuest::new(ip, ssh)))
        }
        (Transport::Tcp, None) => Err(GuestError::Refused(
            "the template's guests report their address, and no listener runs (--ip-notify-port)".into(),
        )),
    }
}

/// A guest that was up before this agent was ([`crate::vms::Vms::guest_again`]).
pub(crate) fn again(socket: &Path, route: &Route, ssh: Ssh) -> Option<Arc<dyn Guest>> {
    let by_channel = route.transport == Transport::Channel;
    by_channel.then(|| Arc::new(ChannelGuest::new(socket, ssh)) as Arc<dyn Guest>)
}

/// Runs a program in the guest behind `guest_socket`, or at `ip`: what `exec` does.
pub async fn exec(
    transport: Transport,
    guest_socket: &Path,
    ip: Option<IpAddr>,
    request: ExecRequest,
) -> Result<ExecResponse, GuestError> {
    match (transport, ip) {
        (Transport::Channel, _) => channel::exec(guest_socket, request).await,
        (Transport::Tcp, Some(ip)) => tcp::exec(ip, request).await,
        (Transport::Tcp, None) => Err(GuestError::Refused("the guest's address is not known yet".into())),
    }
}
