//! What every call passes first: the token, and one span with its request id.

use std::{
    future::Future,
    net::IpAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response, header};
use shoes_vz_model::Ambient;
use shoes_vz_process::secret::Token;
use tonic::{Status, body::Body, transport::server::TcpConnectInfo};
use tower::{Layer, Service};
use tracing::{Instrument as _, field::Empty};

use crate::{
    metrics::{Metrics, Place},
    repeats::{Say, SharedRepeats},
};

use super::panics;

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
    ambient: Ambient,
    metrics: Arc<Metrics>,
    repeats: Arc<SharedRepeats>,
}

impl Gate {
    /// Without a token anyone may pass (the listener is on loopback then).
    pub fn new(token: Option<Token>, ambient: Ambient, metrics: Arc<Metrics>) -> Self {
        Self { token, ambient, metrics, repeats: Arc::default() }
    }

    /// Anybody who reaches the port can have this line: it is said once for each address.
    fn refuse(&self, from: Option<IpAddr>) {
        self.metrics.call_without_token();
        let from = from.map_or_else(|| "an address unknown".to_owned(), |ip| ip.to_string());
        if let Some(repeats) = self.repeats.note(&from, Say::Once) {
            tracing::warn!(from, repeats, "call refused: no valid token");
        }
    }
}

impl<S> Layer<S> for Gate {
    type Service = Gated<S>;
    fn layer(&self, inner: S) -> Gated<S> {
        Gated { inner, gate: self.clone() }
    }
}

/// A service behind the gate.
#[derive(Debug, Clone)]
pub struct Gated<S> {
    inner: S,
    gate: Gate,
}

impl<S> Service<Request<Body>> for Gated<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
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
            .map_or_else(|| self.gate.ambient.uuid().to_string(), str::to_owned);
        let span =
            tracing::info_span!("rpc", method = %path, request_id = %id, runner_id = Empty, cloud_id = Empty);
        let admitted = match &self.gate.token {
            Some(token) if !path.starts_with(OPEN) => {
                token.is_shown_by(request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes))
            }
            Some(_) | None => true,
        };
        if !admitted {
            let from = request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
            span.in_scope(|| self.gate.refuse(from.map(|addr| addr.ip())));
            let words = "authentication required: send \"Authorization: Bearer TOKEN\" (set --token-file on clients and agents)";
            let refused = Status::unauthenticated(words).into_http();
            return Box::pin(async move { Ok(refused) });
        }
        let header = HeaderValue::from_str(&id).ok();
        request.extensions_mut().insert(RequestId(id));
        let metrics = Arc::clone(&self.gate.metrics);
        let ready = self.inner.clone();
        // The one that was asked whether it is ready.
        let mut inner = std::mem::replace(&mut self.inner, ready);
        Box::pin(
            async move {
                let answer = async { inner.call(request).await };
                let mut response = match panics::caught(&metrics, Place::Call, answer).await {
                    Ok(response) => response?,
                    Err(panics::Panicked) => Status::internal(panics::TEXT).into_http(),
                };
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

#[cfg(test)]
mod tests {
    use super::*;

    async fn mistaken(_: Request<Body>) -> Result<Response<Body>, std::convert::Infallible> {
        panic!("a mistake of ours")
    }

    #[tokio::test]
    async fn a_panicking_handler_is_answered_as_internal_and_counted() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let gate = Gate::new(None, Ambient::real(), Arc::clone(&metrics));
        let mut gated = gate.layer(tower::service_fn(mistaken));
        let response = gated.call(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "13", "INTERNAL");
        let text = String::from_utf8(metrics.render(&Default::default()).unwrap()).unwrap();
        assert!(text.contains("shoesvz_panics_total{where=\"call\"} 1"), "{text}");
    }
}
