//! What every program of shoes-vz does alike, written once.
//!
//! | module | what it answers |
//! |---|---|
//! | [`settings`] | flags, environment, TOML file, defaults: where each value comes from, and every mistake at once |
//! | [`units`] | durations and sizes as operators write and read them |
//! | [`secret`] | tokens that are read from files, compared in constant time, and never printed |
//! | [`log`] | one log format, to stderr, that can lose lines but never change what the program does |
//! | [`panics`] | a panic is logged and counted, wherever it happens |
//! | [`signals`] | which signals stop a program, and which are ignored |
//! | [`files`] | whole files: replaced durably, read up to a limit |
//! | [`backoff`] | growing pauses between attempts |
//! | [`chain`] | an error with its causes on one line |
//!
//! Nothing here knows runners, agents or VMs.

pub mod backoff;
pub mod chain;
pub mod files;
pub mod log;
pub mod panics;
pub mod secret;
pub mod settings;
pub mod signals;
pub mod units;

/// Exit code of a program that was used wrongly: flags, environment, configuration file.
pub const USAGE: u8 = 2;

/// Writes one line to stderr. A stderr that cannot be written changes nothing, so no error is returned.
pub fn say(line: impl std::fmt::Display) {
    use std::io::Write as _;
    // The line is all there was to do; `eprintln!` would panic instead.
    if writeln!(std::io::stderr(), "{line}").is_err() {
        log::count_lost(1);
    }
}
