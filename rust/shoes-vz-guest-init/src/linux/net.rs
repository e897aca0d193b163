//! `lo`, which sshd and the guest agent need at once, and `eth0`, which is brought up later.

use std::{fs, net::Ipv4Addr, os::fd::AsRawFd};

use nix::{
    errno::Errno,
    sys::socket::{
        AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
    },
};

use crate::rtnetlink;

// QEMU's user-mode network (its manual, "Using the user mode network stack").
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 15);
const PREFIX: u8 = 24;
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// Brings `lo` up; the kernel adds 127.0.0.1 and ::1 itself.
pub(super) fn loopback_up() -> Result<(), String> {
    // The first interface of every network namespace.
    ask(&rtnetlink::link_up(1)).map_err(|e| format!("bringing lo up failed: {e}"))
}

/// Brings `eth0` up with the address QEMU's network gives every guest.
pub(super) fn ethernet_up() -> Result<(), String> {
    let path = "/sys/class/net/eth0/ifindex";
    let text = fs::read_to_string(path)
        .map_err(|e| format!("the network device eth0 was not found ({path}: {e})"))?;
    let index = text.trim().parse().map_err(|e| format!("{path} does not hold a valid number: {e}"))?;
    let steps = [
        ("setting the address of eth0", rtnetlink::address(index, ADDRESS, PREFIX)),
        ("bringing eth0 up", rtnetlink::link_up(index)),
        ("setting the default route of eth0", rtnetlink::default_route(index, GATEWAY)),
    ];
    for (what, request) in steps {
        ask(&request).map_err(|e| format!("{what} failed: {e}"))?;
    }
    Ok(())
}

fn ask(request: &[u8]) -> nix::Result<()> {
    let fd =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    sendto(fd.as_raw_fd(), request, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
    let mut answer = [0; 1024];
    let n = recv(fd.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    rtnetlink::acknowledged(&answer[..n]).map_err(Errno::from_raw)
}
