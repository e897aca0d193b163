//! The guest agent: one in each VM, as the user the runner runs as. One binary for Linux and macOS guests.
//!
//! ```text
//!  host ──guest channel (virtio-serial, vsock)──┐            ┌─ detect ◀─ processes, .runner, _diag
//!                                               ├─▶ api ◀──┤
//!  host ──TCP (token; or loopback)──────────────┘            └─ setup ─▶ supervisor ─▶ /bin/bash script
//!  host ──guest channel, port 22─▶ forward ─▶ sshd
//! ```
//!
//! Nothing comes before opening the guest channel and its hello: the host measures a boot by it. Linked static, so
//! nothing here asks NSS or a resolver.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod api;
mod channel;
pub mod detect;
mod env;
pub mod exec;
mod fd;
mod forward;
mod ip;
pub mod personalize;
mod power;
#[cfg(target_os = "linux")]
mod serial;
pub mod settings;
pub mod setup;
mod signals;
mod state;
mod vsock;

use std::{sync::Arc, time::Duration};

use anyhow::Context;
use shoes_vz_process::backoff::Backoff;
use tokio::{net::TcpListener, task::JoinSet};
use tracing::{info, warn};

use settings::{Ask, Settings};
pub use state::State;

/// The guest agent's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Runs until a task that must not end has ended, which is an error.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    end_with_a_panic();
    let settings = Arc::new(settings);
    let start_id = start_id();
    let state = State::new(&start_id, settings.state_dir.clone(), settings.child_env())?;
    let router = api::router(state.clone());
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();

    // The channel first: the host waits for its hello.
    let handler = channel::Handler::new(router.clone(), settings.ssh_addr);
    let hello = shoes_vz_channel::Hello::new(VERSION, start_id);
    #[cfg(target_os = "linux")]
    if let Some(port) = serial::find(&settings.serial_port) {
        info!(path = %port.display(), "guest channel over a virtio-serial port");
        tasks.spawn(channel::serve_serial(port, hello.clone(), handler.clone()));
    }
    match &settings.vsock {
        settings::Vsock::None => {}
        settings::Vsock::Auto => {
            if let Some(vsock) = vsock::Vsock::bind() {
                tasks.spawn(vsock::serve(vsock, hello, handler));
            }
        }
        settings::Vsock::Unix(dir) => {
            if let Some(sockets) = vsock::UnixSockets::bind(dir) {
                tasks.spawn(vsock::serve(sockets, hello, handler));
            }
        }
    }
    let has_channel = !tasks.is_empty();
    // Let the hello go out before anything else costs time.
    tokio::task::yield_now().await;

    tasks.spawn(signals::ignore());
    tasks.spawn(serve_tcp(settings.clone(), api::with_token(router, settings.token.clone()), has_channel));

    let watched = state.clone();
    let paths = settings.runner_paths.clone();
    let which = settings.runner_processes;
    tasks.spawn(async move { detect::run(watched, paths, which).await });
    let notify = (settings.notify_ip == Ask::Auto && !has_channel).then(|| settings.clone());
    tasks.spawn(ip::run(state, notify));

    match tasks.join_next().await {
        Some(Ok(Ok(()))) => anyhow::bail!("a task of the guest agent ended"),
        Some(Ok(Err(error))) => Err(error),
        Some(Err(panic)) => Err(panic).context("a task of the guest agent panicked"),
        None => anyhow::bail!("nothing to do"),
    }
}

/// A guest agent that goes on without one of its tasks would look healthy and tell nothing. Its next start, by init or
/// launchd, finds the setup script and the runner again. Guests' builds abort at a panic anyway; this is for all others.
fn end_with_a_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        std::process::abort();
    }));
}

/// With a guest channel the host does without TCP: a job that took the port must not cost the channel.
async fn serve_tcp(settings: Arc<Settings>, router: axum::Router, has_channel: bool) -> anyhow::Result<()> {
    let mut pauses = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
    let listener = loop {
        match TcpListener::bind(settings.listen).await {
            Ok(listener) => break listener,
            Err(error) if !has_channel => {
                return Err(error).context(format!(
                    "listening on {}: is another guest agent running? (--listen)",
                    settings.listen
                ));
            }
            Err(error) if pauses.is_fresh() => {
                warn!(%error, addr = %settings.listen, "no HTTP over TCP for now; trying again");
            }
            Err(_) => {}
        }
        tokio::time::sleep(pauses.pause()).await;
    };
    info!(addr = %listener.local_addr()?, token = settings.token.is_some(), "HTTP API");
    axum::serve(listener, router).await.context("serving HTTP")
}

/// Random enough to tell two starts apart, without waiting for the kernel's entropy (`RandomState` does not).
pub(crate) fn start_id() -> String {
    use std::hash::{BuildHasher, Hasher, RandomState};
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u32(std::process::id());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    hasher.write_u128(now.as_nanos());
    format!("{:016x}", hasher.finish())
}
