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
//! of them, a value keeps its origin for messages, and every mistake is reported at once. An empty value counts as none:
//! the Go implementation's defaults are empty strings.
//!
//! Values stay as the operating system gave them until they are parsed: a path need not be UTF-8; a text that is not
//! UTF-8 is a mistake, never ignored.

pub mod command_line;
mod file;
mod values;

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    marker::PhantomData,
};

pub use file::scalar;
pub use values::{Values, Zero};

/// One setting, under the same name everywhere.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The flag's name without dashes; `_` for `-` may be used in the file.
    pub name: &'static str,
    /// What stands for the value in `--help`; "" for a switch.
    pub value: &'static str,
    /// The default as it would be written; "" when there is none.
    pub default: &'static str,
    /// In place of a default that is not a value: "this host's name".
    pub default_note: &'static str,
    /// One sentence without a full stop.
    pub help: &'static str,
    /// A second environment variable that is read, after the program's own.
    pub also_env: Option<&'static str>,
}

impl Setting {
    /// A setting with a value.
    pub const fn new(name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { name, value, default: "", default_note: "", help, also_env: None }
    }

    /// A switch: `--name`, `--name=true` or `--name=false`; off unless given.
    pub const fn switch(name: &'static str, help: &'static str) -> Self {
        Self { name, value: "", default: "false", default_note: "", help, also_env: None }
    }

    /// With a default.
    pub const fn or(mut self, default: &'static str) -> Self {
        self.default = default;
        self
    }

    /// With a default that only this host knows.
    pub const fn or_else(mut self, note: &'static str) -> Self {
        self.default_note = note;
        self
    }

    /// With a second environment variable.
    pub const fn also_env(mut self, name: &'static str) -> Self {
        self.also_env = Some(name);
        self
    }

    fn is_switch(&self) -> bool {
        self.value.is_empty()
    }
}

/// The file with settings: every program has it.
pub const CONFIG: Setting =
    Setting::new("config", "FILE", "TOML file with these settings, named as the flags");
/// Which lines are logged.
pub const LOG: Setting =
    Setting::new("log", "FILTER", "Which lines to log: error, warn, info, debug or trace, also by module")
        .or("info")
        .also_env("SHOESVZ_LOG");
/// How lines are logged.
pub const LOG_FORMAT: Setting = Setting::new("log-format", "FORMAT", "How to log: text or json").or("text");

/// All settings of one program.
#[derive(Debug)]
pub struct Program {
    /// Its name, for messages.
    pub name: &'static str,
    /// How its environment variables begin.
    pub env_prefix: &'static str,
    /// Variables that begin so and belong to another program.
    pub foreign_env: &'static [&'static str],
    /// Every setting, of every subcommand.
    pub settings: &'static [Setting],
    /// Keys of the file that hold tables, which the program reads itself.
    pub tables: &'static [&'static str],
}

impl Program {
    fn env(&self, setting: &Setting) -> String {
        format!("{}{}", self.env_prefix, setting.name.replace('-', "_").to_uppercase())
    }

    fn find(&self, name: &str) -> Option<&'static Setting> {
        self.settings.iter().find(|s| s.name == name)
    }
}

/// The settings that a command takes as flags: the program's, or some of them.
pub trait Table: 'static {
    /// Whose they are.
    const PROGRAM: &'static Program;
    /// Names of those that this command takes; `None`: all of them.
    const ONLY: Option<&'static [&'static str]> = None;
    /// Whether the flags may stand before and after a subcommand.
    const GLOBAL: bool = false;
}

/// A [`Table`]'s flags, as `clap` found them. To be flattened into a `clap` parser.
pub struct Flags<T> {
    given: BTreeMap<&'static str, OsString>,
    table: PhantomData<T>,
}

impl<T> Flags<T> {
    /// From name and value, for tests and for callers without a command line.
    pub fn of<'a>(given: impl IntoIterator<Item = (&'static str, &'a OsStr)>) -> Self {
        Self { given: given.into_iter().map(|(n, v)| (n, v.to_owned())).collect(), table: PhantomData }
    }
}

impl<T> Default for Flags<T> {
    fn default() -> Self {
        Self::of([])
    }
}

impl<T> Clone for Flags<T> {
    fn clone(&self) -> Self {
        Self { given: self.given.clone(), table: PhantomData }
    }
}

impl<T> fmt::Debug for Flags<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.given.fmt(f)
    }
}

impl<T: Table> clap::FromArgMatches for Flags<T> {
    fn from_arg_matches(matches: &clap::ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &clap::ArgMatches) -> Result<(), clap::Error> {
        for setting in taken::<T>() {
            if let Some(value) = matches.get_one::<OsString>(setting.name) {
                self.given.insert(setting.name, value.clone());
            }
        }
        Ok(())
    }
}

impl<T: Table> clap::Args for Flags<T> {
    fn augment_args(command: clap::Command) -> clap::Command {
        command.args(taken::<T>().map(argument::<T>))
    }

    fn augment_args_for_update(command: clap::Command) -> clap::Command {
        Self::augment_args(command)
    }
}

fn taken<T: Table>() -> impl Iterator<Item = &'static Setting> {
    T::PROGRAM.settings.iter().filter(|s| T::ONLY.is_none_or(|only| only.contains(&s.name)))
}

fn argument<T: Table>(setting: &'static Setting) -> clap::Arg {
    let default = match (setting.default, setting.default_note) {
        ("", "") => String::new(),
        ("", note) => format!(" [default: {note}]"),
        (_, _) if setting.is_switch() => String::new(),
        (value, _) => format!(" [default: {value}]"),
    };
    let also = setting.also_env.map_or(String::new(), |also| format!(", {also}"));
    let env = format!(" [env: {}{also}]", T::PROGRAM.env(setting));
    let arg = clap::Arg::new(setting.name)
        .long(setting.name)
        .help(format!("{}{default}", setting.help))
        .long_help(format!("{}{default}{env}", setting.help))
        .value_parser(clap::value_parser!(OsString))
        .global(T::GLOBAL);
    if setting.is_switch() {
        arg.value_name("true|false").num_args(0..=1).require_equals(true).default_missing_value("true")
    } else {
        arg.value_name(setting.value).allow_hyphen_values(true)
    }
}

/// Everything that is wrong with a program's settings, one text each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("1 setting is wrong:")?,
            n => write!(f, "{n} settings are wrong:")?,
        }
        self.0.iter().try_for_each(|m| write!(f, "\n  - {m}"))
    }
}

impl std::error::Error for Mistakes {}

/// Why there are no settings.
#[derive(Debug)]
pub enum Unusable {
    /// `--help`, `--version`, or a command line that cannot be read.
    Flags(clap::Error),
    /// Every mistake there is.
    Mistakes(Mistakes),
}

#[cfg(test)]
mod tests;
