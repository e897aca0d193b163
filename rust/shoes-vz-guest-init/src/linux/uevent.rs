//! The kernel's device events: waiting for a device without looking again and again.

use std::{
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt,
        socket, sockopt::ReceiveTimeout,
    },
    time::TimeVal,
};

/// An open ear; events since its opening are kept.
pub(super) struct Uevents(OwnedFd);

impl Uevents {
    /// Opens it. Look for the device *after* this: an event in between is then not lost.
    pub(super) fn open() -> nix::Result<Self> {
        let fd = socket(
            AddressFamily::Netlink,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkKObjectUEvent,
        )?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
        Ok(Self(fd))
    }

    /// How long [`Self::next`] waits at most.
    pub(super) fn deadline(&self, deadline: Option<Duration>) -> nix::Result<()> {
        let seconds = deadline.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
        setsockopt(&self.0, ReceiveTimeout, &TimeVal::new(seconds, 0))
    }

    /// Waits for the next event and gives its first line, e.g. `add@/devices/…/block/vda`.
    pub(super) fn next(&self) -> nix::Result<String> {
        let mut buffer = [0; 8192];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(n) => {
                    let head = buffer[..n].split(|b| *b == 0).next().unwrap_or_default();
                    return Ok(String::from_utf8_lossy(head).into_owned());
                }
                // Too many events at once: some are lost, so whoever waits must look for itself.
                Err(nix::errno::Errno::ENOBUFS) => return Ok(String::new()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
    }
}
