//! `shoes-vz-server`: settings, build, spawn, wait, drain.

use std::process::ExitCode;

use anyhow::Context as _;
use shoes_vz_process::{USAGE, log, say, settings::command_line, signals::Signals};
use shoes_vz_server::{
    serve,
    settings::{Settings, Unusable},
};

fn main() -> ExitCode {
    let settings = match Settings::read(std::env::args_os(), std::env::vars_os()) {
        Ok(settings) => settings,
        Err(Unusable::Flags(e)) => return command_line::explain(&e),
        Err(Unusable::Mistakes(e)) => {
            say(format_args!("shoes-vz-server: {e}"));
            return ExitCode::from(USAGE);
        }
    };
    let (filter, format) = &settings.log;
    let _log = log::start(filter, *format, log::Writer::Service);
    match run(settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            tracing::error!(reason = format!("{e:#}"), "server failed");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut signals = Signals::catch().context("cannot install signal handlers")?;
    let stop = async move {
        let signal = signals.stop().await;
        tracing::info!(signal, "stopping");
    };
    serve::bind(settings).await?.run(stop).await?;
    Ok(())
}
