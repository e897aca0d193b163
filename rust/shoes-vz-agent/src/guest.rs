//! How a runner's owner reaches its guest: over the guest channel, or, for templates with the Go guest agent, by TCP.

mod channel;
mod follow;
mod tcp;

use std::{net::IpAddr, path::Path};

use shoes_vz_model::{
    guest::{ExecRequest, ExecResponse, Status},
    id::RunnerId,
    template::Transport,
};
use shoes_vz_vm::client::Vm;

pub use follow::{Following, Watched};

use self::{channel::ChannelGuest, tcp::TcpGuest};
use crate::{
    context::Context,
    notify_ip::Turn,
    runner::Script,
    ssh::{Ssh, SshError},
};

/// One VM's guest. Cheap to clone.
#[derive(Clone)]
pub enum Guest {
    /// Over `guest.sock`.
    Channel(ChannelGuest),
    /// By its address.
    Tcp(TcpGuest),
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

impl Guest {
    /// Waits until the guest is up. Where it is reached by its address: that is `known`, or the VM was started in its
    /// `turn` to tell it.
    pub async fn find(
        ctx: &Context,
        vm: &Vm,
        ssh: Ssh,
        known: Option<IpAddr>,
        turn: Option<Turn>,
    ) -> Result<Self, GuestError> {
        match (ctx.template.meta.guest_agent, &ctx.notices) {
            (Transport::Channel, _) => {
                let mut status = vm.status();
                if status.wait_for(|s| s.guest_up || s.end.is_some()).await.is_err() {
                    return Err(GuestError::Refused("the task that follows the VM process died".into()));
                }
                Ok(Self::Channel(ChannelGuest::new(vm.guest_socket(), ssh)))
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
                Ok(Self::Tcp(TcpGuest::new(ip, ssh)))
            }
            (Transport::Tcp, None) => Err(GuestError::Refused(
                "the template's guests tell their address, and nobody listens (--ip-notify-port)".into(),
            )),
        }
    }

    /// A guest that was up before this agent was, where nothing has to be waited for to reach it.
    pub fn again(ctx: &Context, vm: &Vm, ssh: Ssh) -> Option<Self> {
        let by_channel = ctx.template.meta.guest_agent == Transport::Channel;
        by_channel.then(|| Self::Channel(ChannelGuest::new(vm.guest_socket(), ssh)))
    }

    /// Its address, where that is how it is reached.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Channel(_) => None,
            Self::Tcp(guest) => Some(guest.address()),
        }
    }

    /// One try to log in and run `true`.
    pub async fn try_ssh(&self) -> Result<(), SshError> {
        match self {
            Self::Channel(guest) => guest.try_ssh().await,
            Self::Tcp(guest) => guest.try_ssh().await,
        }
    }

    /// Hands the setup script over. The same runner's again changes nothing.
    pub async fn hand_over(&self, runner: RunnerId, script: &Script) -> Result<(), GuestError> {
        match self {
            Self::Channel(guest) => guest.hand_over(runner, script).await,
            Self::Tcp(guest) => guest.hand_over(script).await,
        }
    }

    /// Its state now; `None` when it answers with something else, as one whose disk is full may. The caller sets the
    /// deadline.
    pub async fn ask(&self) -> Result<Option<Status>, GuestError> {
        match self {
            Self::Channel(guest) => guest.ask().await,
            Self::Tcp(guest) => guest.ask().await,
        }
    }

    /// Follows its state from now on, and appends the script's output to `log`.
    pub fn follow(&self, runner: RunnerId, log: &Path) -> Following {
        match self {
            Self::Channel(guest) => guest.follow(log),
            Self::Tcp(guest) => guest.follow(runner, log),
        }
    }
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
