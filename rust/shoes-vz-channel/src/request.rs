//! A stream that the host asks a guest for, before the guest has accepted or refused it.

use std::io;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    line::{BoxedStream, one_line, write_refusal},
    session::Stream,
};

#[derive(Debug, Clone, Copy)]
enum ReplyFormat {
    /// Over [`crate::mux`]: a byte, and after a refusal its reason with its length.
    Mux,
    /// Over a stream that began with `CONNECT <port>`: a line.
    Line,
}

/// The host wants a stream to `port`: [`accept`](Self::accept) or [`refuse`](Self::refuse) it. Dropping it resets it.
pub struct StreamRequest {
    port: u16,
    io: BoxedStream,
    format: ReplyFormat,
}

impl std::fmt::Debug for StreamRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StreamRequest").field("port", &self.port).finish_non_exhaustive()
    }
}

impl StreamRequest {
    pub(crate) async fn from_mux(mut stream: Stream) -> io::Result<Self> {
        let port = stream.read_u16().await?;
        Ok(Self { port, io: Box::new(stream), format: ReplyFormat::Mux })
    }

    /// The line `CONNECT <port>` was read from `io` already.
    pub(crate) fn after_line(port: u16, io: BoxedStream) -> Self {
        Self { port, io, format: ReplyFormat::Line }
    }

    /// The port that the host asks for.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// From here on the stream belongs to the host's caller.
    pub async fn accept(mut self) -> io::Result<BoxedStream> {
        match self.format {
            ReplyFormat::Mux => self.io.write_all(&[0]).await?,
            ReplyFormat::Line => self.io.write_all(format!("OK {}\n", self.port).as_bytes()).await?,
        }
        self.io.flush().await?;
        Ok(self.io)
    }

    /// Refuses the stream; `reason` is for an operator.
    pub async fn refuse(mut self, reason: &str) -> io::Result<()> {
        match self.format {
            ReplyFormat::Mux => {
                let reason = one_line(reason);
                let length = (reason.len() as u16).to_be_bytes();
                self.io.write_all(&[&[1], &length[..], reason.as_bytes()].concat()).await?;
            }
            ReplyFormat::Line => write_refusal(&mut self.io, reason).await?,
        }
        self.io.shutdown().await
    }

    /// Resolves when the caller has closed its end. A caller sends nothing before the answer, so one that does send
    /// something is not ours, and counts as closed.
    pub async fn caller_closed(&mut self) {
        let _closed_or_sent = self.io.read(&mut [0; 1]).await;
    }
}
