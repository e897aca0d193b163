//! The command line: a single dash works as well as two, as with Go's flags, and every unknown flag is reported at once.

use std::{
    ffi::{OsStr, OsString},
    io,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    process::ExitCode,
};

use clap::{
    ArgMatches, Command,
    error::{ContextKind, ContextValue, ErrorKind},
};

use super::table::Mistakes;
use crate::log;

/// Exit code of a program that was used wrongly: flags, environment, configuration file.
pub const USAGE: u8 = 2;

/// [`parse`], into a type that `clap` derives.
pub fn read<C: clap::CommandFactory + clap::FromArgMatches>(
    args: impl IntoIterator<Item = OsString>,
) -> Result<(C, Mistakes), clap::Error> {
    let (matches, mistakes) = parse(C::command(), args)?;
    Ok((C::from_arg_matches(&matches)?, mistakes))
}

/// Parses `args` (with the program's name), and lists each flag that `command` does not have as a mistake.
///
/// The error is `clap`'s: `--help`, `--version`, or a mistake after which it cannot continue.
pub fn parse(
    mut command: Command,
    args: impl IntoIterator<Item = OsString>,
) -> Result<(ArgMatches, Mistakes), clap::Error> {
    // So that the flags of a parent are known to its subcommands.
    command.build();
    let mut args = two_dashes(&command, args);
    let mut mistakes = Mistakes::default();
    loop {
        let error = match command.clone().try_get_matches_from(&args) {
            Ok(matches) => return Ok((matches, mistakes)),
            Err(error) => error,
        };
        if error.kind() != ErrorKind::UnknownArgument {
            return Err(with(error, &mistakes));
        }
        let Some(at) = unknown(&error).and_then(|unknown| position(&args, &unknown)) else {
            return Err(with(error, &mistakes));
        };
        let removed = args.remove(at);
        if !removed.as_bytes().starts_with(b"--") {
            // A stray argument may be the value of an unknown flag, so further mistakes would only mislead.
            return Err(with(error, &mistakes));
        }
        mistakes.0.push(first_lines(&error));
        let is_value = |next: &OsString| !next.as_bytes().starts_with(b"-");
        if !removed.as_bytes().contains(&b'=') && args.get(at).is_some_and(is_value) {
            args.remove(at);
        }
    }
}

/// Prints `clap`'s output: help and version, which were asked for, to stdout; a mistake to stderr. Returns the exit code: 0
/// for the first two, unless printing them failed (a reader that has closed the pipe is not a failure), 2 for a mistake.
pub fn explain(error: &clap::Error) -> ExitCode {
    match error.print() {
        // A line that cannot be written to stderr changes nothing.
        _ if error.use_stderr() => ExitCode::from(USAGE),
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            log::say(format_args!("writing to stdout failed: {e}"));
            ExitCode::FAILURE
        }
        Ok(()) | Err(_) => ExitCode::SUCCESS,
    }
}

/// `error`, with the mistakes found before it. An unknown flag is reported even if the command line asks for `--help`.
fn with(error: clap::Error, before: &Mistakes) -> clap::Error {
    if before.0.is_empty() {
        return error;
    }
    if !error.use_stderr() {
        return clap::Error::raw(ErrorKind::UnknownArgument, format!("{}\n", before.0.join("\nerror: ")));
    }
    let all = before.0.iter().map(|m| format!("\nerror: {m}")).collect::<String>();
    clap::Error::raw(error.kind(), format!("{}{all}\n", first_lines(&error)))
}

fn unknown(error: &clap::Error) -> Option<String> {
    match error.get(ContextKind::InvalidArg) {
        Some(ContextValue::String(arg)) => Some(arg.clone()),
        _ => None,
    }
}

/// The position of the argument that `clap` calls `name`: `--name`, or `--name=value`.
fn position(args: &[OsString], name: &str) -> Option<usize> {
    let same = |arg: &OsString| {
        let bytes = arg.as_bytes();
        bytes == name.as_bytes()
            || bytes.strip_prefix(name.as_bytes()).is_some_and(|rest| rest.starts_with(b"="))
    };
    args.iter().skip(1).position(same).map(|at| at + 1)
}

/// `clap`'s message without its usage: "unexpected argument '--grpc-adr' found; a similar argument exists: '--grpc-addr'".
pub fn first_lines(error: &clap::Error) -> String {
    let text = error.to_string();
    let lines = text
        .lines()
        .take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more information"))
        .map(|line| line.trim().trim_start_matches("error: ").trim_start_matches("tip: "))
        .filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join("; ")
}

/// Rewrites `-flag` and `-flag=value` as `--flag`, but only where `command` reads flags: not the value of a flag, nothing
/// after `--`, and not the arguments of a program that a subcommand runs.
pub(super) fn two_dashes(command: &Command, args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut out: Vec<OsString> = args.next().into_iter().collect();
    let mut at = command;
    let mut positionals = 0;
    while let Some(arg) = args.next() {
        let bytes = arg.as_bytes();
        if bytes == b"--" {
            out.push(arg);
            break;
        }
        let Some(flag) = bytes.strip_prefix(b"-").filter(|rest| !rest.is_empty()) else {
            if positionals == 0
                && let Some(sub) = arg.to_str().and_then(|name| at.find_subcommand(name))
            {
                at = sub;
                out.push(arg);
                continue;
            }
            positionals += 1;
            out.push(arg);
            if runs_a_program(at, positionals) {
                break;
            }
            continue;
        };
        let body = flag.strip_prefix(b"-").unwrap_or(flag);
        let (name, has_value) = match body.iter().position(|b| *b == b'=') {
            Some(at) => (&body[..at], true),
            None => (body, false),
        };
        if name.len() < 2 || !name[0].is_ascii_lowercase() {
            // `-h`, `-V`, `-1`, `---x` stay as they are.
            out.push(arg);
            continue;
        }
        let value_follows = !has_value && takes_value(at, name);
        out.push(OsString::from_vec([b"--", body].concat()));
        if value_follows && let Some(value) = args.next() {
            out.push(value);
        }
    }
    out.extend(args);
    out
}

fn takes_value(command: &Command, name: &[u8]) -> bool {
    let named = |arg: &&clap::Arg| arg.get_long().is_some_and(|long| OsStr::new(long).as_bytes() == name);
    command
        .get_arguments()
        .find(named)
        .is_some_and(|arg| arg.get_action().takes_values() && !arg.is_require_equals_set())
}

/// Whether the last positional argument begins the command line of a program to run.
fn runs_a_program(command: &Command, positionals: usize) -> bool {
    command.get_positionals().nth(positionals - 1).is_some_and(clap::Arg::is_trailing_var_arg_set)
}
