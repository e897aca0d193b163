//! The values of a program's settings, the origin of each, and their mistakes.

use std::{
    collections::BTreeMap,
    ffi::{OsStr, OsString},
    fmt,
    os::unix::ffi::OsStrExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    file,
    table::{CONFIG, Flags, LOG, LOG_FORMAT, Mistakes, Program, Table},
};
use crate::{files, log, secret::Token, units};

/// What a duration of 0 is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Zero {
    Refused,
    /// A value with a special meaning: no limit, or at once.
    Allowed,
}

/// A value and where it was given: `--grpc-addr`, `SHOESVZ_SERVER_GRPC_ADDR`, `/etc/server.toml: grpc-addr`.
#[derive(Debug)]
struct Given {
    value: OsString,
    origin: String,
}

/// The values of a program's settings. Each method that reads one records a mistake and returns `None` when the value is
/// not valid; [`Self::finish`] reports all of them.
#[derive(Debug)]
pub struct Values {
    program: &'static Program,
    given: BTreeMap<&'static str, Given>,
    tables: toml::Table,
    config: Option<PathBuf>,
    /// Whether the file was read without a mistake; true without a file.
    file_is_whole: bool,
    mistakes: Mistakes,
}

impl Values {
    /// Reads every source: `flags`, then `vars` (the process' environment), then the file that one of them names.
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

    /// Whether the file, if one is named, was read without a mistake. If not, a setting that seems to be missing may be in it.
    pub fn file_is_whole(&self) -> bool {
        self.file_is_whole
    }

    /// Where the value of `name` was given.
    pub fn origin(&self, name: &str) -> String {
        self.given.get(name).map_or_else(|| format!("--{name}"), |given| given.origin.clone())
    }

    pub fn is_given(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// Records a mistake in the value of `name`.
    pub fn mistake(&mut self, name: &str, reason: impl fmt::Display) {
        self.mistakes.0.push(format!("{}: {reason}", self.origin(name)));
    }

    /// Records a mistake that does not belong to one setting.
    pub fn general_mistake(&mut self, reason: impl fmt::Display) {
        self.mistakes.0.push(reason.to_string());
    }

    /// The value of `name`, or its default, through `parse`. `None` after a mistake, and when there is neither.
    pub fn parse<T, E: fmt::Display>(
        &mut self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Option<T> {
        let default = self.program.find(name).map_or("", |s| s.default);
        let text = match self.given.get(name).map(|given| given.value.to_str().ok_or(&given.value)) {
            Some(Ok(text)) => text,
            Some(Err(value)) => {
                let reason = format!("{value:?} is not valid UTF-8");
                self.mistake(name, reason);
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

    pub fn text(&mut self, name: &str) -> Option<String> {
        self.parse(name, |text| Ok::<_, String>(text.to_owned()))
    }

    /// A path need not be UTF-8. The table's default when none was given.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        let default =
            || self.program.find(name).map(|s| s.default).filter(|d| !d.is_empty()).map(PathBuf::from);
        self.given.get(name).map(|given| PathBuf::from(&given.value)).or_else(default)
    }

    pub fn switch(&mut self, name: &str) -> Option<bool> {
        self.parse(name, |text| match text {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            other => Err(format!("{other:?} is neither true nor false")),
        })
    }

    pub fn duration(&mut self, name: &str, zero: Zero) -> Option<Duration> {
        self.parse(name, |text| match units::duration(text)? {
            Duration::ZERO if zero == Zero::Refused => Err("it must be more than 0".to_owned()),
            duration => Ok(duration),
        })
    }

    /// In bytes.
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

    pub fn log(&mut self) -> (log::Filter, log::Format) {
        let filter = self.parse(LOG.name, str::parse);
        let format = self.parse(LOG_FORMAT.name, str::parse);
        (filter.unwrap_or_else(log::Filter::info), format.unwrap_or_default())
    }

    /// One of the program's tables in the file, and the file's path.
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
