//! The operator's command line.
//!
//! Exit codes: 0 done, 1 failed, 2 used wrongly. With `--json` stdout gets one JSON object (`watch`: one for each line),
//! also on failure (`{"error":{"code","message"}}`); text for people goes to stderr. A stdout that cannot be written is a
//! failure, unless its reader has had enough; a stderr that cannot be written changes nothing.

mod add;
pub(crate) mod args;
mod cordon;
mod fleet;
mod progress;
pub(crate) mod settings;
mod view;

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use serde_json::{Value, json};
use shoes_vz_process::{
    USAGE, log,
    settings::{Mistakes, Values, command_line},
};
use shoes_vz_terminal::{
    output::{self, note, print},
    text,
};
use tonic::{Code, Status};

use args::{Args, Command};
use settings::{Gathered, Settings};

/// How `stdout` is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    People,
    Json,
}

/// Why a command did not do its job.
#[derive(Debug, thiserror::Error)]
enum Failure {
    /// Every mistake found in flags, environment, configuration file and input, at once.
    #[error("{0}")]
    Usage(Mistakes),
    /// The server's or the transport's answer.
    #[error("{} ({})", .0.message(), code_name(.0.code()))]
    Call(#[from] Status),
    /// stdout.
    #[error("writing to stdout failed: {0}")]
    Output(#[from] io::Error),
}

/// Runs the command line.
pub async fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let (args, mistakes) = match command_line::read::<Args>(args) {
        Ok(read) => read,
        Err(error) => return command_line::explain(&error),
    };
    let format = args.global.json;
    match dispatch(args, mistakes).await {
        Ok(()) => ExitCode::SUCCESS,
        // `list | head`.
        Err(Failure::Output(e)) if output::is_reader_closed(&e) => ExitCode::SUCCESS,
        Err(failure) => {
            report(&failure);
            let (code, exit) = match &failure {
                Failure::Usage(_) => ("USAGE", USAGE),
                Failure::Call(status) => (code_name(status.code()), 1),
                Failure::Output(_) => ("OUTPUT", 1),
            };
            if format {
                let message = match &failure {
                    Failure::Call(status) => status.message().to_owned(),
                    other => other.to_string(),
                };
                let error = json!({ "error": { "code": code, "message": message } });
                if let Err(error) = print_json(&error) {
                    report(&Failure::Output(error));
                }
            }
            ExitCode::from(exit)
        }
    }
}

/// The texts of servers and guests are in it, so it is cleaned; the lines they quote stand below it, indented.
fn report(failure: &Failure) {
    let text = match failure {
        Failure::Usage(mistakes) => text::indented(&mistakes.to_string(), ""),
        other => text::indented(&other.to_string(), "    "),
    };
    note(&format!("shoes-vz-client: {text}"));
}

async fn dispatch(args: Args, mistakes: Mistakes) -> Result<(), Failure> {
    let values = Values::gather(&args.global.flags, std::env::vars_os(), mistakes);
    let Gathered { server, log: (filter, format), mistakes } =
        settings::gather(values, "use --server HOST:PORT, SHOESVZ_SERVER_ADDR, or `server` in --config");
    log::start_to(output::Stderr, &filter, format, io::stderr().is_terminal());
    let format = if args.global.json { Format::Json } else { Format::People };
    let settings = server.map(|server| Settings { server, format });
    match args.command {
        Command::Add(add) => add::run(settings, add, mistakes).await,
        Command::Delete { cloud_id, timeout } => {
            let settings = settings.ok_or(Failure::Usage(mistakes))?;
            fleet::delete(&settings, &cloud_id, timeout.0).await
        }
        Command::List { all, timeout } => {
            let settings = settings.ok_or(Failure::Usage(mistakes))?;
            fleet::list(&settings, all, timeout.0).await
        }
        Command::Watch { runner_name, cloud_id } => {
            let settings = settings.ok_or(Failure::Usage(mistakes))?;
            fleet::watch(&settings, runner_name.unwrap_or_default(), cloud_id.unwrap_or_default()).await
        }
        Command::Cordon { agent, reason, timeout } => {
            let settings = settings.ok_or(Failure::Usage(mistakes))?;
            cordon::cordon(&settings, agent, reason, timeout.0).await
        }
        Command::Uncordon { agent, timeout } => {
            let settings = settings.ok_or(Failure::Usage(mistakes))?;
            cordon::uncordon(&settings, agent, timeout.0).await
        }
        Command::Drain(drain) => {
            let settings = settings.ok_or(Failure::Usage(mistakes))?;
            cordon::drain(&settings, drain).await
        }
        Command::Agents { timeout } => {
            let settings = settings.ok_or(Failure::Usage(mistakes))?;
            fleet::agents(&settings, timeout.0).await
        }
    }
}

fn print_json(value: &Value) -> io::Result<()> {
    print(&text::json(&value.to_string()))
}

/// gRPC's own spelling.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
