//! Values, where each comes from, and what is wrong with them.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{CONFIG, Flags, LOG, LOG_FORMAT, Mistakes, Program, Table, file};
use crate::{files, log, secret::Token, units};

/// What 0 is for a duration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zero {
    /// A mistake.
    Refused,
    /// Something of its own: no limit, or at once.
    Allowed,
}

/// A value and where it was given: `--grpc-addr`, `SHOESVZ_SERVER_GRPC_ADDR`, `/etc/server.toml: grpc-addr`.
#[derive(Debug)]
struct Given {
    value: OsString,
    origin: String,
}

/// The values of a program's settings. Each method that reads one notes a mistake and gives `None` when the value cannot
/// be understood; [`Self::finish`] reports all of them.
#[derive(Debug)]
pub struct Values {
    program: &'static Program,
    given: BTreeMap<&'static str, Given>,
    tables: toml::Table,
    config: Option<PathBuf>,
    /// Whether everything that the file says is known; true without a file.
    file_is_whole: bool,
    mistakes: Mistakes,
}

impl Values {
    /// Reads every source: `flags`, then `vars` (the process' environment), then the file that they name.
    pub fn gather<T: Table>(
        flags: &Flags<T>,
        vars: impl IntoIterator<Item = (OsString, OsString)>,
        mistakes: Mistakes,
    ) -> Self {
        let program = T::PROGRAM;
        let mut values = Self {
            program,
            given: BTreeMap::new(),
            tables: toml::Table::new(),
            config: None,
            file_is_whole: true,
            mistakes,
        };
        for (name, value) in &flags.given {
            values.give(name, value, || format!("--{name}"));
        }
        values.environment(vars);
        if let Some(path) = values.path(CONFIG.name) {
            values.file_is_whole = values.file(&path);
            values.config = Some(path);
        }
        values
    }

    fn give(&mut self, name: &'static str, value: &OsStr, origin: impl FnOnce() -> String) {
        if !value.is_empty() {
            self.given.entry(name).or_insert_with(|| Given { value: value.to_owned(), origin: origin() });
        }
    }

    fn environment(&mut self, vars: impl IntoIterator<Item = (OsString, OsString)>) {
        let vars: BTreeMap<OsString, OsString> = vars.into_iter().collect();
        let mut ours = Vec::new();
        for setting in self.program.settings {
            let own = self.program.env(setting);
            for name in std::iter::once(own.as_str()).chain(setting.also_env) {
                if let Some(value) = vars.get(OsStr::new(name)) {
                    self.give(setting.name, value, || name.to_owned());
                }
            }
            ours.push(own);
        }
        let prefix = self.program.env_prefix.as_bytes();
        for name in vars.keys().filter(|name| name.as_bytes().starts_with(prefix)) {
            let name = name.to_string_lossy();
            if !ours.iter().any(|own| *own == name) && !self.program.foreign_env.contains(&&*name) {
                let text = format!(
                    "the environment variable {name} is not a setting of {}; see --help",
                    self.program.name
                );
                self.mistakes.0.push(text);
            }
        }
    }

    fn file(&mut self, path: &Path) -> bool {
        let text = match files::read_text(path, file::LONGEST) {
            Ok(text) => text,
            Err(e) => {
                let origin = self.origin(CONFIG.name);
                self.mistakes.0.push(format!("{origin}: cannot read {}: {e}", path.display()));
                return false;
            }
        };
        let before = self.mistakes.0.len();
        let file = file::read(self.program, &text, path, &mut self.mistakes.0);
        for (setting, text) in file.given {
            self.give(setting.name, OsStr::new(&text), || format!("{}: {}", path.display(), setting.name));
        }
        self.tables = file.tables;
        self.mistakes.0.len() == before
    }

    /// Whether the file, if one is named, was read without a mistake: else a setting that seems to be missing may be there.
    pub fn file_is_whole(&self) -> bool {
        self.file_is_whole
    }

    /// Where the value of `name` comes from.
    pub fn origin(&self, name: &str) -> String {
        self.given.get(name).map_or_else(|| format!("--{name}"), |given| given.origin.clone())
    }

    /// Whether `name` was given, anywhere.
    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// Notes a mistake about the value of `name`.
    pub fn mistake(&mut self, name: &str, why: impl fmt::Display) {
        self.mistakes.0.push(format!("{}: {why}", self.origin(name)));
    }

    /// Notes a mistake that is no one setting's.
    pub fn mistake_of_all(&mut self, why: impl fmt::Display) {
        self.mistakes.0.push(why.to_string());
    }

    /// The value of `name`, else its default, through `parse`. `None` after a mistake, and where there is neither.
    pub fn parse<T, E: fmt::Display>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let default = self.program.find(name).map_or("", |s| s.default);
        let text = match self.given.get(name).map(|given| given.value.to_str().ok_or(&given.value)) {
            Some(Ok(text)) => text,
            Some(Err(value)) => {
                let why = format!("{value:?} is not valid UTF-8");
                self.mistake(name, why);
                return None;
            }
            None if default.is_empty() => return None,
            None => default,
        };
        match parse(text) {
            Ok(value) => Some(value),
            Err(e) => {
                self.mistake(name, e);
                None
            }
        }
    }

    /// A text.
    pub fn text(&mut self, name: &str) -> Option<String> {
        self.parse(name, |text| Ok::<_, String>(text.to_owned()))
    }

    /// A path, which need not be UTF-8; the table's default when none was given.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        let default =
            || self.program.find(name).map(|s| s.default).filter(|d| !d.is_empty()).map(PathBuf::from);
        self.given.get(name).map(|given| PathBuf::from(&given.value)).or_else(default)
    }

    /// A switch.
    pub fn switch(&mut self, name: &str) -> Option<bool> {
        self.parse(name, |text| match text {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            other => Err(format!("{other:?} is neither true nor false")),
        })
    }

    /// A duration.
    pub fn duration(&mut self, name: &str, zero: Zero) -> Option<Duration> {
        self.parse(name, |text| match units::duration(text)? {
            Duration::ZERO if zero == Zero::Refused => Err("it must be more than 0".to_owned()),
            duration => Ok(duration),
        })
    }

    /// A size in bytes.
    pub fn size(&mut self, name: &str) -> Option<u64> {
        self.parse(name, units::size)
    }

    /// A TCP port; `None` also when none was given.
    pub fn port(&mut self, name: &str) -> Option<u16> {
        self.parse(name, |text| text.parse().map_err(|_| format!("{text:?} is not a TCP port (0 to 65535)")))
    }

    /// The token in the file that `name` names; `None` also when none was given.
    pub fn token(&mut self, name: &str) -> Option<Token> {
        let path = self.path(name)?;
        Token::read(&path).map_err(|e| self.mistake(name, e)).ok()
    }

    /// How to log.
    pub fn log(&mut self) -> (log::Filter, log::Format) {
        let filter = self.parse(LOG.name, str::parse);
        let format = self.parse(LOG_FORMAT.name, str::parse);
        (filter.unwrap_or_else(log::Filter::info), format.unwrap_or_default())
    }

    /// One of the program's own tables in the file, and the file's path.
    pub fn table(&mut self, name: &str) -> Option<(toml::Value, PathBuf)> {
        let value = self.tables.remove(name)?;
        Some((value, self.config.clone()?))
    }

    /// `whole`, unless there were mistakes.
    pub fn finish<T>(self, whole: Option<T>) -> Result<T, Mistakes> {
        match whole {
            Some(whole) if self.mistakes.0.is_empty() => Ok(whole),
            _ => Err(self.mistakes),
        }
    }
}
