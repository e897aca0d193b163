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

pub(crate) use follow::lost;
pub use follow::{Following, Watched};

use self::{channel::ChannelGuest, tcp::TcpGuest};
use crate::{
    context::Context,
    machines::Machine,
    notify_ip::Turn,
    runner::Script,
    ssh::{Ssh, SshError},
};

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

/// Waits until the guest is up ([`crate::machines::Machines::guest`]).
pub(crate) async fn find(
    ctx: &Context,
    machine: &dyn Machine,
    ssh: Ssh,
    known: Option<IpAddr>,
    turn: Option<Turn>,
) -> Result<Arc<dyn Guest>, GuestError> {
    match (ctx.template.meta.guest_agent, &ctx.notices) {
        (Transport::Channel, _) => {
            let mut status = machine.status();
            if status.wait_for(|s| s.guest_up || s.end.is_some()).await.is_err() {
                return Err(GuestError::Refused("the task that follows the VM process died".into()));
            }
            Ok(Arc::new(ChannelGuest::new(&machine.guest_socket(), ssh)))
        }
        (Transport::Tcp, Some(notices)) => {
            let ip = match (known, turn) {
                (Some(ip), _) => notices.known(ip),
                (None, Some(turn)) => turn.address().await,
                (None, None) => {
                    return Err(GuestError::Refused(
                        "the agent was restarted before the guest told its address; which one is its own now, would \
                         be a guess"
                            .into(),
                    ));
                }
            };
            Ok(Arc::new(TcpGuest::new(ip, ssh)))
        }
        (Transport::Tcp, None) => Err(GuestError::Refused(
            "the template's guests tell their address, and nobody listens (--ip-notify-port)".into(),
        )),
    }
}

/// A guest that was up before this agent was ([`crate::machines::Machines::guest_again`]).
pub(crate) fn again(ctx: &Context, machine: &dyn Machine, ssh: Ssh) -> Option<Arc<dyn Guest>> {
    let by_channel = ctx.template.meta.guest_agent == Transport::Channel;
    by_channel.then(|| Arc::new(ChannelGuest::new(&machine.guest_socket(), ssh)) as Arc<dyn Guest>)
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
