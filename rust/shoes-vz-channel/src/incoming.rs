//! A stream the host asks a guest for, before the guest has said yes or no.

use std::{io, pin::Pin, task::Poll};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use crate::session::Stream;

/// Bytes both ways.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// A stream of any kind.
pub type BoxedStream = Box<dyn Io>;

/// Longest refusal, in bytes.
pub(crate) const MAX_WORDS: usize = 1024;

#[derive(Debug, Clone, Copy)]
enum Answer {
    /// Over [`crate::mux`]: a byte, and words with their length.
    Mux,
    /// Over a stream that began with `CONNECT <port>`: a line.
    Line,
}

/// The host wants a stream to `port`: [`accept`](Self::accept) or [`refuse`](Self::refuse) it. Dropping it resets it.
pub struct Incoming {
    port: u16,
    io: BoxedStream,
    answer: Answer,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("port", &self.port).finish_non_exhaustive()
    }
}

impl Incoming {
    pub(crate) async fn from_mux(mut stream: Stream) -> io::Result<Self> {
        let port = stream.read_u16().await?;
        Ok(Self { port, io: Box::new(stream), answer: Answer::Mux })
    }

    /// Reads the line `CONNECT <port>` off a stream of its own (virtio socket, Unix socket).
    pub async fn from_line(mut stream: impl Io + 'static) -> io::Result<Self> {
        let port = crate::socket::read_request(&mut stream).await?;
        Ok(Self::of_line(port, Box::new(stream)))
    }

    /// After the line was read.
    pub(crate) fn of_line(port: u16, io: BoxedStream) -> Self {
        Self { port, io, answer: Answer::Line }
    }

    /// What is asked for.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Yes: from here on the stream is the host's caller's.
    pub async fn accept(mut self) -> io::Result<BoxedStream> {
        match self.answer {
            Answer::Mux => self.io.write_all(&[0]).await?,
            Answer::Line => self.io.write_all(format!("OK {}\n", self.port).as_bytes()).await?,
        }
        self.io.flush().await?;
        Ok(self.io)
    }

    /// No, in words for an operator.
    pub async fn refuse(mut self, words: &str) -> io::Result<()> {
        let words = one_line(words);
        match self.answer {
            Answer::Mux => {
                let mut bytes = vec![1];
                bytes.extend_from_slice(&(words.len() as u16).to_be_bytes());
                bytes.extend_from_slice(words.as_bytes());
                self.io.write_all(&bytes).await?;
            }
            Answer::Line => self.io.write_all(format!("ERR {words}\n").as_bytes()).await?,
        }
        self.io.shutdown().await
    }

    /// Resolves when the caller is gone. A caller sends nothing before the answer, so anything it does send means it is
    /// not one of ours, and counts as gone.
    pub async fn gone(&mut self) {
        let io = &mut self.io;
        std::future::poll_fn(|cx| {
            let mut byte = [0; 1];
            match Pin::new(&mut *io).poll_read(cx, &mut ReadBuf::new(&mut byte)) {
                Poll::Ready(_) => Poll::Ready(()),
                Poll::Pending => Poll::Pending,
            }
        })
        .await;
    }
}

pub(crate) fn one_line(words: &str) -> String {
    let mut line = words.replace(['\n', '\r'], "; ");
    let mut cut = line.len().min(MAX_WORDS);
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
        assert_eq!(one_line(&"é".repeat(2000)).len(), MAX_WORDS);
    }
}
