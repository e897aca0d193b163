//! What the programs that a person types at print: the client and the host agent's commands.
//!
//! | module | what it is for |
//! |---|---|
//! | [`text`] | text that came from others, without what a terminal would obey |
//! | [`output`] | lines to stdout and stderr; never a panic, whoever reads them |
//! | [`table`] | columns that stand below each other, whatever alphabet the names are in |
//! | [`time`] | `12 s ago` |
//! | [`progress`] | one live line on a terminal, plain lines elsewhere |
//!
//! Nothing here knows runners, agents or VMs.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod output;
pub mod progress;
pub mod table;
pub mod text;
pub mod time;
