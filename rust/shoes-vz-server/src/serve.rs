//! Building the server from its settings, running it, and ending it.

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
    edge::{self, Defaults, Gate},
    fleet::owner::{self, Fleet, Owner},
    http,
    metrics::Metrics,
    settings::Settings,
    store::{Loaded, Sqlite, Store, StoreError},
};

/// Why the server cannot run, or ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A port is taken, or not ours.
    #[error("cannot listen on {addr} for {what}; is another server running there? choose another --{flag}")]
    Bind {
        /// Where.
        addr: SocketAddr,
        /// What for.
        what: &'static str,
        /// The setting.
        flag: &'static str,
        /// Why.
        source: io::Error,
    },
    /// No state, no server.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its own descriptors are broken.
    #[error("the gRPC reflection service cannot be built")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// Its own metrics are broken.
    #[error("the metrics cannot be registered")]
    Metrics(#[from] prometheus::Error),
    /// gRPC ended.
    #[error("the gRPC listener on {0} failed")]
    Grpc(SocketAddr, #[source] tonic::transport::Error),
    /// HTTP ended.
    #[error("the HTTP listener on {0} failed")]
    Http(SocketAddr, #[source] io::Error),
    /// For whoever waits for it.
    #[error("cannot write the ready file {path}")]
    ReadyFile {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A mistake of the server's own: what the fleet decides cannot be trusted after it.
    #[error(
        "the server's own task ended unexpectedly, which is a mistake in shoes-vz; restart it and report this"
    )]
    Owner(#[source] JoinError),
}

/// Bound and loaded, ready to run.
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

/// Takes the ports and opens the state.
pub async fn bind(settings: Settings) -> Result<Bound, ServeError> {
    let open = |settings: &Settings| {
        let opened = Sqlite::open_or(&settings.state_dir, settings.damaged_state, Ambient::real().now())?;
        tracing::info!(agents = opened.1.agents.len(), runners = opened.1.runners.len(),
            state_dir = %settings.state_dir.display(), "state loaded");
        Ok(opened)
    };
    bind_over(settings, open).await
}

/// As [`bind`], with a store of another kind.
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
    let told = |source| ServeError::Bind { addr, what, flag, source };
    let listener = TcpListener::bind(addr).await.map_err(told)?;
    let bound = listener.local_addr().map_err(told)?;
    Ok((listener, bound))
}

impl<S: Store> Bound<S> {
    /// The gRPC address.
    pub fn grpc_addr(&self) -> SocketAddr {
        self.grpc_addr
    }

    /// The HTTP address.
    pub fn metrics_addr(&self) -> SocketAddr {
        self.metrics_addr
    }

    /// Serves until `stop` resolves, then ends what is under way within the shutdown timeout.
    pub async fn run(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self { settings, grpc, http, grpc_addr, metrics_addr, fleet, owner, metrics } = self;
        let stopping = fleet.stopping().clone();
        // Whatever way this function is left, the fleet's task is told to end.
        let _stops = stopping.clone().drop_guard();
        let mut owner = tokio::spawn(owner.run());

        let door = Door {
            token: settings.token.clone(),
            defaults: settings.defaults,
            keepalive: settings.keepalive,
        };
        let incoming = TcpIncoming::from(grpc).with_nodelay(Some(true));
        let grpc = serve_grpc(fleet.clone(), Arc::clone(&metrics), door, incoming).await?;
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
            ended = &mut owner => flat(ended).and_then(|r| r.map_err(ServeError::from)),
            ended = &mut grpc => flat(ended).and_then(|r| r.map_err(|e| ServeError::Grpc(grpc_addr, e))),
            ended = &mut http => flat(ended).and_then(|r| r.map_err(|e| ServeError::Http(metrics_addr, e))),
        };
        stopping.cancel();
        drain(settings.shutdown_timeout, owner, grpc, http).await;
        tracing::info!("stopped");
        ended
    }
}

/// How callers are let in and kept.
#[derive(Debug, Clone)]
pub struct Door {
    /// What they must show.
    pub token: Option<Token>,
    /// For calls that leave it open.
    pub defaults: Defaults,
    /// How often a silent connection is asked whether it lives; it has as long to answer.
    pub keepalive: Duration,
}

/// gRPC on whatever comes in, until the fleet is told to stop. The outer future opens it, the inner one serves.
pub async fn serve_grpc<I, IO, IE>(
    fleet: Fleet,
    metrics: Arc<Metrics>,
    door: Door,
    incoming: I,
) -> Result<impl Future<Output = Result<(), tonic::transport::Error>>, tonic_reflection::server::Error>
where
    I: Stream<Item = Result<IO, IE>>,
    IO: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    IO::ConnectInfo: Clone + Send + Sync + 'static,
    IE: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let stop = fleet.stopping().clone().cancelled_owned();
    let gate = Gate::new(door.token, fleet.ambient().clone(), Arc::clone(&metrics));
    let routes = edge::routes(fleet, metrics, door.defaults).await?;
    Ok(Server::builder()
        .http2_keepalive_interval(Some(door.keepalive))
        .http2_keepalive_timeout(Some(door.keepalive))
        .layer(gate)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop))
}

fn flat<T>(joined: Result<T, JoinError>) -> Result<T, ServeError> {
    joined.map_err(ServeError::Owner)
}

/// Waits for each part that still runs, all within `limit`.
async fn drain<A, B, C>(
    limit: Duration,
    owner: tokio::task::JoinHandle<A>,
    grpc: tokio::task::JoinHandle<B>,
    http: tokio::task::JoinHandle<C>,
) {
    let parts = [owner.abort_handle(), grpc.abort_handle(), http.abort_handle()];
    let over = async { tokio::join!(over(owner), over(grpc), over(http)) };
    if tokio::time::timeout(limit, over).await.is_err() {
        tracing::warn!(?limit, "calls did not end in time; they are cut off");
        for part in parts {
            part.abort();
        }
    }
}

/// How the first one ended is told by [`Bound::run`], which has awaited it.
async fn over<T>(part: tokio::task::JoinHandle<T>) {
    if !part.is_finished() {
        let _ = part.await;
    }
}
