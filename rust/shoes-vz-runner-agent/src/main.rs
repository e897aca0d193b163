//! `shoes-vz-runner-agent`: see the library.

use std::{ffi::OsString, path::Path, process::ExitCode};

use clap::Parser;
use shoes_vz_runner_agent::{go_style, renew, run, settings, setup};
use tracing::error;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // Hidden, and before all else: it shall outlive the guest agent and weigh next to nothing.
    if args.get(1).is_some_and(|a| a == setup::SUPERVISE) {
        return match (args.get(2), args.get(3)) {
            (Some(dir), None) => setup::supervise::run(Path::new(dir)),
            (Some(dir), Some(what)) if what == setup::supervise::SCRIPT => {
                setup::supervise::become_script(Path::new(dir))
            }
            _ => ExitCode::from(2),
        };
    }
    if args.get(1).is_some_and(|a| a == renew::HELPER) && args.len() == 2 {
        return renew::helper::run();
    }
    let flags = settings::Flags::parse_from(go_style(args));
    let filter = tracing_subscriber::EnvFilter::try_from_env("SHOESVZ_RUNNER_AGENT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let settings = match flags.resolve() {
        Ok(settings) => settings,
        Err(mistakes) => {
            eprintln!("{mistakes}");
            return ExitCode::from(2);
        }
    };
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(%error, "no runtime");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
