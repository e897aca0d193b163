//! What is wrong with a program or bundle.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    pub file: PathBuf,
    pub what: String,
    pub remedy: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.file.display(), self.what, self.remedy)
    }
}

/// Everything that is wrong; never empty.
#[derive(Debug, thiserror::Error)]
#[error("{}", all(.0))]
pub struct Mistakes(pub Vec<Mistake>);

fn all(mistakes: &[Mistake]) -> String {
    match mistakes {
        [one] => one.to_string(),
        many => many
            .iter()
            .fold(format!("{} things are wrong:", many.len()), |text, m| format!("{text}\n  - {m}")),
    }
}

#[derive(Debug, Default)]
pub(super) struct Findings(pub(super) Vec<Mistake>);

impl Findings {
    pub(super) fn add(&mut self, file: &Path, what: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Mistake { file: file.to_owned(), what: what.into(), remedy: remedy.into() });
    }

    pub(super) fn read(&mut self, file: &Path, remedy: &str) -> Option<Vec<u8>> {
        fs::read(file).map_err(|e| self.add(file, format!("cannot be read ({e})"), remedy)).ok()
    }
}

pub(super) const SIGN_AGAIN: &str = "sign it again (make bundle) and change nothing afterwards";
pub(super) const LINK_AGAIN: &str =
    "link it again for aarch64-apple-darwin with MACOSX_DEPLOYMENT_TARGET set";
