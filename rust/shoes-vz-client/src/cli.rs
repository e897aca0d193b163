//! The operator's command line.
//!
//! Exit codes: 0 success, 1 failure, 2 wrong flags or settings. With `--json` stdout gets one JSON object (`watch`: one
//! per line), also on failure (`{"error":{"code","message"}}`); text for people goes to stderr. Failing to write to stdout is a
//! failure, unless its reader closed it; failing to write to stderr changes nothing.

mod add;
mod args;
mod cordon;
mod fleet;
mod outcome;
mod progress;
mod view;

use std::{
    ffi::OsString,
    io::{self, IsTerminal as _},
    process::ExitCode,
};

use serde_json::json;
use shoes_vz_process::{
    USAGE, log,
    settings::{Mistakes, Values, command_line},
};
use shoes_vz_terminal::{
    output::{self, note},
    text,
};

use args::{Args, Command};
use outcome::{Failure, Format, Target, code_name, print_json};

use crate::settings::{self, Gathered};

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

/// Cleans the text, because servers and guests wrote parts of it, and indents the lines that it quotes.
fn report(failure: &Failure) {
    let text = match failure {
        Failure::Usage(mistakes) => text::indented(&mistakes.to_string(), ""),
        other => text::indented(&other.to_string(), "    "),
    };
    note(&format!("shoes-vz-client: {text}"));
}

async fn dispatch(args: Args, mistakes: Mistakes) -> Result<(), Failure> {
    let values = Values::gather(&args.global.flags, std::env::vars_os(), mistakes);
    let Gathered { server, log: (filter, format) } =
        settings::gather(values, "use --server HOST:PORT, SHOESVZ_SERVER_ADDR, or `server` in --config");
    log::start_to(output::Stderr, &filter, format, io::stderr().is_terminal());
    let format = if args.global.json { Format::Json } else { Format::People };
    let target = server.map(|server| Target { server, format });
    match args.command {
        Command::Add(add) => add::run(target, add).await,
        Command::Delete { cloud_id, timeout } => fleet::delete(&target?, &cloud_id, timeout.0).await,
        Command::List { all, timeout } => fleet::list(&target?, all, timeout.0).await,
        Command::Watch { runner_name, cloud_id } => {
            fleet::watch(&target?, runner_name.unwrap_or_default(), cloud_id.unwrap_or_default()).await
        }
        Command::Cordon { agent, reason, timeout } => {
            cordon::cordon(&target?, agent, reason, timeout.0).await
        }
        Command::Uncordon { agent, timeout } => cordon::uncordon(&target?, agent, timeout.0).await,
        Command::Drain(drain) => cordon::drain(&target?, drain).await,
        Command::Agents { timeout } => fleet::agents(&target?, timeout.0).await,
    }
}
