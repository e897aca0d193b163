//! Port 22 of the guest channel: this guest's own sshd, waited for.

use std::{io, net::SocketAddr, time::Duration};

use shoes_vz_channel::Incoming;
use tokio::{net::TcpStream, time::sleep};

const FIRST: Duration = Duration::from_millis(3);
const MOST: Duration = Duration::from_millis(50);

/// Connects to sshd, trying again while it refuses (it is starting) until the host's caller has gone, then copies.
pub(crate) async fn forward(mut incoming: Incoming, to: SocketAddr) -> io::Result<()> {
    let mut pause = FIRST;
    let mut sshd = loop {
        match TcpStream::connect(to).await {
            Ok(stream) => break stream,
            // Refused: sshd is not there yet. The rest: loopback is not up yet.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::ConnectionRefused
                        | io::ErrorKind::NetworkUnreachable
                        | io::ErrorKind::HostUnreachable
                        | io::ErrorKind::AddrNotAvailable
                ) => {}
            Err(e) => return incoming.refuse(&format!("connecting to sshd at {to}: {e}")).await,
        }
        tokio::select! {
            () = incoming.gone() => return Ok(()),
            () = sleep(pause) => pause = (pause * 2).min(MOST),
        }
    };
    sshd.set_nodelay(true)?;
    let mut stream = incoming.accept().await?;
    tokio::io::copy_bidirectional(&mut stream, &mut sshd).await?;
    Ok(())
}
