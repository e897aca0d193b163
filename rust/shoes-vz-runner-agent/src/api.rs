//! The HTTP API. `shoes_vz_model::guest` describes it.

use std::convert::Infallible;

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, Path, Query, Request, State as Of},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post, put},
};
use bytes::Bytes;
use futures::StreamExt;
use http::{StatusCode, header};
use serde::Deserialize;
use shoes_vz_model::guest::{
    ExecRequest, ExecResponse, Health, Personalization, Personalized, SetupStatus, Status,
};
use shoes_vz_process::secret::Token;
use tokio_stream::wrappers::WatchStream;
use tracing::warn;

use crate::{
    exec, power,
    setup::{self, PutError},
    state::State,
};

pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A setup script that contains a payload has a few MiB at most.
const MAX_SCRIPT: usize = 64 << 20;

/// The reason goes into the answer's body, with a newline.
type Refusal = (StatusCode, String);

/// The API for the guest channel, which only the host can use.
pub fn router(state: State) -> Router {
    Router::new()
        .route("/status", get(status))
        .route("/health", get(health))
        .route("/exec", post(run))
        .route("/events", get(events))
        .route("/setup", get(setup_status))
        .route("/setup/log", get(setup_log))
        .route("/setup/{id}", put(put_setup))
        .route("/shutdown", post(shutdown))
        .route("/personalize", post(personalize))
        .route("/prepare-save", post(prepare_save))
        .layer(DefaultBodyLimit::max(MAX_SCRIPT))
        .with_state(state)
}

/// The API for TCP: with a token, everything but `/health` requires it; without one, the settings allow only loopback.
pub fn with_token(router: Router, token: Option<Token>) -> Router {
    let Some(token) = token else { return router };
    router.layer(middleware::from_fn(move |request: Request, next: Next| {
        let authorization = request.headers().get(header::AUTHORIZATION).map(|h| h.as_bytes());
        let is_allowed = request.uri().path() == "/health" || token.is_shown_by(authorization);
        async move {
            if is_allowed {
                next.run(request).await
            } else {
                (StatusCode::UNAUTHORIZED, "authentication required: send \"Authorization: Bearer TOKEN\"\n")
                    .into_response()
            }
        }
    }))
}

async fn status(Of(state): Of<State>) -> Json<Status> {
    Json(state.status())
}

async fn health() -> Json<Health> {
    Json(Health { status: "ok".into(), version: VERSION.into() })
}

/// Does not require a content type, because the Go guest agent did not.
async fn run(Of(state): Of<State>, body: Bytes) -> Result<Json<ExecResponse>, Refusal> {
    let request: ExecRequest = serde_json::from_slice(&body).map_err(|e| {
        (StatusCode::BAD_REQUEST, format!("the request body is not a valid exec request: {e}\n"))
    })?;
    if request.command.is_empty() {
        return Err((StatusCode::BAD_REQUEST, "the exec request has no command\n".into()));
    }
    Ok(Json(exec::exec(request, state.env()).await))
}

async fn events(Of(state): Of<State>) -> Response {
    let lines = WatchStream::new(state.watch()).map(|status| {
        // Cannot fail for strings and numbers.
        let mut line = serde_json::to_vec(&status).unwrap_or_default();
        line.push(b'\n');
        Ok::<_, Infallible>(Bytes::from(line))
    });
    ([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response()
}

async fn setup_status(Of(state): Of<State>) -> Json<SetupStatus> {
    Json(state.setup().status())
}

async fn put_setup(
    Of(state): Of<State>,
    Path(id): Path<String>,
    script: Bytes,
) -> Result<Json<SetupStatus>, Refusal> {
    state.setup().put(&id, script).await.map(Json).map_err(|error| {
        let code = match &error {
            PutError::AnotherScript(_) => StatusCode::CONFLICT,
            PutError::BadId => StatusCode::BAD_REQUEST,
            PutError::Io(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        warn!(id, reason = %error, "setup script refused");
        (code, format!("{error}\n"))
    })
}

#[derive(Deserialize)]
struct LogQuery {
    #[serde(default)]
    offset: u64,
}

async fn setup_log(Of(state): Of<State>, Query(query): Query<LogQuery>) -> Result<Response, Refusal> {
    let none = || (StatusCode::NOT_FOUND, "no setup script was handed over\n".into());
    let log = state.setup().log().ok_or_else(none)?;
    let bytes = setup::follow(log, query.offset, state.watch()).await.map_err(|error| {
        (StatusCode::INTERNAL_SERVER_ERROR, format!("reading the setup log failed: {error}\n"))
    })?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], Body::from_stream(bytes)).into_response())
}

async fn personalize(Of(state): Of<State>, body: Bytes) -> Result<Json<Personalized>, Refusal> {
    // serde's error would quote the body, which holds secrets.
    let personalization: Personalization = serde_json::from_slice(&body)
        .map_err(|_| (StatusCode::BAD_REQUEST, "the request body is not a valid personalization\n".into()))?;
    let personalized = state.privileged_helper().personalize(&personalization).await.map_err(|reason| {
        warn!(reason, "personalization failed");
        (StatusCode::NOT_IMPLEMENTED, format!("this guest cannot be personalized: {reason}\n"))
    })?;
    if !personalization.entropy.is_empty() {
        state.reset_start_id();
    }
    Ok(Json(personalized))
}

async fn prepare_save(Of(state): Of<State>) -> Result<StatusCode, Refusal> {
    let refused = |reason| (StatusCode::NOT_IMPLEMENTED, format!("{reason}\n"));
    state.privileged_helper().prepare_save().await.map(|()| StatusCode::NO_CONTENT).map_err(refused)
}

async fn shutdown() -> (StatusCode, String) {
    match power::off().await {
        Ok(how) => (StatusCode::ACCEPTED, format!("{how}\n")),
        Err(reason) => {
            warn!(reason, "powering off failed");
            (StatusCode::INTERNAL_SERVER_ERROR, format!("{reason}\n"))
        }
    }
}
