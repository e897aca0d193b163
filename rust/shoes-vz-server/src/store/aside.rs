//! A damaged database, moved aside: nothing of it is lost, and the server begins empty.

use std::{
    ffi::OsString,
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use jiff::Timestamp;

use super::StoreError;

/// The database and its side files, by what their names add to its. It goes last: a log left behind by itself would be
/// taken for the next database's.
const PARTS: [&str; 4] = ["-wal", "-shm", "-journal", ""];

/// Moves the database at `path`, and what SQLite keeps beside it, to `<name>.damaged-<time>` and its likes in the same
/// directory (so SQLite finds them together again), where nothing is yet. Gives the new path.
pub(super) fn move_aside(path: &Path, now: Timestamp) -> Result<PathBuf, StoreError> {
    let to = free_name(path, now);
    for part in PARTS {
        let (from, to) = (with(path, part), with(&to, part));
        // Unlike a rename, a link never replaces what is there.
        let moved = fs::hard_link(&from, &to).and_then(|()| fs::remove_file(&from));
        match moved {
            Err(e) if e.kind() == ErrorKind::NotFound && !part.is_empty() => {}
            moved => moved.map_err(|source| StoreError::Aside { from, to, source })?,
        }
    }
    sync_directory(path).map_err(|source| StoreError::Aside { from: path.into(), to: to.clone(), source })?;
    Ok(to)
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

fn sync_directory(path: &Path) -> io::Result<()> {
    fs::File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}
