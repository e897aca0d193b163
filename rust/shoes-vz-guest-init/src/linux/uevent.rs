//! The kernel's device events, to wait for a device without polling.

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

/// A socket that receives device events. The kernel queues those since its opening.
pub(super) struct Uevents(OwnedFd);

impl Uevents {
    /// Look for the device *after* this: an event between the two is then not lost.
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

    /// How long [`Self::next`] waits at most; `None`: without limit.
    pub(super) fn set_timeout(&self, timeout: Option<Duration>) -> nix::Result<()> {
        let seconds = timeout.map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX));
        setsockopt(&self.0, ReceiveTimeout, &TimeVal::new(seconds, 0))
    }

    /// Waits for the next event and returns its first line, e.g. `add@/devices/…/block/vda`; "" when events were lost.
    pub(super) fn next(&self) -> nix::Result<String> {
        let mut buffer = [0; 8192];
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(n) => {
                    let head = buffer[..n].split(|b| *b == 0).next().unwrap_or_default();
                    return Ok(String::from_utf8_lossy(head).into_owned());
                }
                // Too many events at once: some are lost, so the caller must look for the device.
                Err(nix::errno::Errno::ENOBUFS) => return Ok(String::new()),
                Err(nix::errno::Errno::EINTR) => {}
                Err(e) => return Err(e),
            }
        }
    }
}
