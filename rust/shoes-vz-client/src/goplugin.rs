//! The plugin's side of hashicorp/go-plugin's gRPC protocol (its server.go, docs/internals.md).
//!
//! ```text
//! host                                    plugin
//!  ├─ spawn, cookie in the environment ──▶ Settings::from_env
//!  │                                       bind a socket that only its owner can reach
//!  ◀─ stdout: 1|1|unix|<path>|grpc| ────── the handshake line, and nothing else on stdout
//!  ├─ Health.Check("plugin"), GRPCStdio, GRPCBroker, the service of the plugin
//!  ├─ GRPCController.Shutdown ───────────▶ streams end, calls in flight are cancelled, socket removed, exit
//!  ╳  host ends (its end of stdout closes) ▶ the same
//! ```
//! Failures: no socket can be bound (exit code 1, the reason on stderr); the host requires automatic mTLS, which is not
//! supported (the same); SIGKILL leaves the directory of the socket behind, as with any plugin.

mod handshake;
pub mod hclog;
mod listener;
mod parent;
mod services;

use std::time::Duration;

use shoes_vz_proto::goplugin::{
    grpc_broker_server::GrpcBrokerServer, grpc_controller_server::GrpcControllerServer,
    grpc_stdio_server::GrpcStdioServer,
};
use shoes_vz_terminal::output;
use tokio::signal::unix::{SignalKind, signal};
use tokio_stream::wrappers::{TcpListenerStream, UnixListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};

pub use handshake::{Handshake, Settings};
pub use listener::BindError;
use listener::Listener;

/// How long open connections may take to end; the go-plugin host kills after 2 s.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error(transparent)]
    Bind(#[from] BindError),
    /// PLUGIN_CLIENT_CERT is set.
    #[error(
        "the plugin host requires automatic mTLS (PLUGIN_CLIENT_CERT is set), which this plugin does not support; \
         myshoes does not require it: unset the variable"
    )]
    AutoMtls,
    #[error("installing signal handlers failed: {0}")]
    Signals(#[source] std::io::Error),
    #[error("writing the handshake line to stdout failed: {0}")]
    Line(#[source] std::io::Error),
    #[error("serving gRPC to the plugin host failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// Serves `routes` and go-plugin's services until the host shuts the plugin down or ends, or SIGTERM arrives.
///
/// Cancels `stop` then; calls in flight are to end with it.
pub async fn serve(settings: &Settings, routes: Routes, stop: CancellationToken) -> Result<(), ServeError> {
    if settings.auto_mtls {
        return Err(ServeError::AutoMtls);
    }
    if let Some(hosts) = &settings.foreign_versions {
        tracing::warn!(
            host_versions = hosts,
            plugin_version = settings.version,
            "plugin host does not list the protocol version of this plugin"
        );
    }
    // Ctrl-C in the terminal reaches the whole process group. Only the host ends its plugin, so SIGINT is ignored.
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServeError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(ServeError::Signals)?;
    let listener = listener::bind(settings)?;
    output::print(&settings.line(listener.network(), &listener.address)).map_err(ServeError::Line)?;

    let ending = stop.clone();
    tokio::spawn(async move {
        let parent = parent::ended();
        tokio::pin!(parent);
        loop {
            tokio::select! {
                _ = interrupt.recv() => tracing::debug!(signal = "SIGINT", "signal ignored; only the plugin host ends its plugin"),
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
        .add_service(GrpcStdioServer::new(services::Stdio(stop.clone())))
        .add_service(GrpcControllerServer::new(services::Controller(stop.clone())))
        .add_service(GrpcBrokerServer::new(services::Broker(stop.clone())));
    let signal = stop.clone().cancelled_owned();
    let grace = async {
        stop.cancelled().await;
        tokio::time::sleep(SHUTDOWN_GRACE).await;
    };
    let Listener { socket, stream, .. } = listener;
    let serving = async {
        match stream {
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
        // The host keeps its connection open: end anyway.
        () = grace => Ok(()),
    };
    drop(socket);
    result
}
