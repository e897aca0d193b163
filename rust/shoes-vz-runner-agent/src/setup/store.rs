//! The guest agent's side: accepts the script, starts its supervisor, and follows it.

use std::{
    fs::{DirBuilder, File, TryLockError},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime},
};

use anyhow::Context;
use bytes::Bytes;
use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Pid, Uid},
};
use shoes_vz_model::guest::{SetupPhase, SetupStatus, Status};
use shoes_vz_process::files::{Readers, if_any, read_text, replace};
use tokio::sync::{Mutex, oneshot, watch};
use tracing::{error, info, warn};

use super::{files, supervise::SUPERVISE};
use crate::env::ChildEnv;

/// The exit code when the supervisor was killed: a shell's for SIGKILL.
const KILLED: i32 = 137;
/// Longest file with an ID or a process group, in bytes.
const MAX_ID: u64 = 256;
/// The pause after a failure to follow the script.
const FOLLOW_AGAIN: Duration = Duration::from_secs(1);

/// Why a script was not accepted.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    #[error("setup script {0:?} was handed over before; a guest accepts only one")]
    AnotherScript(String),
    #[error("the setup ID is not valid: it must have 1 to 128 letters, digits, '.', '_' or '-'")]
    BadId,
    #[error("storing and starting the setup script failed: {0}")]
    Io(#[from] io::Error),
}

#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    exe: PathBuf,
    env: ChildEnv,
    status: watch::Sender<Status>,
    put_lock: Mutex<()>,
}

impl Store {
    /// Continues with the script that an earlier start of the guest agent accepted, if any.
    pub(crate) fn open(
        dir: PathBuf,
        exe: PathBuf,
        env: ChildEnv,
        status: watch::Sender<Status>,
    ) -> anyhow::Result<Self> {
        private_dir(&dir)
            .with_context(|| format!("the private directory {} (--state-dir)", dir.display()))?;
        let store = Self(Arc::new(Inner { dir, exe, env, status, put_lock: Mutex::new(()) }));
        let Some(id) = store.id()? else { return Ok(store) };
        match files::exit_code(&store.0.dir) {
            Some(code) => store.publish(id, SetupPhase::Exited, Some(code)),
            None => {
                info!(id, "following the setup script of an earlier guest agent");
                store.publish(id.clone(), SetupPhase::Running, None);
                store.follow(id);
            }
        }
        Ok(store)
    }

    /// Stores the script and starts it. The same ID again changes nothing.
    pub async fn put(&self, id: &str, script: Bytes) -> Result<SetupStatus, PutError> {
        let valid = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if id.is_empty() || id.len() > 128 || !id.chars().all(valid) {
            return Err(PutError::BadId);
        }
        let _one_at_a_time = self.0.put_lock.lock().await;
        match self.id()? {
            Some(before) if before == id => return Ok(self.status()),
            Some(before) => return Err(PutError::AnotherScript(before)),
            None => {}
        }
        replace(&self.file(files::SCRIPT), &script, Readers::Owner)?;
        File::options().append(true).create(true).mode(0o600).open(self.file(files::LOG))?;
        replace(&self.file(files::ID), id.as_bytes(), Readers::Owner)?;
        if let Err(error) = self.supervise() {
            // Undo the handover, so that the host can try again.
            std::fs::remove_file(self.file(files::ID))?;
            std::fs::remove_file(self.file(files::SCRIPT))?;
            return Err(error.into());
        }
        info!(id, bytes = script.len(), "setup script started");
        self.publish(id.to_owned(), SetupPhase::Running, None);
        self.follow(id.to_owned());
        Ok(self.status())
    }

    /// The present status, with the log's present length.
    pub fn status(&self) -> SetupStatus {
        let mut setup = self.0.status.borrow().setup.clone();
        setup.log_bytes = std::fs::metadata(self.file(files::LOG)).map_or(0, |m| m.len());
        setup
    }

    /// The log file, once a script was handed over.
    pub fn log(&self) -> Option<PathBuf> {
        (self.0.status.borrow().setup.phase != SetupPhase::None).then(|| self.file(files::LOG))
    }

    /// When the script was handed over.
    pub(crate) fn handed_over_at(&self) -> Option<SystemTime> {
        std::fs::metadata(self.file(files::ID)).and_then(|m| m.modified()).ok()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.dir.join(name)
    }

    fn id(&self) -> io::Result<Option<String>> {
        if_any(read_text(&self.file(files::ID), MAX_ID))
    }

    fn publish(&self, id: String, phase: SetupPhase, exit_code: Option<i32>) {
        let log_bytes = std::fs::metadata(self.file(files::LOG)).map_or(0, |m| m.len());
        self.0.status.send_modify(|s| s.setup = SetupStatus { id, phase, exit_code, log_bytes });
    }

    fn supervise(&self) -> io::Result<()> {
        let lock = open_lock(&self.file(files::LOCK))?;
        lock.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => io::Error::other("the supervisor of another setup script still runs"),
            TryLockError::Error(e) => e,
        })?;
        // The supervisor inherits the lock with the open file: it is released when the supervisor ends.
        let mut child = tokio::process::Command::new(&self.0.exe)
            .arg(SUPERVISE)
            .arg(&self.0.dir)
            .stdin(lock)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .env_clear()
            .envs(self.0.env.vars())
            .current_dir(self.0.env.cwd())
            .spawn()?;
        tokio::spawn(async move { child.wait().await });
        Ok(())
    }

    /// Waits in a separate thread until the supervisor has ended, in whatever way.
    fn follow(&self, id: String) {
        let (locked, ended) = oneshot::channel();
        let lock = self.file(files::LOCK);
        let waiting = std::thread::Builder::new().name("setup".into()).spawn(move || {
            let outcome = open_lock(&lock).and_then(|file| file.lock());
            let _ = locked.send(outcome); // fails while the guest agent is ending
        });
        if let Err(error) = waiting {
            error!(reason = %error, "starting a thread for the setup script failed; retrying");
        }
        let store = self.clone();
        tokio::spawn(async move {
            match ended.await {
                Ok(Ok(())) => return store.ended(id),
                Ok(Err(error)) => error!(reason = %error, "following the setup script failed; retrying"),
                // There was no thread: logged above.
                Err(_) => {}
            }
            tokio::time::sleep(FOLLOW_AGAIN).await;
            store.follow(id);
        });
    }

    fn ended(&self, id: String) {
        if let Some(code) = files::exit_code(&self.0.dir) {
            info!(id, code, "setup script exited");
            return self.publish(id, SetupPhase::Exited, Some(code));
        }
        if !self.file(files::STARTED).exists() && self.file(files::SCRIPT).exists() {
            info!(id, "setup script stored but not started yet; starting it");
            match self.supervise() {
                Ok(()) => return self.follow(id),
                Err(error) => self.append_to_log(&format!("starting the setup script failed: {error}")),
            }
        } else {
            warn!(id, "supervisor of the setup script was killed; killing the script");
            self.append_to_log("the setup script's supervisor was killed, so the script is killed");
            if let Ok(text) = read_text(&self.file(files::STARTED), MAX_ID)
                && let Ok(group) = text.trim().parse()
            {
                // Fails with ESRCH when the script has ended already.
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
        }
        let removed = std::fs::remove_file(self.file(files::SCRIPT));
        let recorded = replace(&self.file(files::EXIT), KILLED.to_string().as_bytes(), Readers::Owner);
        for done in [removed, recorded] {
            if let Err(error) = done {
                warn!(reason = %error, "cleaning up after the setup script failed");
            }
        }
        self.publish(id, SetupPhase::Exited, Some(KILLED));
    }

    fn append_to_log(&self, text: &str) {
        let log = File::options().append(true).open(self.file(files::LOG));
        if let Err(error) = log.and_then(|mut log| writeln!(log, "shoes-vz: {text}")) {
            warn!(reason = %error, text, "writing to the setup script's log failed");
        }
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Creates a directory that no other user can read; an existing one must be ours and private.
fn private_dir(dir: &Path) -> anyhow::Result<()> {
    match DirBuilder::new().recursive(false).mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e.into()),
    }
    let meta = std::fs::symlink_metadata(dir)?;
    anyhow::ensure!(meta.is_dir(), "it is not a directory");
    anyhow::ensure!(meta.uid() == Uid::current().as_raw(), "it belongs to another user (uid {})", meta.uid());
    anyhow::ensure!(meta.mode() & 0o077 == 0, "other users can access it (mode {:o})", meta.mode() & 0o777);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_that_others_can_read_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("d");
        DirBuilder::new().mode(0o755).create(&dir).unwrap();
        assert!(private_dir(&dir).unwrap_err().to_string().contains("755"));
        let link = parent.path().join("l");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        assert!(private_dir(&link).unwrap_err().to_string().contains("not a directory"));
        private_dir(&parent.path().join("new")).unwrap();
        private_dir(&parent.path().join("new")).unwrap();
    }
}
