//! The HTTP listener: `/metrics` (also at `/`, which the scrape configurations of the Go server use) and `/healthz`.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderValue, StatusCode, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};

use shoes_vz_process::secret::Token;

use crate::{
    edge::panics,
    metrics::{Metrics, PanicSite},
    owner::Fleet,
};

#[derive(Clone)]
struct Shared {
    fleet: Fleet,
    metrics: Arc<Metrics>,
    token: Option<Token>,
}

pub fn router(fleet: Fleet, metrics: Arc<Metrics>, token: Option<Token>) -> Router {
    let shared = Shared { fleet, metrics, token };
    Router::new()
        .route("/metrics", get(scrape))
        .route("/", get(scrape))
        .route_layer(middleware::from_fn_with_state(shared.clone(), require_token))
        .route("/healthz", get(healthz))
        .layer(middleware::from_fn_with_state(shared.clone(), catch_panics))
        .with_state(shared)
}

async fn catch_panics(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    match panics::caught(&shared.metrics, PanicSite::Http, next.run(request)).await {
        Ok(response) => response,
        Err(panics::Panicked) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", panics::TEXT)).into_response()
        }
    }
}

async fn require_token(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    match &shared.token {
        Some(token) if !token.is_shown_by(authorization(&request)) => {
            let text = "authentication required: send \"Authorization: Bearer TOKEN\"\n";
            (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer")], text).into_response()
        }
        Some(_) | None => next.run(request).await,
    }
}

fn authorization(request: &Request) -> Option<&[u8]> {
    request.headers().get(header::AUTHORIZATION).map(HeaderValue::as_bytes)
}

async fn scrape(State(shared): State<Shared>) -> Response {
    let Ok(snapshot) = shared.fleet.snapshot(false).await else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the server is stopping\n").into_response();
    };
    match shared.metrics.render(&snapshot) {
        Ok(text) => ([(header::CONTENT_TYPE, prometheus::TEXT_FORMAT)], text).into_response(),
        Err(e) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("cannot render the metrics: {e}\n")).into_response()
        }
    }
}

/// The server is healthy if the fleet answers. This stays 200 while the server cannot write its state, since a restart would
/// only end its streams; the body says so. Alert on `shoesvz_store_writable` instead.
async fn healthz(State(shared): State<Shared>) -> Response {
    match shared.fleet.snapshot(false).await {
        Ok(fleet) if fleet.unwritable.is_some() => {
            let text = "degraded: the server cannot write its state, so it accepts nothing that must be written; see its log\n";
            (StatusCode::OK, text).into_response()
        }
        Ok(_) => (StatusCode::OK, "ok\n").into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the server is stopping\n").into_response(),
    }
}
