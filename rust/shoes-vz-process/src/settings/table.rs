//! A program's table of settings, and its flags in `clap`.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    marker::PhantomData,
};

/// One setting, under the same name everywhere.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// The flag's name without dashes; `_` for `-` may be used in the file.
    pub name: &'static str,
    /// What stands for the value in `--help`; "" for a switch.
    pub value: &'static str,
    /// The default in the form a user writes it; "" when there is none.
    pub default: &'static str,
    /// Describes a default that is not a fixed value: "this host's name".
    pub default_note: &'static str,
    /// One sentence without a full stop.
    pub help: &'static str,
    /// A second environment variable, read when the program's variable is not set.
    pub also_env: Option<&'static str>,
}

impl Setting {
    pub const fn new(name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self { name, value, default: "", default_note: "", help, also_env: None }
    }

    pub const fn duration(name: &'static str, help: &'static str) -> Self {
        Self::new(name, "DURATION", help)
    }

    /// A switch: `--name`, `--name=true` or `--name=false`; off unless given.
    pub const fn switch(name: &'static str, help: &'static str) -> Self {
        Self { name, value: "", default: "false", default_note: "", help, also_env: None }
    }

    pub const fn or(mut self, default: &'static str) -> Self {
        self.default = default;
        self
    }

    /// With a default that depends on the host.
    pub const fn or_else(mut self, note: &'static str) -> Self {
        self.default_note = note;
        self
    }

    pub const fn also_env(mut self, name: &'static str) -> Self {
        self.also_env = Some(name);
        self
    }

    fn is_switch(&self) -> bool {
        self.value.is_empty()
    }
}

pub const CONFIG: Setting =
    Setting::new("config", "FILE", "TOML file with these settings, named as the flags");
pub const LOG: Setting =
    Setting::new("log", "FILTER", "Which lines to log: error, warn, info, debug or trace, also by module")
        .or("info")
        .also_env("SHOESVZ_LOG");
pub const LOG_FORMAT: Setting = Setting::new("log-format", "FORMAT", "How to log: text or json").or("text");

#[derive(Debug)]
pub struct Program {
    pub name: &'static str,
    pub env_prefix: &'static str,
    /// Variables with this prefix that belong to another program.
    pub foreign_env: &'static [&'static str],
    /// Of all subcommands together.
    pub settings: &'static [Setting],
    /// Keys of the file that hold tables, which the program reads itself.
    pub tables: &'static [&'static str],
}

impl Program {
    pub(super) fn env(&self, setting: &Setting) -> String {
        format!("{}{}", self.env_prefix, setting.name.replace('-', "_").to_uppercase())
    }

    pub(super) fn find(&self, name: &str) -> Option<&'static Setting> {
        self.settings.iter().find(|s| s.name == name)
    }
}

/// The settings that a command takes as flags: all of the program's, or some of them.
pub trait Table: 'static {
    const PROGRAM: &'static Program;
    /// The names of those that this command takes; `None`: all of them.
    const ONLY: Option<&'static [&'static str]> = None;
    /// Whether the flags are accepted both before and after a subcommand.
    const GLOBAL: bool = false;
}

/// The values of a [`Table`]'s flags. To be flattened into a `clap` parser.
pub struct Flags<T> {
    pub(super) given: BTreeMap<&'static str, OsString>,
    table: PhantomData<T>,
}

impl<T> Flags<T> {
    /// From names and values, for tests and for callers without a command line.
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

/// Everything that is wrong with a program's settings, one text for each mistake.
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

/// Why a program's settings cannot be used.
#[derive(Debug)]
pub enum Unusable {
    /// `--help`, `--version`, or a command line that cannot be parsed.
    Flags(clap::Error),
    Mistakes(Mistakes),
}
