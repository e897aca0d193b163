//! The bundles below the runners path, their metadata, and the lock on the path.

use std::{
    fmt,
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use shoes_vz_model::{
    bundle::{RuntimeMetadata, dir_name, file, runner_of},
    id::RunnerId,
};

use crate::files::{self, Readers};

/// The directory of the saved states, below the runners path: clones need them on the same volume.
pub(crate) const SAVED_STATES: &str = ".saved-states";

/// A setup script, which is never printed.
#[derive(Clone)]
pub struct Script(Bytes);

impl Script {
    pub fn secret(&self) -> &Bytes {
        &self.0
    }
}

impl From<Vec<u8>> for Script {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Script({} bytes)", self.0.len())
    }
}

/// One bundle directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    pub runner: RunnerId,
    pub path: PathBuf,
}

impl Bundle {
    /// The bundle of `runner`, whether it exists or not.
    pub fn of(runners_path: &Path, runner: RunnerId) -> Self {
        Self { runner, path: runners_path.join(dir_name(runner)) }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// `None` if the bundle has no metadata.
    pub fn metadata(&self) -> io::Result<Option<RuntimeMetadata>> {
        files::read(&self.file(file::METADATA))?
            .map(|bytes| serde_json::from_slice(&bytes))
            .transpose()
            .map_err(io::Error::other)
    }

    pub fn set_metadata(&self, metadata: &RuntimeMetadata) -> io::Result<()> {
        files::replace(&self.file(file::METADATA), &serde_json::to_vec_pretty(metadata)?, Readers::Owner)
    }

    /// Stores the script until the guest has it.
    pub fn keep_script(&self, script: &Script) -> io::Result<()> {
        files::replace(&self.file(file::SETUP_SCRIPT), script.secret(), Readers::Owner)
    }

    /// The script, if the guest does not have it yet.
    pub fn kept_script(&self) -> io::Result<Option<Script>> {
        Ok(files::read(&self.file(file::SETUP_SCRIPT))?.map(Script::from))
    }

    pub fn forget_script(&self) -> io::Result<()> {
        match fs::remove_file(self.file(file::SETUP_SCRIPT)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Default)]
pub struct ScanResult {
    /// Bundles of shoes-vz agents, including the Go agent.
    pub bundles: Vec<Bundle>,
    /// Directories that belong to no agent.
    pub foreign: Vec<PathBuf>,
}

pub fn scan(runners_path: &Path) -> io::Result<ScanResult> {
    let mut found = ScanResult::default();
    for entry in fs::read_dir(runners_path)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let path = entry.path();
        if entry.file_name() == SAVED_STATES {
            continue;
        }
        match entry.file_name().to_str().and_then(runner_of) {
            Some(Ok(runner)) if is_agents(&path)? => found.bundles.push(Bundle { runner, path }),
            _ => found.foreign.push(path),
        }
    }
    found.bundles.sort_by_key(|b| b.runner);
    Ok(found)
}

/// A bundle has metadata or a VM specification, or is empty because its agent was killed right after creating it.
fn is_agents(path: &Path) -> io::Result<bool> {
    if path.join(file::METADATA).exists() || path.join(file::VM_SPEC).exists() {
        return Ok(true);
    }
    Ok(fs::read_dir(path)?.next().is_none())
}

/// Bytes of a lock file, which holds a process ID.
const MAX_HOLDER: u64 = 64;

/// The right to manage a runners path; released when it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// `holder` is a process ID as the other agent wrote it.
    #[error(
        "the runners path {path:?} is served by another agent (pid {holder}); stop that agent, or use another --runners-path"
    )]
    Held { path: PathBuf, holder: String },
    #[error("cannot lock the runners path {path:?}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

impl Lock {
    pub fn take(runners_path: &Path) -> Result<Self, LockError> {
        let fail = |source| LockError::Io { path: runners_path.to_owned(), source };
        let path = runners_path.join(".agent.lock");
        let mut file = File::options()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(fail)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let holder =
                    shoes_vz_process::files::read_text(&path, MAX_HOLDER).map_err(fail)?.trim().to_owned();
                return Err(LockError::Held { path: runners_path.to_owned(), holder });
            }
            Err(fs::TryLockError::Error(source)) => return Err(fail(source)),
        }
        file.set_len(0).map_err(fail)?;
        writeln!(file, "{}", std::process::id()).map_err(fail)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bundles_of_agents_are_found_and_the_rest_is_foreign() {
        let dir = tempfile::tempdir().unwrap();
        let (ours, empty, theirs) = (RunnerId::random(), RunnerId::random(), RunnerId::random());
        for runner in [ours, empty, theirs] {
            fs::create_dir(Bundle::of(dir.path(), runner).path).unwrap();
        }
        fs::write(Bundle::of(dir.path(), ours).file(file::VM_SPEC), "{}").unwrap();
        fs::write(Bundle::of(dir.path(), theirs).file("holiday.jpg"), "").unwrap();
        fs::create_dir(dir.path().join("lost+found")).unwrap();
        fs::write(dir.path().join("a-file"), "").unwrap();
        let found = scan(dir.path()).unwrap();
        let mut expected = [ours, empty];
        expected.sort();
        assert_eq!(found.bundles.iter().map(|b| b.runner).collect::<Vec<_>>(), expected);
        assert_eq!(found.foreign.len(), 2, "{found:?}");
    }

    #[test]
    fn a_refused_lock_names_the_holders_pid_and_is_free_after_the_holder() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path()).unwrap();
        let reason = Lock::take(dir.path()).unwrap_err().to_string();
        assert!(reason.contains(&format!("pid {}", std::process::id())), "{reason}");
        drop(first);
        Lock::take(dir.path()).unwrap();
    }

    #[test]
    fn a_script_is_kept_privately_until_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Bundle::of(dir.path(), RunnerId::random());
        fs::create_dir(&bundle.path).unwrap();
        assert!(bundle.kept_script().unwrap().is_none());
        bundle.keep_script(&b"secret".to_vec().into()).unwrap();
        assert_eq!(bundle.kept_script().unwrap().unwrap().secret(), &b"secret"[..]);
        bundle.forget_script().unwrap();
        bundle.forget_script().unwrap();
        assert!(bundle.kept_script().unwrap().is_none());
    }
}
