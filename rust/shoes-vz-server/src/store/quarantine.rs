//! Quarantine of a damaged database: nothing of it is lost, and the server starts empty.

use std::{
    ffi::OsString,
    fs,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use jiff::Timestamp;
use shoes_vz_process::files;

use super::error::StoreError;

/// The suffixes of the database's files. The database itself is last, since a log that is left alone would be taken for
/// the next database's.
const PARTS: [&str; 4] = ["-wal", "-shm", "-journal", ""];

/// Moves the database at `path`, and the files that SQLite keeps beside it, to unused names `<name>.damaged-<time>…` in the
/// same directory, where SQLite finds them together again. Returns the new path.
pub(super) fn quarantine(path: &Path, now: Timestamp) -> Result<PathBuf, StoreError> {
    let to = free_name(path, now);
    for part in PARTS {
        let (from, to) = (with(path, part), with(&to, part));
        // Unlike a rename, a link never replaces an existing file.
        let moved = fs::hard_link(&from, &to).and_then(|()| fs::remove_file(&from));
        match moved {
            Err(e) if e.kind() == ErrorKind::NotFound && !part.is_empty() => {}
            moved => moved.map_err(|source| StoreError::Quarantine { from, to, source })?,
        }
    }
    match files::sync_dir(path.parent().unwrap_or(Path::new("."))) {
        Ok(()) => Ok(to),
        Err(source) => Err(StoreError::Quarantine { from: path.into(), to, source }),
    }
}

fn free_name(path: &Path, now: Timestamp) -> PathBuf {
    let stamp = now.strftime("%Y%m%dT%H%M%SZ");
    let is_free = |to: &PathBuf| PARTS.iter().all(|part| fs::symlink_metadata(with(to, part)).is_err());
    let first = with(path, &format!(".damaged-{stamp}"));
    let later = (2_u64..).map(|n| with(path, &format!(".damaged-{stamp}-{n}")));
    std::iter::once(first.clone()).chain(later).find(is_free).unwrap_or(first)
}

fn with(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
