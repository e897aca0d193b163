//! The TOML file.

use std::path::Path;

use super::table::{CONFIG, Program, Setting};

/// Longest configuration file that is read, in bytes.
pub(super) const LONGEST: u64 = 1 << 20;

/// The content of the file: settings in the form of flags' values, and the program's tables.
#[derive(Debug, Default)]
pub(super) struct File {
    pub(super) given: Vec<(&'static Setting, String)>,
    pub(super) tables: toml::Table,
}

pub(super) fn read(program: &Program, text: &str, path: &Path, mistakes: &mut Vec<String>) -> File {
    let at = path.display();
    let table: toml::Table = match text.parse() {
        Ok(table) => table,
        Err(e) => {
            // Does not quote the line: a file named by mistake may hold a secret.
            let line = e.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            mistakes.push(format!("{at} is not valid TOML: line {line}: {}", e.message().trim_end()));
            return File::default();
        }
    };
    let mut file = File::default();
    for (key, value) in table {
        if program.tables.contains(&key.as_str()) {
            file.tables.insert(key, value);
            continue;
        }
        let Some(setting) = program.find(&key.replace('_', "-")) else {
            mistakes.push(format!("{at}: {key:?} is not a setting of {}; see --help", program.name));
            continue;
        };
        if setting.name == CONFIG.name {
            mistakes.push(format!("{at}: a configuration file cannot name another one"));
        } else if file.given.iter().any(|(s, _)| s.name == setting.name) {
            mistakes.push(format!("{at}: {:?} is given twice, with \"-\" and with \"_\"", setting.name));
        } else if let Some(text) = scalar(&value) {
            file.given.push((setting, text));
        } else {
            let kind = value.type_str();
            mistakes
                .push(format!("{at}: {key}: it is a TOML {kind}; write a string, a number, true or false"));
        }
    }
    file
}

/// A TOML value in the form of a flag's value; an array of strings becomes a list with commas.
pub fn scalar(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(truth) => Some(truth.to_string()),
        toml::Value::Array(all) => {
            let texts: Option<Vec<&str>> = all.iter().map(toml::Value::as_str).collect();
            texts.map(|t| t.join(","))
        }
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Table(_) => None,
    }
}
