//! The text lines that connections begin with: `CONNECT <port>`, answered by `OK <port>` or `ERR <reason>`.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Bytes both ways.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A stream of any kind.
pub type BoxedStream = Box<dyn Io>;

/// Longest reason of a refusal, in bytes.
pub(crate) const MAX_REASON: usize = 1024;
/// Longest first line of a connection that the host opens, in bytes.
pub(crate) const MAX_REQUEST: usize = 32;

pub(crate) enum Reply {
    Accepted,
    Refused(String),
}

/// Asks for a stream to `port` on a fresh connection; after [`Reply::Accepted`] the connection is that stream.
pub(crate) async fn request(stream: &mut (impl Io + ?Sized), port: u16) -> io::Result<Reply> {
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    stream.flush().await?;
    read_reply(stream, &format!("OK {port}")).await
}

/// Reads `accepted` or a refusal.
pub(crate) async fn read_reply(
    stream: &mut (impl AsyncRead + Unpin + ?Sized),
    accepted: &str,
) -> io::Result<Reply> {
    let line = read_line(stream, MAX_REASON + 8).await?;
    match line.strip_prefix("ERR ") {
        _ if line == accepted => Ok(Reply::Accepted),
        Some(reason) => Ok(Reply::Refused(reason.to_owned())),
        None => Err(invalid(format!("unexpected answer {line:?}"))),
    }
}

pub(crate) async fn read_request(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<u16> {
    parse_request(&read_line(stream, MAX_REQUEST).await?)
}

pub(crate) fn parse_request(line: &str) -> io::Result<u16> {
    line.strip_prefix("CONNECT ")
        .and_then(|port| port.parse().ok())
        .ok_or_else(|| invalid("the stream does not begin with CONNECT <port>"))
}

pub(crate) async fn write_refusal(
    stream: &mut (impl AsyncWrite + Unpin + ?Sized),
    reason: &str,
) -> io::Result<()> {
    stream.write_all(format!("ERR {}\n", one_line(reason)).as_bytes()).await
}

/// Reads up to and without the newline, byte by byte: what follows it belongs to the stream.
pub(crate) async fn read_line(
    stream: &mut (impl AsyncRead + Unpin + ?Sized),
    most: usize,
) -> io::Result<String> {
    let mut line = Vec::new();
    loop {
        let byte = stream.read_u8().await?;
        if byte == b'\n' {
            return String::from_utf8(line).map_err(invalid);
        }
        if line.len() == most {
            return Err(invalid("line too long"));
        }
        line.push(byte);
    }
}

pub(crate) fn invalid(reason: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

pub(crate) fn one_line(reason: &str) -> String {
    let mut line = reason.replace(['\n', '\r'], "; ");
    let mut cut = line.len().min(MAX_REASON);
    while !line.is_char_boundary(cut) {
        cut -= 1;
    }
    line.truncate(cut);
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_bounded_line() {
        assert_eq!(one_line("a\nb"), "a; b");
        assert_eq!(one_line(&"é".repeat(2000)).len(), MAX_REASON);
    }
}
