//! A stream that the host asks a guest for, before the guest has accepted or refused it.

use std::{io, pin::Pin, task::Poll};

use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};

use crate::{
    line::{BoxedStream, Io, one_line, read_request, write_refusal},
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

    /// Reads the line `CONNECT <port>` from a fresh connection (virtio socket, Unix socket).
    pub async fn from_line(mut stream: impl Io + 'static) -> io::Result<Self> {
        let port = read_request(&mut stream).await?;
        Ok(Self::after_line(port, Box::new(stream)))
    }

    /// The line was read from `io` already.
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
                let mut bytes = vec![1];
                bytes.extend_from_slice(&(reason.len() as u16).to_be_bytes());
                bytes.extend_from_slice(reason.as_bytes());
                self.io.write_all(&bytes).await?;
            }
            ReplyFormat::Line => write_refusal(&mut self.io, reason).await?,
        }
        self.io.shutdown().await
    }

    /// Resolves when the caller has closed its end. A caller sends nothing before the answer, so one that does send
    /// something is not ours, and counts as closed.
    pub async fn caller_closed(&mut self) {
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
