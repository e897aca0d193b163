//! The guest agent's HTTP API (`shoes_vz_model::guest`), typed, over the guest channel. One connection per call; the
//! caller sets the deadlines.

use std::{
    fmt::Display,
    path::{Path, PathBuf},
};

use bytes::{Bytes, BytesMut};
use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use shoes_vz_model::guest::{
    ExecRequest, ExecResponse, Health, Personalization, Personalized, SetupStatus, Status, port,
};

use crate::socket::{DialError, dial};

/// Longest JSON answer: an exec's capped output, escaped and once more in base64.
const MAX_ANSWER: usize = 256 << 20;
/// Longest line of `/events`.
const MAX_EVENT: usize = 1 << 20;

/// Why a call failed; `call` is its method and path.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("connecting to the guest agent failed: {0}")]
    Dial(#[from] DialError),
    #[error("{call}: the connection to the guest agent failed: {source}")]
    Broken { call: String, source: Box<dyn std::error::Error + Send + Sync> },
    #[error("{call}: the guest agent answered {status}: {reason}")]
    Refused {
        call: String,
        /// 409: another setup script was handed over before.
        status: StatusCode,
        /// The beginning of the answer's body.
        reason: String,
    },
    #[error("{call}: the guest agent's answer is not valid: {source}")]
    Malformed { call: String, source: serde_json::Error },
}

impl ApiError {
    /// Of a refusal.
    pub fn status(&self) -> Option<StatusCode> {
        match self {
            ApiError::Refused { status, .. } => Some(*status),
            _ => None,
        }
    }
}

/// A guest agent behind a `guest.sock`.
#[derive(Debug, Clone)]
pub struct GuestApi {
    socket: PathBuf,
}

impl GuestApi {
    /// No connection is made yet.
    pub fn new(guest_socket: impl AsRef<Path>) -> Self {
        Self { socket: guest_socket.as_ref().to_owned() }
    }

    /// The runner's and the setup script's state now.
    pub async fn status(&self) -> Result<Status, ApiError> {
        self.json(Method::GET, "/status", Bytes::new()).await
    }

    pub async fn health(&self) -> Result<Health, ApiError> {
        self.json(Method::GET, "/health", Bytes::new()).await
    }

    /// Runs a program in the guest and waits for its exit. When this future is dropped, the guest agent kills the program.
    pub async fn exec(&self, request: ExecRequest) -> Result<ExecResponse, ApiError> {
        // Strings and numbers: this cannot fail.
        let body = serde_json::to_vec(&request).unwrap_or_default();
        self.json(Method::POST, "/exec", body.into()).await
    }

    /// The state now, then each change; ends with an error when the connection ends.
    pub fn events(&self) -> BoxStream<'static, Result<Status, ApiError>> {
        let chunks = self.stream("/events".to_owned()).map(Ok::<_, ApiError>);
        let state = (chunks.boxed(), BytesMut::new());
        futures::stream::try_unfold(state, |(mut chunks, mut buffer)| async move {
            loop {
                if let Some(end) = buffer.iter().position(|b| *b == b'\n') {
                    let line = buffer.split_to(end + 1);
                    let status = serde_json::from_slice(&line)
                        .map_err(|source| ApiError::Malformed { call: "GET /events".into(), source })?;
                    return Ok(Some((status, (chunks, buffer))));
                }
                if buffer.len() > MAX_EVENT {
                    return Err(broken("GET /events", "a line is too long".into()));
                }
                match chunks.next().await {
                    Some(chunk) => buffer.extend_from_slice(&chunk??),
                    None => return Err(broken("GET /events", "the guest agent ended the stream".into())),
                }
            }
        })
        .boxed()
    }

    /// Hands the setup script over and starts it; the same `id` again changes nothing, another one is refused (409).
    pub async fn put_setup(&self, id: impl Display, script: Bytes) -> Result<SetupStatus, ApiError> {
        self.json(Method::PUT, &format!("/setup/{id}"), script).await
    }

    pub async fn setup(&self) -> Result<SetupStatus, ApiError> {
        self.json(Method::GET, "/setup", Bytes::new()).await
    }

    /// The setup script's output from byte `offset` on, followed until the script has exited. Ends with an error when the
    /// connection ends; call it again with the offset it reached.
    pub fn setup_log(&self, offset: u64) -> BoxStream<'static, Result<Bytes, ApiError>> {
        self.stream(format!("/setup/log?offset={offset}")).boxed()
    }

    /// Gives a restored guest an identity that no other clone of its state has; all of it is in force when this returns.
    pub async fn personalize(&self, personalization: &Personalization) -> Result<Personalized, ApiError> {
        // Strings and a number: this cannot fail.
        let body = serde_json::to_vec(personalization).unwrap_or_default();
        self.json(Method::POST, "/personalize", body.into()).await
    }

    /// Prepares the guest for its state to be saved.
    pub async fn prepare_save(&self) -> Result<(), ApiError> {
        self.call(Method::POST, "/prepare-save", Bytes::new()).await.map(drop)
    }

    /// Makes the guest power itself off.
    pub async fn shutdown(&self) -> Result<(), ApiError> {
        self.call(Method::POST, "/shutdown", Bytes::new()).await.map(|_| ())
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<T, ApiError> {
        let call = format!("{method} {path}");
        let answer = self.call(method, path, body).await?;
        let bytes =
            Limited::new(answer, MAX_ANSWER).collect().await.map_err(|e| broken(&call, e))?.to_bytes();
        serde_json::from_slice(&bytes).map_err(|source| ApiError::Malformed { call, source })
    }

    fn stream(&self, path: String) -> impl Stream<Item = Result<Bytes, ApiError>> + Send + use<> {
        let api = self.clone();
        let call = format!("GET {path}");
        futures::stream::once(async move {
            let answer = api.call(Method::GET, &path, Bytes::new()).await?;
            Ok::<_, ApiError>(answer.into_data_stream().map_err(move |e| broken(&call, e.into())))
        })
        .try_flatten()
    }

    async fn call(&self, method: Method, path: &str, body: Bytes) -> Result<Incoming, ApiError> {
        let call = format!("{method} {path}");
        let failed = |e: hyper::Error| broken(&call, e.into());
        let stream = dial(&self.socket, port::API).await?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        // Ends with the answer, or when the answer is dropped.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(http::header::HOST, "guest")
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(|e| broken(&call, e.into()))?;
        let answer = sender.send_request(request).await.map_err(failed)?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer.into_body());
        }
        let reason = match Limited::new(answer.into_body(), 4096).collect().await {
            Ok(body) => String::from_utf8_lossy(&body.to_bytes()).trim().to_owned(),
            Err(error) => format!("(reading the answer's body failed: {error})"),
        };
        Err(ApiError::Refused { call, status, reason })
    }
}

fn broken(call: &str, source: Box<dyn std::error::Error + Send + Sync>) -> ApiError {
    ApiError::Broken { call: call.to_owned(), source }
}
