//! The errors of a check, in contrast to its findings.

use std::path::PathBuf;

use crate::api::facts::FactsError;

/// The check could not be done.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A file or directory cannot be read.
    #[error("reading {path}")]
    Read { path: PathBuf, source: std::io::Error },
    /// There is nothing to check: no Swift file below the directory.
    #[error("{0} has no Swift files")]
    Empty(PathBuf),
    /// A table cannot be read.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// A symbol graph cannot be read.
    #[error("{path} is not a symbol graph")]
    Graph { path: PathBuf, source: serde_json::Error },
    /// A syntax tree without references: it is something else, or has an unknown format.
    #[error("{0} is not a syntax tree as Swift 6.0 writes it")]
    Tree(PathBuf),
}
