//! Terminal output of the programs that people use interactively: the client and the host agent's commands.
//!
//! | module | what it is for |
//! |---|---|
//! | [`text`] | text from other sources, without what controls a terminal |
//! | [`output`] | lines to stdout and stderr, which never panic |
//! | [`table`] | aligned columns, whatever alphabet the names are in |
//! | [`time`] | `12 s ago` |
//! | [`progress`] | one live line on a terminal, plain lines elsewhere |
//!
//! Nothing here depends on runners, agents or VMs.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod live_line;
pub mod output;
pub mod progress;
pub mod table;
pub mod text;
pub mod time;
