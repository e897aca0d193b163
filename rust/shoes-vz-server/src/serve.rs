//! Builds the server from its settings, runs it, and stops it.

use std::{
    future::{Future, IntoFuture as _},
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use futures::Stream;
use shoes_vz_model::Ambient;
use shoes_vz_process::{
    files::{self, Readers},
    secret::Token,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    task::JoinError,
};
use tonic::transport::{
    Server,
    server::{Connected, TcpIncoming},
};

use crate::{
    edge::{self, AuthLayer, Defaults},
    http,
    metrics::Metrics,
    owner::{self, Fleet, Owner},
    settings::Settings,
    store::{Loaded, Sqlite, Store, StoreError},
};

/// Why the server cannot start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot listen on {addr} for {what}; is another server running there? choose another --{flag}")]
    Bind { addr: SocketAddr, what: &'static str, flag: &'static str, source: io::Error },
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the gRPC reflection service cannot be built")]
    Reflection(#[from] tonic_reflection::server::Error),
    #[error("the metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
    #[error("the gRPC listener on {0} failed")]
    Grpc(SocketAddr, #[source] tonic::transport::Error),
    #[error("the HTTP listener on {0} failed")]
    Http(SocketAddr, #[source] io::Error),
    #[error("cannot write the ready file {path}")]
    ReadyFile { path: PathBuf, source: io::Error },
    /// A bug: the fleet's decisions cannot be trusted afterwards.
    #[error(
        "a task of the server ended unexpectedly, which is a bug in shoes-vz; restart the server and report this"
    )]
    Owner(#[source] JoinError),
}

/// A server with its ports bound and its state loaded.
pub struct Bound<S = Sqlite> {
    settings: Settings,
    grpc: TcpListener,
    http: TcpListener,
    grpc_addr: SocketAddr,
    metrics_addr: SocketAddr,
    fleet: Fleet,
    owner: Owner<S>,
    metrics: Arc<Metrics>,
}

/// Binds the ports and opens the state.
pub async fn bind(settings: Settings) -> Result<Bound, ServeError> {
    let open = |settings: &Settings| {
        let opened = Sqlite::open_or(&settings.state_dir, settings.damaged_state, Ambient::real().now())?;
        tracing::info!(agents = opened.1.agents.len(), runners = opened.1.runners.len(),
            state_dir = %settings.state_dir.display(), "state loaded");
        Ok(opened)
    };
    bind_over(settings, open).await
}

/// As [`bind`], with another kind of store.
pub async fn bind_over<S: Store>(
    settings: Settings,
    open: impl FnOnce(&Settings) -> Result<(S, Loaded), StoreError>,
) -> Result<Bound<S>, ServeError> {
    let (grpc, grpc_addr) = listen(settings.grpc_addr, "gRPC", "grpc-addr").await?;
    let (http, metrics_addr) = listen(settings.metrics_addr, "metrics", "metrics-addr").await?;
    let (store, loaded) = open(&settings)?;
    let ambient = Ambient::real();
    let metrics = Arc::new(Metrics::new()?);
    let (fleet, owner) = owner::new(settings.policy.clone(), loaded, store, Arc::clone(&metrics), ambient);
    Ok(Bound { settings, grpc, http, grpc_addr, metrics_addr, fleet, owner, metrics })
}

async fn listen(
    addr: SocketAddr,
    what: &'static str,
    flag: &'static str,
) -> Result<(TcpListener, SocketAddr), ServeError> {
    let failed = |source| ServeError::Bind { addr, what, flag, source };
    let listener = TcpListener::bind(addr).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

impl<S: Store> Bound<S> {
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    pub fn metrics_addr(&self) -> SocketAddr {
        self.metrics_addr
    }

    /// Serves until `stop` resolves, then lets calls in progress finish within the shutdown timeout.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { settings, grpc, http, grpc_addr, metrics_addr, fleet, owner, metrics } = self;
        let stopping = fleet.stopping().clone();
        // Stops the owner however this function returns.
        let _stop_owner = stopping.clone().drop_guard();
        let mut owner = tokio::spawn(owner.run());

        let options = GrpcOptions {
            token: settings.token.clone(),
            defaults: settings.defaults,
            keepalive: settings.keepalive,
        };
        let incoming = TcpIncoming::from(grpc).with_nodelay(Some(true));
        let grpc = serve_grpc(fleet.clone(), Arc::clone(&metrics), options, incoming).await?;
        let http = axum::serve(http, http::router(fleet.clone(), metrics, settings.token))
            .with_graceful_shutdown(stopping.clone().cancelled_owned())
            .into_future();
        let mut grpc = tokio::spawn(grpc);
        let mut http = tokio::spawn(http);

        if let Some(path) = &settings.ready_file {
            let text = serde_json::json!({"grpc_addr": grpc_addr.to_string(), "metrics_addr": metrics_addr.to_string()});
            files::replace(path, text.to_string().as_bytes(), Readers::Everyone)
                .map_err(|source| ServeError::ReadyFile { path: path.clone(), source })?;
        }
        tracing::info!(%grpc_addr, %metrics_addr, version = env!("CARGO_PKG_VERSION"), "ready");

        let ended = tokio::select! {
            () = stop => Ok(()),
            ended = &mut owner => joined(ended).and_then(|r| r.map_err(ServeError::from)),
            ended = &mut grpc => joined(ended).and_then(|r| r.map_err(|e| ServeError::Grpc(grpc_addr, e))),
            ended = &mut http => joined(ended).and_then(|r| r.map_err(|e| ServeError::Http(metrics_addr, e))),
        };
        stopping.cancel();
        drain(settings.shutdown_timeout, owner, grpc, http).await;
        tracing::info!("stopped");
        ended
    }
}

/// How the gRPC listener treats its callers.
#[derive(Debug, Clone)]
pub struct GrpcOptions {
    /// The token that callers must present.
    pub token: Option<Token>,
    /// For calls that leave it open.
    pub defaults: Defaults,
    /// HTTP/2 keepalive interval, and the time allowed for the reply.
    pub keepalive: Duration,
}

/// Serves gRPC on `incoming` until the fleet stops. The outer future sets up, the inner one serves.
pub async fn serve_grpc<I, IO, IE>(
    fleet: Fleet,
    metrics: Arc<Metrics>,
    options: GrpcOptions,
    incoming: I,
) -> Result<impl Future<Output = Result<(), tonic::transport::Error>>, tonic_reflection::server::Error>
where
    I: Stream<Item = Result<IO, IE>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    IO::ConnectInfo: Clone + Send + Sync + 'static,
    IE: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stop = fleet.stopping().clone().cancelled_owned();
    let auth = AuthLayer::new(options.token, fleet.ambient().clone(), Arc::clone(&metrics));
    let routes = edge::routes(fleet, metrics, options.defaults).await?;
    Ok(Server::builder()
        .http2_keepalive_interval(Some(options.keepalive))
        .http2_keepalive_timeout(Some(options.keepalive))
        .layer(auth)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop))
}

fn joined<T>(result: Result<T, JoinError>) -> Result<T, ServeError> {
    result.map_err(ServeError::Owner)
}

/// Waits for each part that still runs, for `limit` in all.
async fn drain<A, B, C>(
    limit: Duration,
    owner: tokio::task::JoinHandle<A>,
    grpc: tokio::task::JoinHandle<B>,
    http: tokio::task::JoinHandle<C>,
) {
    let parts = [owner.abort_handle(), grpc.abort_handle(), http.abort_handle()];
    let all = async { tokio::join!(finish(owner), finish(grpc), finish(http)) };
    if tokio::time::timeout(limit, all).await.is_err() {
        tracing::warn!(?limit, "calls did not finish in time; aborting them");
        for part in parts {
            part.abort();
        }
    }
}

/// [`Bound::run`] has awaited the part that ended first, and returns its error.
async fn finish<T>(part: tokio::task::JoinHandle<T>) {
    if !part.is_finished() {
        let _ = part.await;
    }
}
