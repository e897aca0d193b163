//! The layer that every call passes first: it checks the token and opens a span with the request id.

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
    log_limit::{LogLimit, SharedLogLimiter},
    metrics::{Metrics, PanicSite},
};

use super::panics;

/// Header of the id that accompanies a request through every log.
pub(super) const REQUEST_ID: &str = "x-request-id";

/// The only service that answers without a token.
const OPEN: &str = "/grpc.health.v1.Health/";

/// The id of a request, for handlers.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub(super) String);

#[derive(Debug, Clone)]
pub struct AuthLayer {
    token: Option<Token>,
    ambient: Ambient,
    metrics: Arc<Metrics>,
    log_limiter: Arc<SharedLogLimiter>,
}

impl AuthLayer {
    /// Without a token every call passes (the listener is then on loopback).
    pub fn new(token: Option<Token>, ambient: Ambient, metrics: Arc<Metrics>) -> Self {
        Self { token, ambient, metrics, log_limiter: Arc::default() }
    }

    /// Everyone who reaches the port can cause this line, so it is logged once for each address.
    fn refuse(&self, from: Option<IpAddr>) {
        self.metrics.call_without_token();
        let from = from.map_or_else(|| "unknown address".to_owned(), |ip| ip.to_string());
        if let Some(suppressed) = self.log_limiter.admit(&from, LogLimit::Once) {
            tracing::warn!(from, suppressed, "call refused: no valid token");
        }
    }
}

impl<S> Layer<S> for AuthLayer {
    type Service = AuthService<S>;
    fn layer(&self, inner: S) -> AuthService<S> {
        AuthService { inner, auth: self.clone() }
    }
}

/// A service behind the layer.
#[derive(Debug, Clone)]
pub struct AuthService<S> {
    inner: S,
    auth: AuthLayer,
}

impl<S> Service<Request<Body>> for AuthService<S>
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
            .map_or_else(|| self.auth.ambient.uuid().to_string(), str::to_owned);
        let span =
            tracing::info_span!("rpc", method = %path, request_id = %id, runner_id = Empty, cloud_id = Empty);
        let admitted = match &self.auth.token {
            Some(token) if !path.starts_with(OPEN) => {
                token.is_shown_by(request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes))
            }
            Some(_) | None => true,
        };
        if !admitted {
            let from = request.extensions().get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
            span.in_scope(|| self.auth.refuse(from.map(|addr| addr.ip())));
            let message = "authentication required: send \"Authorization: Bearer TOKEN\" (set --token-file on clients and agents)";
            let refused = Status::unauthenticated(message).into_http();
            return Box::pin(async move { Ok(refused) });
        }
        let header = HeaderValue::from_str(&id).ok();
        request.extensions_mut().insert(RequestId(id));
        let metrics = Arc::clone(&self.auth.metrics);
        let ready = self.inner.clone();
        // `poll_ready` was called on this one.
        let mut inner = std::mem::replace(&mut self.inner, ready);
        Box::pin(
            async move {
                let answer = async { inner.call(request).await };
                let mut response = match panics::caught(&metrics, PanicSite::Call, answer).await {
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

/// The id that [`AuthService`] gave the request.
pub(super) fn request_id<T>(request: &tonic::Request<T>) -> String {
    request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn panicking(_: Request<Body>) -> Result<Response<Body>, std::convert::Infallible> {
        panic!("a mistake in the handler")
    }

    #[tokio::test]
    async fn a_panicking_handler_is_answered_as_internal_and_counted() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let auth = AuthLayer::new(None, Ambient::real(), Arc::clone(&metrics));
        let mut service = auth.layer(tower::service_fn(panicking));
        let response = service.call(Request::new(Body::empty())).await.unwrap();
        assert_eq!(response.headers()["grpc-status"], "13", "INTERNAL");
        let text = String::from_utf8(metrics.render(&Default::default()).unwrap()).unwrap();
        assert!(text.contains("shoesvz_panics_total{where=\"call\"} 1"), "{text}");
    }
}
