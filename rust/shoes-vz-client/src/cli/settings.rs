//! Flags and environment over the configuration file.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Format, args::Global};
use crate::{
    input,
    upstream::{Server, Token},
};

/// What every command needs.
#[derive(Debug)]
pub(super) struct Settings {
    pub(super) server: Server,
    pub(super) format: Format,
}

/// `--config`. A key not listed here is a mistake.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    server: Option<String>,
    token_file: Option<PathBuf>,
}

impl Settings {
    /// `None` when there were mistakes; they are pushed to `mistakes`.
    pub(super) fn gather(global: &Global, mistakes: &mut Vec<String>) -> Option<Self> {
        let before = mistakes.len();
        let file = match global.config.as_deref().map(read).transpose() {
            Ok(file) => file.unwrap_or_default(),
            Err(words) => {
                mistakes.push(words);
                File::default()
            }
        };
        let server = match global.server.as_ref().filter(|s| !s.is_empty()).or(file.server.as_ref()) {
            Some(text) => text.parse().map_err(|e| mistakes.push(format!("{e}"))).ok(),
            // With an unreadable file it may be in there.
            None if mistakes.len() == before => {
                mistakes.push(
                    "no server is given: use --server HOST:PORT, SHOESVZ_SERVER_ADDR, or `server` in --config".into(),
                );
                None
            }
            None => None,
        };
        let path =
            global.token_file.as_ref().filter(|p| !p.as_os_str().is_empty()).or(file.token_file.as_ref());
        let token = match path.map(|path| Token::read(path)).transpose() {
            Ok(token) => token,
            Err(error) => {
                mistakes.push(error.to_string());
                None
            }
        };
        let format = if global.json { Format::Json } else { Format::People };
        (mistakes.len() == before).then_some(())?;
        Some(Self { server: Server::new(server?, token), format })
    }
}

fn read(path: &Path) -> Result<File, String> {
    let text = input::read_text(path, input::SMALL)
        .map_err(|e| format!("reading the configuration file {} failed: {e}", path.display()))?;
    toml::from_str(&text)
        .map_err(|e| format!("the configuration file {} is wrong: {}", path.display(), e.to_string().trim()))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn global(server: Option<&str>, config: Option<&Path>) -> Global {
        Global {
            server: server.map(str::to_owned),
            token_file: None,
            json: false,
            config: config.map(Path::to_owned),
        }
    }

    fn gather(global: &Global) -> Result<String, Vec<String>> {
        let mut mistakes = Vec::new();
        match Settings::gather(global, &mut mistakes) {
            Some(settings) => Ok(settings.server.addr().to_string()),
            None => Err(mistakes),
        }
    }

    #[test]
    fn a_flag_wins_over_the_file_and_the_file_over_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        fs::write(&path, "server = \"file:1\"\n").unwrap();
        assert_eq!(gather(&global(Some("flag:2"), Some(&path))), Ok("flag:2".into()));
        assert_eq!(gather(&global(None, Some(&path))), Ok("file:1".into()));
        assert!(gather(&global(None, None)).unwrap_err()[0].contains("--server"));
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.toml");
        fs::write(&path, "sever = \"file:1\"\n").unwrap();
        let mistakes = gather(&global(None, Some(&path))).unwrap_err();
        assert!(mistakes.len() == 1 && mistakes[0].contains("sever"), "{mistakes:?}");
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let wrong = Global {
            token_file: Some("/nowhere/token".into()),
            ..global(Some("no-port"), Some(Path::new("/nowhere/c.toml")))
        };
        let mistakes = gather(&wrong).unwrap_err().join("\n");
        for words in ["/nowhere/token", "/nowhere/c.toml", "no-port"] {
            assert!(mistakes.contains(words), "{mistakes}");
        }
    }
}
