//! The real program on a serial port: a pseudo terminal stands in for the virtio port.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::{fs::File, os::fd::OwnedFd, path::PathBuf};

use common::{Guest, LONG};
use nix::{
    pty::openpty,
    sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr},
};
use shoes_vz_channel::{
    api::GuestApi,
    mux::{Host, Peer},
    socket,
};
use tokio::{net::UnixListener, time::timeout};

/// The host's end as a byte stream, the guest's as a path.
fn port() -> (tokio::net::UnixStream, PathBuf, OwnedFd) {
    let pty = openpty(None, None).unwrap();
    let mut raw = tcgetattr(&pty.slave).unwrap();
    cfmakeraw(&mut raw);
    tcsetattr(&pty.slave, SetArg::TCSANOW, &raw).unwrap();
    let path = nix::unistd::ttyname(&pty.slave).unwrap();
    // Two threads copy, because a terminal is not a socket.
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let (mut from, mut to) = (File::from(pty.master.try_clone().unwrap()), theirs.try_clone().unwrap());
    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    let (mut from, mut to) = (theirs, File::from(pty.master));
    std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    ours.set_nonblocking(true).unwrap();
    // The slave stays open, so that killing the guest agent does not hang up the terminal.
    (tokio::net::UnixStream::from_std(ours).unwrap(), path, pty.slave)
}

#[tokio::test]
async fn the_guest_agent_says_hello_on_its_port_and_again_after_it_was_killed() {
    let guest = Guest::new();
    let (io, path, _slave) = port();
    let host = Host::spawn(io);
    let args = ["-serial-port", path.to_str().unwrap()];
    let first = guest.agent(&args).await;
    let mut peer = host.peer();
    let hello = async |peer: &mut tokio::sync::watch::Receiver<Peer>, not: &str| {
        let up = |p: &Peer| matches!(p, Peer::Up(hello) if hello.start_id != not);
        match timeout(LONG, peer.wait_for(up)).await.expect("hello").unwrap().clone() {
            Peer::Up(hello) => hello,
            Peer::Down => unreachable!(),
        }
    };
    let before = hello(&mut peer, "").await;
    assert_eq!(before.agent_version, env!("CARGO_PKG_VERSION"));
    let sock = guest.path().join("guest.sock");
    tokio::spawn(socket::serve(UnixListener::bind(&sock).unwrap(), host.clone()));
    let api = GuestApi::new(sock);
    assert_eq!(api.status().await.unwrap().agent_start, before.start_id);
    first.kill().await;
    let _second = guest.agent(&args).await;
    let after = hello(&mut peer, &before.start_id).await;
    assert_eq!(timeout(LONG, api.status()).await.unwrap().unwrap().agent_start, after.start_id);
}
