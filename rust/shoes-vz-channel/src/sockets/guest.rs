//! The guest agent's half: its announcement, and what comes over a connection that the host opens.

use std::io;

use tokio::io::AsyncWriteExt as _;

use crate::{
    handshake::Hello,
    line::{Io, MAX_REQUEST, Reply, parse_request, read_line, read_reply},
    request::StreamRequest,
};

/// The host's line that asks for an announcement.
pub(super) const ANNOUNCE: &str = "ANNOUNCE\n";

/// Why the host did not take an announcement.
#[derive(Debug, thiserror::Error)]
pub enum AnnounceError {
    /// The host's reason.
    #[error("the host refused this guest agent: {0}")]
    Refused(String),
    /// The connection broke, or the host broke the protocol.
    #[error("announcing this guest agent to the host failed: {0}")]
    Broken(#[from] io::Error),
}

/// Sends `hello` on a fresh connection to the host. From now on the host counts the guest agent as up, until the guest
/// agent drops the connection. The host sends nothing more on it, and the connection ends with the host's VM process.
pub async fn announce<S: Io>(mut connection: S, hello: &Hello) -> Result<S, AnnounceError> {
    let json = serde_json::to_string(hello).map_err(io::Error::from)?;
    connection.write_all(format!("HELLO {json}\n").as_bytes()).await?;
    connection.flush().await?;
    match read_reply(&mut connection, "OK").await? {
        Reply::Accepted => Ok(connection),
        Reply::Refused(reason) => Err(AnnounceError::Refused(reason)),
    }
}

/// What the host opened a connection for.
#[derive(Debug)]
pub enum HostRequest {
    Open(StreamRequest),
    /// To have the guest agent announce itself again: this host process may be another than the one that it knows.
    Announce,
}

impl HostRequest {
    /// Reads a fresh connection's first line.
    pub async fn read(mut connection: impl Io + 'static) -> io::Result<Self> {
        let line = read_line(&mut connection, MAX_REQUEST).await?;
        if line == ANNOUNCE.trim_end() {
            return Ok(Self::Announce);
        }
        Ok(Self::Open(StreamRequest::after_line(parse_request(&line)?, Box::new(connection))))
    }
}
