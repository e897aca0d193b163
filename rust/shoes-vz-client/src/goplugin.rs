//! The plugin's side of hashicorp/go-plugin's gRPC protocol (its server.go, docs/internals.md).
//!
//! ```text
//! host                                    plugin
//!  ├─ spawn, cookie in the environment ──▶ Settings::from_env
//!  │                                       bind a socket only its owner can reach
//!  ◀─ stdout: 1|1|unix|<path>|grpc| ────── the handshake line, and nothing else on stdout
//!  ├─ Health.Check("plugin"), GRPCStdio, GRPCBroker, the plugin's own service
//!  ├─ GRPCController.Shutdown ───────────▶ streams end, calls in flight are cancelled, socket removed, exit
//!  ╳  host gone (its end of stdout closes)▶ the same
//! ```
//! How it fails: no socket can be bound (exit 1, the reason on stderr); the host wants automatic mTLS, which is not spoken
//! (the same); SIGKILL leaves the socket's folder behind, as any plugin does.

mod handshake;
pub mod hclog;
mod listener;
mod parent;
mod side;

use std::{io::Write as _, time::Duration};

use shoes_vz_proto::goplugin::{
    grpc_broker_server::GrpcBrokerServer, grpc_controller_server::GrpcControllerServer,
    grpc_stdio_server::GrpcStdioServer,
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};

pub use handshake::{Handshake, Settings};
pub use listener::BindError;

/// How long open connections may take to end; go-plugin's host kills after 2 s.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// Why the plugin could not serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No way for the host to reach the plugin.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// PLUGIN_CLIENT_CERT is set.
    #[error(
        "the plugin host asks for automatic mTLS (PLUGIN_CLIENT_CERT is set), which this plugin does not speak; \
         myshoes does not ask for it: unset the variable"
    )]
    AutoMtls,
    /// Signal handlers.
    #[error("installing signal handlers failed: {0}")]
    Signals(#[source] std::io::Error),
    /// The handshake line.
    #[error("writing the handshake line to stdout failed: {0}")]
    Line(#[source] std::io::Error),
    /// The gRPC server.
    #[error("serving the plugin's gRPC failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Serves `routes` and go-plugin's side services until the host shuts the plugin down, goes away, or SIGTERM comes.
///
/// `stop` is cancelled then; calls in flight should end when it is.
pub async fn serve(settings: &Settings, routes: Routes, stop: CancellationToken) -> Result<(), ServeError> {
    if settings.wants_auto_mtls {
        return Err(ServeError::AutoMtls);
    }
    if let Some(hosts) = &settings.foreign_versions {
        tracing::warn!(
            host = hosts,
            plugin = settings.version,
            "the host lists other versions of the plugin's protocol"
        );
    }
    // The terminal's Ctrl-C reaches the whole process group; ending is the host's business, so SIGINT is swallowed.
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let listener = listener::bind(settings)?;
    say(&settings.line(listener.network(), &listener.address())).map_err(ServeError::Line)?;

    let ending = stop.clone();
    tokio::spawn(async move {
        let parent = parent::gone();
        tokio::pin!(parent);
        loop {
            tokio::select! {
                _ = interrupt.recv() => tracing::debug!("SIGINT ignored: the plugin's host decides when it ends"),
                _ = terminate.recv() => break,
                () = &mut parent => break,
                () = ending.cancelled() => break,
            }
        }
        ending.cancel();
    });

    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status("plugin", tonic_health::ServingStatus::Serving).await;
    let router = Server::builder()
        .add_routes(routes)
        .add_service(health)
        .add_service(GrpcStdioServer::new(side::Stdio(stop.clone())))
        .add_service(GrpcControllerServer::new(side::Controller(stop.clone())))
        .add_service(GrpcBrokerServer::new(side::Broker(stop.clone())));
    let signal = stop.clone().cancelled_owned();
    let overdue = async {
        stop.cancelled().await;
        tokio::time::sleep(SHUTDOWN_GRACE).await;
    };
    let (socket, served) = listener.split();
    let serving = async {
        match served {
            listener::Stream::Unix(l) => {
                router.serve_with_incoming_shutdown(UnixListenerStream::new(l), signal).await
            }
            listener::Stream::Tcp(l) => {
                router.serve_with_incoming_shutdown(TcpListenerStream::new(l), signal).await
            }
        }
    };
    let result = tokio::select! {
        result = serving => result.map_err(ServeError::from),
        // The host holds its connection open: leave anyway.
        () = overdue => Ok(()),
    };
    drop(socket);
    result
}

fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes())?;
    out.flush()
}
