//! What every call passes first: the token, and one span with its request id.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response, header};
use shoes_vz_model::Outside;
use shoes_vz_process::secret::Token;
use tonic::{Status, body::Body};
use tower::{Layer, Service};
use tracing::{Instrument as _, field::Empty};

/// Header of the id that goes with a request through every log.
pub(super) const REQUEST_ID: &str = "x-request-id";

/// The only service that answers without a token: whether the server lives is no secret.
const OPEN: &str = "/grpc.health.v1.Health/";

/// The id of a request, for handlers.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub(super) String);

/// See the module.
#[derive(Debug, Clone)]
pub struct Gate {
    token: Option<Token>,
    outside: Outside,
}

impl Gate {
    /// Without a token anyone may pass (the listener is on loopback then).
    pub fn new(token: Option<Token>, outside: Outside) -> Self {
        Self { token, outside }
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;
    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, token: self.token.clone(), outside: self.outside.clone() }
    }
}

/// A service behind the gate.
#[derive(Debug, Clone)]
pub struct Gated<S> {
    inner: S,
    token: Option<Token>,
    outside: Outside,
}

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path().to_owned();
        let id = request
            .headers()
            .get(REQUEST_ID)
            .and_then(|v| v.to_str().ok())
            .filter(|id| !id.is_empty() && id.len() <= 128)
            .map_or_else(|| self.outside.uuid().to_string(), str::to_owned);
        let span =
            tracing::info_span!("rpc", method = %path, request_id = %id, runner_id = Empty, cloud_id = Empty);
        let admitted = match &self.token {
            Some(token) if !path.starts_with(OPEN) => {
                token.is_shown_by(request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes))
            }
            Some(_) | None => true,
        };
        if !admitted {
            span.in_scope(|| tracing::warn!("call refused: no valid token"));
            let words = "authentication required: send \"Authorization: Bearer TOKEN\" (set --token-file on clients and agents)";
            let refused = Status::unauthenticated(words).into_http();
            return Box::pin(async move { Ok(refused) });
        }
        let header = HeaderValue::from_str(&id).ok();
        request.extensions_mut().insert(RequestId(id));
        let answer = self.inner.call(request);
        Box::pin(
            async move {
                let mut response = answer.await?;
                if let Some(id) = header {
                    response.headers_mut().insert(REQUEST_ID, id);
                }
                Ok(response)
            }
            .instrument(span),
        )
    }
}

/// The id [`Gated`] gave the request.
pub(super) fn request_id<T>(request: &tonic::Request<T>) -> String {
    request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default()
}
