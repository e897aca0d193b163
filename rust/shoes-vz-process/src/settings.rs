//! Settings: a program's flags, environment, TOML file and defaults, read through one table.
//!
//! ```text
//!  --grpc-addr, -grpc-addr            command_line::parse   ┐ first one that
//!  SHOESVZ_SERVER_GRPC_ADDR           Values::gather        │ is not empty
//!  grpc-addr / grpc_addr in --config  Values::gather        │ counts
//!  the table's default                Values::parse …       ┘
//! ```
//!
//! Every program reads the same grammar in each of these places. A name that the table does not have is refused in all
//! of them, error messages name the origin of each value, and every mistake is reported at once. An empty value counts as
//! none: the Go implementation's defaults are empty strings.
//!
//! Values stay as the operating system gave them until they are parsed: a path need not be UTF-8; a text that is not
//! UTF-8 is a mistake, never ignored.

pub mod command_line;
mod file;
mod table;
mod values;

pub use file::scalar;
pub use table::{CONFIG, Flags, LOG, LOG_FORMAT, Mistakes, Program, Setting, Table, Unusable};
pub use values::{Values, Zero};

#[cfg(test)]
mod tests;
