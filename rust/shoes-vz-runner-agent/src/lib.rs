//! The guest agent: one in each VM, running as the runner's user. One program for Linux and macOS guests.
//!
//! ```text
//!  host ──guest channel (virtio-serial, vsock)──┐            ┌─ detect ◀─ processes, .runner, _diag
//!                                               ├─▶ api ◀──┤
//!  host ──TCP (token; or loopback)──────────────┘            └─ setup ─▶ supervisor ─▶ /bin/bash script
//!  host ──guest channel, port 22─▶ forward ─▶ sshd
//! ```
//!
//! Opening the guest channel and sending its hello comes first, because the host measures a boot by it. The program is
//! linked statically, so nothing here uses NSS or a resolver.

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

use settings::{NotifyIp, Settings};
pub use state::State;

/// Runs until one of its tasks ends, which is an error.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    abort_on_panic();
    let settings = Arc::new(settings);
    let start_id = state::start_id();
    let state = State::new(&start_id, settings.state_dir.clone(), settings.child_env())?;
    let router = api::router(state.clone());
    let mut tasks: JoinSet<anyhow::Result<()>> = JoinSet::new();

    // The guest channel first: the host waits for its hello.
    let handler = channel::Handler { router: router.clone(), ssh_addr: settings.ssh_addr };
    let hello = shoes_vz_channel::Hello::new(api::VERSION, start_id);
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
    // Sends the hello before anything else takes time.
    tokio::task::yield_now().await;

    tasks.spawn(signals::ignore());
    tasks.spawn(serve_tcp(settings.clone(), api::with_token(router, settings.token.clone()), has_channel));

    let watched = state.clone();
    let paths = settings.runner_paths.clone();
    let which = settings.runner_processes;
    tasks.spawn(async move { detect::run(watched, paths, which).await });
    let notify = (settings.notify_ip == NotifyIp::Auto && !has_channel).then(|| settings.clone());
    tasks.spawn(ip::run(state, notify));

    match tasks.join_next().await {
        Some(Ok(Ok(()))) => anyhow::bail!("a task of the guest agent ended"),
        Some(Ok(Err(error))) => Err(error),
        Some(Err(panic)) => Err(panic).context("a task of the guest agent panicked"),
        None => anyhow::bail!("the guest agent has no tasks"),
    }
}

/// A guest agent that continued without one of its tasks would look healthy but report nothing. After its restart by init
/// or launchd it finds the setup script and the runner again. Guests' builds abort at a panic anyway; this is for others.
fn abort_on_panic() {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        std::process::abort();
    }));
}

/// With a guest channel the host does not need TCP: a job that uses the port must not end the guest agent.
async fn serve_tcp(settings: Arc<Settings>, router: axum::Router, has_channel: bool) -> anyhow::Result<()> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(30));
    let listener = loop {
        match TcpListener::bind(settings.listen).await {
            Ok(listener) => break listener,
            Err(error) if !has_channel => {
                return Err(error).context(format!(
                    "listening on {} failed; is another guest agent running? (--listen)",
                    settings.listen
                ));
            }
            Err(error) if backoff.is_fresh() => {
                warn!(reason = %error, addr = %settings.listen, "listening for HTTP over TCP failed; retrying");
            }
            Err(_) => {}
        }
        tokio::time::sleep(backoff.pause()).await;
    };
    info!(addr = %listener.local_addr()?, token = settings.token.is_some(), "serving the HTTP API");
    axum::serve(listener, router).await.context("serving HTTP failed")
}
