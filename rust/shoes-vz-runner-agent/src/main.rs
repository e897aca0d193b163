//! `shoes-vz-runner-agent`; the library describes it.

use std::{ffi::OsString, path::Path, process::ExitCode};

use shoes_vz_process::{USAGE, log, say, settings::command_line};
use shoes_vz_runner_agent::{
    personalize, run,
    settings::{Settings, Unusable},
    setup,
};
use tracing::error;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // Hidden, and before everything else: the supervisor outlives the guest agent and must stay small.
    if args.get(1).is_some_and(|a| a == setup::supervise::SUPERVISE) {
        return match (args.get(2), args.get(3)) {
            (Some(dir), None) => setup::supervise::run(Path::new(dir)),
            (Some(dir), Some(role)) if role == setup::supervise::SCRIPT => {
                setup::supervise::become_script(Path::new(dir))
            }
            _ => ExitCode::from(USAGE),
        };
    }
    if args.get(1).is_some_and(|a| a == personalize::HELPER) && args.len() == 2 {
        return personalize::helper::run();
    }
    let settings = match Settings::read(args, std::env::vars_os()) {
        Ok(settings) => settings,
        Err(Unusable::Flags(e)) => return command_line::explain(&e),
        Err(Unusable::Mistakes(e)) => {
            say(format_args!("shoes-vz-runner-agent: {e}"));
            return ExitCode::from(USAGE);
        }
    };
    let (filter, format) = &settings.log;
    let _log = log::start(filter, *format, log::Writer::Service);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            error!(reason = %error, "starting the async runtime failed");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(settings)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            error!(reason = format!("{error:#}"), "guest agent failed");
            ExitCode::FAILURE
        }
    }
}
