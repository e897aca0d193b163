//! What every program of shoes-vz does alike, written once.
//!
//! | module | what it is for |
//! |---|---|
//! | [`settings`] | flags, environment, TOML file, defaults: where each value comes from, and every mistake at once |
//! | [`units`] | durations and sizes as operators write and read them |
//! | [`secret`] | tokens that are read from files, compared in constant time, and never printed |
//! | [`log`] | one log format, to stderr; it can lose lines, but never blocks or ends the program |
//! | [`panics`] | a panic is logged and counted, wherever it happens |
//! | [`signals`] | which signals stop a program, and which are ignored |
//! | [`files`] | whole files: replaced durably, and read up to a limit |
//! | [`backoff`] | growing pauses between attempts |
//! | [`chain`] | an error with its causes on one line |
//!
//! Nothing here depends on runners, agents or VMs.

pub mod backoff;
pub mod chain;
pub mod files;
pub mod log;
pub mod panics;
pub mod secret;
pub mod settings;
pub mod signals;
pub mod units;

pub use log::say;
pub use settings::command_line::USAGE;
