//! `lo`, which sshd and the guest agent need at once, and `eth0`, which can wait.

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
    ask(&rtnetlink::link_up(1)).map_err(|e| format!("lo cannot be brought up: {e}"))
}

/// Brings `eth0` up with the address QEMU's network gives every guest.
pub(super) fn ethernet_up() -> Result<(), String> {
    let path = "/sys/class/net/eth0/ifindex";
    let text =
        fs::read_to_string(path).map_err(|e| format!("there is no network device eth0 ({path}: {e})"))?;
    let index = text.trim().parse().map_err(|e| format!("{path} holds no number: {e}"))?;
    let steps = [
        ("its address", rtnetlink::address(index, ADDRESS, PREFIX)),
        ("being up", rtnetlink::link_up(index)),
        ("its default route", rtnetlink::default_route(index, GATEWAY)),
    ];
    for (what, request) in steps {
        ask(&request).map_err(|e| format!("eth0 was refused {what}: {e}"))?;
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
