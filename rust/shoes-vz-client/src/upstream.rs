//! Calls to shoes-vz-server that survive its restarts.
//!
//! ```text
//! connect ──▶ send ──▶ answer (its code passed through untouched)
//!    │          │
//!    │ refused  │ connection lost on the way
//!    ▼          ▼
//!  back-off, then again, until the caller's deadline less a margin ──▶ UNAVAILABLE with the reason
//!             connected, but no answer by then                     ──▶ DEADLINE_EXCEEDED with the reason
//! ```
//! Every call here can be repeated: AddInstance is idempotent by runner name, DeleteInstance by cloud ID, cordoning by its
//! result; the others only read.

mod addr;
mod call;

use std::{
    error::Error,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use shoes_vz_process::{backoff::Backoff, chain, secret::Token};
use shoes_vz_proto::fleet::shoes_service_client::ShoesServiceClient;
use tokio::time::timeout_at;
use tonic::{
    Request, Response, Status,
    metadata::{Ascii, MetadataValue},
    transport::{Channel, Endpoint},
};

pub use addr::{BadServerAddr, ServerAddr};
pub use call::Call;

/// For one connection attempt: a host that drops packets must not use up the whole budget.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest gRPC message sent and received: a setup script of some megabytes passes, a runaway one does not.
pub const MAX_MESSAGE: usize = 16 << 20;
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A server, which may not be up yet: a connection is made for each call.
#[derive(Debug, Clone)]
pub struct Server {
    addr: ServerAddr,
    endpoint: Endpoint,
    bearer: Option<MetadataValue<Ascii>>,
}

impl Server {
    /// Calls are authenticated by `token`.
    pub fn new(addr: ServerAddr, token: Option<Token>) -> Self {
        // No HTTP/2 pings: a Go server ends connections that ping more than every five minutes.
        let endpoint = addr
            .endpoint()
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(Duration::from_secs(30)));
        Self { addr, endpoint, bearer: token.as_ref().map(bearer) }
    }

    pub fn addr(&self) -> &ServerAddr {
        &self.addr
    }

    /// Makes `call` with `message` by `send`.
    pub async fn call<T: Clone, R, Fut>(
        &self,
        call: &Call,
        message: &T,
        send: impl Fn(Channel, Request<T>) -> Fut,
    ) -> Result<Response<R>, Status>
    where
        Fut: Future<Output = Result<Response<R>, Status>>,
    {
        let mut backoff = RetryBackoff::default();
        loop {
            let connected = AtomicBool::new(false);
            let attempt = async {
                let channel = self
                    .endpoint
                    .connect()
                    .await
                    .map_err(|e| AttemptError::Connection(chain::innermost(&e).to_string()))?;
                connected.store(true, Ordering::Relaxed);
                send(channel, self.request(call, message)).await.map_err(AttemptError::of)
            };
            let reason = match timeout_at(call.answer_by(), attempt).await {
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(AttemptError::Answer(status))) => return Err(status),
                Ok(Err(AttemptError::Connection(reason))) => reason,
                Err(_) if connected.into_inner() => return Err(self.no_answer(call)),
                Err(_) => return Err(self.unreachable(call, backoff.last_reason("connecting took too long"))),
            };
            if backoff.is_first() {
                tracing::warn!(method = call.what(), server = %self.addr, reason, "server unreachable; retrying");
            }
            let pause = backoff.next(reason);
            if timeout_at(call.answer_by(), tokio::time::sleep(pause)).await.is_err() {
                return Err(self.unreachable(call, backoff.last_reason("")));
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
             right; the call can be repeated",
            call.what(),
            self.addr,
            seconds(call.waited()),
        ))
    }

    fn no_answer(&self, call: &Call) -> Status {
        Status::deadline_exceeded(format!(
            "{}: shoes-vz-server at {} accepted the call but did not answer within {}; the call can be repeated",
            call.what(),
            self.addr,
            seconds(call.waited()),
        ))
    }
}

/// The server's `ShoesService`, with [`MAX_MESSAGE`] in both directions.
pub(crate) fn shoes_service(channel: Channel) -> ShoesServiceClient<Channel> {
    ShoesServiceClient::new(channel)
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE)
}

fn bearer(token: &Token) -> MetadataValue<Ascii> {
    // A token is visible ASCII, which is always a valid header value.
    let mut value =
        MetadataValue::try_from(token.authorization()).unwrap_or(MetadataValue::from_static("Bearer"));
    value.set_sensitive(true);
    value
}

fn seconds(d: Duration) -> String {
    format!("{:.1} s", d.as_secs_f64())
}

enum AttemptError {
    /// On the way: another attempt may succeed.
    Connection(String),
    /// From the server.
    Answer(Status),
}

impl AttemptError {
    /// A status with a source comes from a local transport error; a status from the server has none.
    fn of(status: Status) -> Self {
        match status.source() {
            // A message over the size limit fails every time.
            Some(source) if status.code() != tonic::Code::OutOfRange => {
                Self::Connection(chain::innermost(source).to_string())
            }
            _ => Self::Answer(status),
        }
    }
}

/// Whether the connection broke under `status`, rather than the server sending it.
pub fn is_connection_loss(status: &Status) -> bool {
    matches!(AttemptError::of(status.clone()), AttemptError::Connection(_))
}

/// Growing pauses between attempts, and why the last attempt failed.
#[derive(Debug)]
pub(crate) struct RetryBackoff {
    backoff: Backoff,
    last: String,
}

impl Default for RetryBackoff {
    fn default() -> Self {
        Self { backoff: Backoff::new(FIRST_PAUSE, LONGEST_PAUSE), last: String::new() }
    }
}

impl RetryBackoff {
    pub(crate) fn is_first(&self) -> bool {
        self.backoff.is_fresh()
    }

    pub(crate) fn next(&mut self, reason: String) -> Duration {
        self.last = reason;
        // Up to half less, so that many callers do not retry at the same moment.
        self.backoff.jittered(uuid::Uuid::new_v4().as_bytes()[0])
    }

    fn last_reason<'a>(&'a self, default: &'a str) -> &'a str {
        if self.last.is_empty() { default } else { &self.last }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_second_and_no_further() {
        let mut backoff = RetryBackoff::default();
        let first = backoff.next("refused".into());
        assert!(first <= FIRST_PAUSE && first >= FIRST_PAUSE / 2, "{first:?}");
        let later: Vec<_> = (0..50).map(|_| backoff.next("refused".into())).collect();
        assert!(later.iter().all(|p| *p <= LONGEST_PAUSE));
        assert!(later[49] >= LONGEST_PAUSE / 2);
        assert_eq!(backoff.last_reason("x"), "refused");
    }

    #[test]
    fn a_status_the_server_sent_is_its_answer_and_one_from_the_transport_is_not() {
        assert!(!is_connection_loss(&Status::unavailable("no agent")));
        let broken = std::io::Error::new(std::io::ErrorKind::ConnectionReset, "reset by peer");
        assert!(is_connection_loss(&Status::from_error(Box::new(broken))));
    }
}
