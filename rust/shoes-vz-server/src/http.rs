//! The HTTP listener: `/metrics` (also at `/`, where the Go server's scrape configurations look) and `/healthz`.

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
    fleet::owner::Fleet,
    metrics::{Metrics, Place},
};

#[derive(Clone)]
struct Shared {
    fleet: Fleet,
    metrics: Arc<Metrics>,
    token: Option<Token>,
}

/// Every path there is.
pub fn router(fleet: Fleet, metrics: Arc<Metrics>, token: Option<Token>) -> Router {
    let shared = Shared { fleet, metrics, token };
    Router::new()
        .route("/metrics", get(scrape))
        .route("/", get(scrape))
        .route_layer(middleware::from_fn_with_state(shared.clone(), with_token))
        .route("/healthz", get(healthz))
        .layer(middleware::from_fn_with_state(shared.clone(), survive))
        .with_state(shared)
}

async fn survive(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    match panics::caught(&shared.metrics, Place::Http, next.run(request)).await {
        Ok(response) => response,
        Err(panics::Panicked) => {
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{}\n", panics::TEXT)).into_response()
        }
    }
}

async fn with_token(State(shared): State<Shared>, request: Request, next: Next) -> Response {
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
            (StatusCode::INTERNAL_SERVER_ERROR, format!("metrics cannot be written: {e}\n")).into_response()
        }
    }
}

/// Alive is a fleet that answers. One that cannot write its state is alive, too: whoever restarts it for that would end its
/// streams and gain nothing, so this stays 200 and says so. Alert on `shoesvz_store_writable` instead.
async fn healthz(State(shared): State<Shared>) -> Response {
    match shared.fleet.snapshot(false).await {
        Ok(fleet) if fleet.unwritable.is_some() => {
            let text = "degraded: the server cannot write its state and decides nothing new; see its log\n";
            (StatusCode::OK, text).into_response()
        }
        Ok(_) => (StatusCode::OK, "ok\n").into_response(),
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "the server is stopping\n").into_response(),
    }
}
