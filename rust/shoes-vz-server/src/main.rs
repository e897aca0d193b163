//! `shoes-vz-server`: settings, build, spawn, wait, drain.

use std::process::ExitCode;

use anyhow::Context as _;
use shoes_vz_server::{
    serve,
    settings::{LogFormat, Settings, Unusable},
};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let vars = std::env::vars_os().filter_map(|(n, v)| Some((n.into_string().ok()?, v.into_string().ok()?)));
    let settings =
        match Settings::read(std::env::args_os().skip(1), vars, |path| std::fs::read_to_string(path)) {
            Ok(settings) => settings,
            Err(Unusable::Flags(e)) => e.exit(),
            Err(e) => {
                eprintln!("shoes-vz-server: {e}");
                return ExitCode::from(2);
            }
        };
    log_as(settings.log_format);
    match run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!(error = format!("{e:#}"), "shoes-vz-server ends");
            eprintln!("shoes-vz-server: {e:#}");
            ExitCode::FAILURE
        }
    }
}

fn log_as(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let log = tracing_subscriber::fmt().with_env_filter(filter);
    match format {
        LogFormat::Json => log.json().flatten_event(true).init(),
        LogFormat::Text => log.init(),
    }
}

#[tokio::main]
async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    let stop = async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping");
    };
    serve::bind(settings).await?.run(stop).await?;
    Ok(())
}
