//! Calls to shoes-vz-server that outlive its restarts.
//!
//! ```text
//! connect ──▶ send ──▶ answer (its code passed through untouched)
//!    │          │
//!    │ refused  │ connection lost on the way
//!    ▼          ▼
//!  back-off, then again, until the caller's deadline less a margin ──▶ UNAVAILABLE, worded
//!             connected, but no answer by then                     ──▶ DEADLINE_EXCEEDED, worded
//! ```
//! Every call here may be repeated: AddInstance is idempotent by runner name, DeleteInstance by cloud id, cordoning by
//! what it leads to, the rest read.

mod addr;
mod call;

use std::{
    error::Error,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use shoes_vz_process::{backoff::Backoff, chain, secret::Token};
use tokio::time::timeout_at;
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

pub use addr::{BadServerAddr, ServerAddr};
pub use call::{Call, grpc_timeout};

/// One connection attempt; a host that swallows packets must not use the whole budget up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A server, perhaps not there yet: nothing is connected before a call.
#[derive(Debug, Clone)]
pub struct Server {
    addr: ServerAddr,
    endpoint: Endpoint,
    bearer: Option<MetadataValue<Ascii>>,
}

impl Server {
    /// The server at `addr`, told who is calling by `token`.
    pub fn new(addr: ServerAddr, token: Option<Token>) -> Self {
        // No HTTP/2 pings: a Go server ends connections that ping more than every five minutes.
        let endpoint = addr
            .endpoint()
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(Duration::from_secs(30)));
        Self { addr, endpoint, bearer: token.as_ref().map(bearer) }
    }

    /// Where it is.
    pub fn addr(&self) -> &ServerAddr {
        &self.addr
    }

    /// Makes `call` with `message` by `send`, and gives the answer's message.
    pub async fn call<T: Clone, R, Fut>(
        &self,
        call: &Call,
        message: &T,
        send: impl Fn(Channel, Request<T>) -> Fut,
    ) -> Result<R, Status>
    where
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        self.response(call, message, send).await.map(Response::into_inner)
    }

    /// The same, with the answer's metadata.
    pub async fn response<T: Clone, R, Fut>(
        &self,
        call: &Call,
        message: &T,
        send: impl Fn(Channel, Request<T>) -> Fut,
    ) -> Result<Response<R>, Status>
    where
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let mut pauses = Pauses::default();
        loop {
            let connected = AtomicBool::new(false);
            let attempt = async {
                let channel = self
                    .endpoint
                    .connect()
                    .await
                    .map_err(|e| Failed::Connection(chain::innermost(&e).to_string()))?;
                connected.store(true, Ordering::Relaxed);
                send(channel, self.request(call, message)).await.map_err(Failed::of)
            };
            let lost = match timeout_at(call.answer_by(), attempt).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(Failed::Answer(status))) => return Err(status),
                Ok(Err(Failed::Connection(words))) => words,
                Err(_) if connected.into_inner() => return Err(self.no_answer(call)),
                Err(_) => return Err(self.unreachable(call, pauses.last_words("connecting took too long"))),
            };
            if pauses.is_first() {
                tracing::warn!(server = %self.addr, error = lost, "{}: no connection to the server; trying on", call.what());
            }
            let pause = pauses.next(lost);
            if timeout_at(call.answer_by(), tokio::time::sleep(pause)).await.is_err() {
                return Err(self.unreachable(call, pauses.last_words("")));
            }
        }
    }

    fn request<T: Clone>(&self, call: &Call, message: &T) -> Request<T> {
        let mut request = Request::new(message.clone());
        call.mark(&mut request);
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        request
    }

    fn unreachable(&self, call: &Call, last: &str) -> Status {
        Status::unavailable(format!(
            "{}: no connection to shoes-vz-server at {} within {}: {last}; check that it runs and that the address is \
             right; the call may be repeated",
            call.what(),
            self.addr,
            seconds(call.waited()),
        ))
    }

    fn no_answer(&self, call: &Call) -> Status {
        Status::deadline_exceeded(format!(
            "{}: shoes-vz-server at {} took the call but gave no answer within {}; the call may be repeated",
            call.what(),
            self.addr,
            seconds(call.waited()),
        ))
    }
}

fn bearer(token: &Token) -> MetadataValue<Ascii> {
    // Visible ASCII, as a token is, is always a header's value.
    let mut value =
        MetadataValue::try_from(token.authorization()).unwrap_or(MetadataValue::from_static("Bearer"));
    value.set_sensitive(true);
    value
}

fn seconds(d: Duration) -> String {
    format!("{:.1} s", d.as_secs_f64())
}

/// How one attempt failed.
enum Failed {
    /// On the way: worth another.
    Connection(String),
    /// The server's own answer.
    Answer(Status),
}

impl Failed {
    /// A status with a source was made here, from a transport error; one the server sent has none.
    fn of(status: Status) -> Self {
        match status.source() {
            Some(source) if !is_too_large(&status) => Self::Connection(chain::innermost(source).to_string()),
            _ => Self::Answer(status),
        }
    }
}

/// A message over the limit fails the same way each time.
fn is_too_large(status: &Status) -> bool {
    status.code() == tonic::Code::OutOfRange
}

/// Whether the connection broke under `status`, rather than the server sending it.
pub fn is_connection_loss(status: &Status) -> bool {
    matches!(Failed::of(status.clone()), Failed::Connection(_))
}

/// Growing pauses between attempts, and what the last one failed with.
#[derive(Debug)]
pub(crate) struct Pauses {
    pauses: Backoff,
    last: String,
}

impl Default for Pauses {
    fn default() -> Self {
        Self { pauses: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE), last: String::new() }
    }
}

impl Pauses {
    pub(crate) fn is_first(&self) -> bool {
        self.pauses.is_fresh()
    }

    pub(crate) fn next(&mut self, words: String) -> Duration {
        self.last = words;
        // Up to half less, so that a fleet of callers does not return as one.
        self.pauses.jittered(uuid::Uuid::new_v4().as_bytes()[0])
    }

    fn last_words<'a>(&'a self, otherwise: &'a str) -> &'a str {
        if self.last.is_empty() { otherwise } else { &self.last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second_and_no_further() {
        let mut pauses = Pauses::default();
        let first = pauses.next("refused".into());
        assert!(first <= FIRST_PAUSE && first >= FIRST_PAUSE / 2, "{first:?}");
        let later: Vec<_> = (0..50).map(|_| pauses.next("refused".into())).collect();
        assert!(later.iter().all(|p| *p <= LONGEST_PAUSE));
        assert!(later[49] >= LONGEST_PAUSE / 2);
        assert_eq!(pauses.last_words("x"), "refused");
    }

    #[test]
    fn a_status_the_server_sent_is_its_answer_and_one_from_the_transport_is_not() {
        assert!(!is_connection_loss(&Status::unavailable("no agent")));
        let broken = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "reset by peer");
        assert!(is_connection_loss(&Status::from_error(Box::new(broken))));
    }
}
