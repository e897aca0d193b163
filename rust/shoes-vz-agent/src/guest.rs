//! The guest of a VM, reached over the guest channel, or by TCP for templates with the Go guest agent.

mod channel;
mod follow;
mod interface;
mod tcp;

use std::{net::IpAddr, path::Path, sync::Arc};

use shoes_vz_model::{
    guest::{ExecRequest, ExecResponse},
    template::Transport,
};
use shoes_vz_proto::vm::VmStatus;
use tokio::sync::watch;

pub(crate) use self::follow::first_panic;
pub use self::{
    follow::{FollowerView, GuestFollower},
    interface::{Guest, GuestError},
};

use self::{channel::ChannelGuest, tcp::TcpGuest};
use crate::{
    ip_notices::{IpClaim, IpNotices},
    ssh::Ssh,
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
    /// Its address, if an earlier agent recorded it.
    pub known: Option<IpAddr>,
    /// Taken before the VM was started, if the guest reports its address.
    pub claim: Option<IpClaim>,
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
                return Err(GuestError::Refused("the task that follows the VM process ended".into()));
            }
            Ok(Arc::new(ChannelGuest::new(socket, ssh)))
        }
        (Transport::Tcp, Some(notices)) => {
            let ip = match (known, claim) {
                (Some(ip), _) => notices.assign(ip),
                (None, Some(claim)) => claim.address().await,
                (None, None) => {
                    return Err(GuestError::Refused(
                        "the agent restarted before the guest reported its address, so no address can be attributed to \
                         this VM"
                            .into(),
                    ));
                }
            };
            Ok(Arc::new(TcpGuest::new(ip, ssh)))
        }
        (Transport::Tcp, None) => Err(GuestError::Refused(
            "guests of this template report their address, but no listener runs (see --ip-notify-port)"
                .into(),
        )),
    }
}

/// A guest that was up before this agent started ([`crate::vms::Vms::guest_again`]). `None` if its address has to be found
/// first.
pub(crate) fn reconnect(socket: &Path, route: &Route, ssh: Ssh) -> Option<Arc<dyn Guest>> {
    let by_channel = route.transport == Transport::Channel;
    by_channel.then(|| Arc::new(ChannelGuest::new(socket, ssh)) as Arc<dyn Guest>)
}

/// Runs a program in the guest behind `guest_socket`, or at `ip`.
pub async fn exec(
    transport: Transport,
    guest_socket: &Path,
    ip: Option<IpAddr>,
    request: ExecRequest,
) -> Result<ExecResponse, GuestError> {
    match (transport, ip) {
        (Transport::Channel, _) => channel::exec(guest_socket, request).await,
        (Transport::Tcp, Some(ip)) => tcp::exec(ip, request).await,
        (Transport::Tcp, None) => {
            Err(GuestError::Refused("the guest has not reported its address yet".into()))
        }
    }
}
