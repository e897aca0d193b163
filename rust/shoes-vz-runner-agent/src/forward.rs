//! Port 22 of the guest channel: forwards to this guest's sshd, once it listens.

use std::{io, net::SocketAddr, time::Duration};

use shoes_vz_channel::StreamRequest;
use shoes_vz_process::backoff::Backoff;
use tokio::{net::TcpStream, time::sleep};

/// Refused: sshd does not listen yet. The others: loopback is not up yet.
const PASSING: [io::ErrorKind; 4] = [
    io::ErrorKind::ConnectionRefused,
    io::ErrorKind::NetworkUnreachable,
    io::ErrorKind::HostUnreachable,
    io::ErrorKind::AddrNotAvailable,
];

/// Connects to sshd and copies. While sshd starts and refuses, retries until the host's caller hangs up.
pub(crate) async fn forward(mut incoming: StreamRequest, to: SocketAddr) -> io::Result<()> {
    let mut backoff = Backoff::new(Duration::from_millis(3), Duration::from_millis(50));
    let mut sshd = loop {
        match TcpStream::connect(to).await {
            Ok(stream) => break stream,
            Err(e) if PASSING.contains(&e.kind()) => {}
            Err(e) => return incoming.refuse(&format!("connecting to sshd at {to} failed: {e}")).await,
        }
        tokio::select! {
            () = incoming.caller_closed() => return Ok(()),
            () = sleep(backoff.pause()) => {}
        }
    };
    sshd.set_nodelay(true)?;
    let mut stream = incoming.accept().await?;
    tokio::io::copy_bidirectional(&mut stream, &mut sshd).await?;
    Ok(())
}
