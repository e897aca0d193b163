//! The guest agent's half: the knock, and what comes over a connection the host opens.

use std::io;

use tokio::io::AsyncWriteExt as _;

use crate::{
    handshake::Hello,
    incoming::{Incoming, Io, MAX_WORDS},
    socket::{MAX_REQUEST, invalid, parse_request, read_line},
};

/// The host's line that asks for a knock.
pub(super) const CALL: &str = "KNOCK\n";

/// Why the host did not take a knock.
#[derive(Debug, thiserror::Error)]
pub enum KnockError {
    /// The host's words.
    #[error("the host refused this guest agent: {0}")]
    Refused(String),
    /// The connection broke, or the host said what it should not.
    #[error("saying hello to the host: {0}")]
    Broken(#[from] io::Error),
}

/// Says `hello` on a fresh connection to the host. The guest agent is there, for the host, from now on until it drops
/// the connection; the host says nothing more on it, and its end is that of the host's VM process.
pub async fn knock<S: Io>(mut connection: S, hello: &Hello) -> Result<S, KnockError> {
    let json = serde_json::to_string(hello).map_err(io::Error::from)?;
    connection.write_all(format!("HELLO {json}\n").as_bytes()).await?;
    connection.flush().await?;
    let answer = read_line(&mut connection, MAX_WORDS + 8).await?;
    match answer.strip_prefix("ERR ") {
        _ if answer == "OK" => Ok(connection),
        Some(words) => Err(KnockError::Refused(words.to_owned())),
        None => Err(invalid(format!("unexpected answer {answer:?}")).into()),
    }
}

/// What the host opened a connection for.
#[derive(Debug)]
pub enum Call {
    /// A stream.
    Open(Incoming),
    /// To be knocked at anew: it may have taken over from the one that was.
    Knock,
}

impl Call {
    /// Reads a fresh connection's first line.
    pub async fn read(mut connection: impl Io + 'static) -> io::Result<Self> {
        let line = read_line(&mut connection, MAX_REQUEST).await?;
        if line == CALL.trim_end() {
            return Ok(Self::Knock);
        }
        Ok(Self::Open(Incoming::of_line(parse_request(&line)?, Box::new(connection))))
    }
}
