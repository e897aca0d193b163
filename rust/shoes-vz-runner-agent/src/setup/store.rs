//! The guest agent's side: takes scripts, starts supervisors, follows them.

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
use shoes_vz_process::files;
use tokio::sync::{Mutex, oneshot, watch};
use tracing::{error, info, warn};

use super::{Files, KILLED, SUPERVISE, write_whole};
use crate::env::ChildEnv;

/// Of the files with an id or a process group.
const MAX_ID: u64 = 256;
/// Until the script is followed again when it could not be.
const FOLLOW_AGAIN: Duration = Duration::from_secs(1);

/// Why a script was not taken.
#[derive(Debug, thiserror::Error)]
pub enum PutError {
    /// There is one already.
    #[error("setup script {0:?} was handed over before; a guest takes one")]
    Other(String),
    /// The id cannot be one.
    #[error("a setup id is 1 to 128 letters, digits, '.', '_' or '-'")]
    BadId,
    /// Disk, memory, processes.
    #[error("taking the setup script: {0}")]
    Io(#[from] io::Error),
}

/// Owns the setup script's files.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    files: Files,
    exe: PathBuf,
    env: ChildEnv,
    status: watch::Sender<Status>,
    putting: Mutex<()>,
}

impl Store {
    /// Takes up what a guest agent before this one left.
    pub(crate) fn open(
        dir: PathBuf,
        exe: PathBuf,
        env: ChildEnv,
        status: watch::Sender<Status>,
    ) -> anyhow::Result<Self> {
        private_dir(&dir)
            .with_context(|| format!("the private directory {} (--state-dir)", dir.display()))?;
        let store = Self(Arc::new(Inner { files: Files(dir), exe, env, status, putting: Mutex::new(()) }));
        let Some(id) = store.id()? else { return Ok(store) };
        match store.0.files.exit_code() {
            Some(code) => store.publish(id, SetupPhase::Exited, Some(code)),
            None => {
                info!(id, "a setup script was handed over to the guest agent before this one; following it");
                store.publish(id.clone(), SetupPhase::Running, None);
                store.follow(id);
            }
        }
        Ok(store)
    }

    /// Takes the script and starts it. The same id again changes nothing.
    pub async fn put(&self, id: &str, script: Bytes) -> Result<SetupStatus, PutError> {
        let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        if id.is_empty() || id.len() > 128 || !id.chars().all(good) {
            return Err(PutError::BadId);
        }
        let _one_at_a_time = self.0.putting.lock().await;
        match self.id()? {
            Some(before) if before == id => return Ok(self.status()),
            Some(before) => return Err(PutError::Other(before)),
            None => {}
        }
        let files = &self.0.files;
        write_whole(&files.script(), &script)?;
        File::options().append(true).create(true).mode(0o600).open(files.log())?;
        write_whole(&files.id(), id.as_bytes())?;
        if let Err(error) = self.supervise() {
            // As if it had never been handed over.
            std::fs::remove_file(files.id())?;
            std::fs::remove_file(files.script())?;
            return Err(error.into());
        }
        info!(id, bytes = script.len(), "setup script started");
        self.publish(id.to_owned(), SetupPhase::Running, None);
        self.follow(id.to_owned());
        Ok(self.status())
    }

    /// Where it stands, the log's length as of now.
    pub fn status(&self) -> SetupStatus {
        let mut setup = self.0.status.borrow().setup.clone();
        setup.log_bytes = std::fs::metadata(self.0.files.log()).map_or(0, |m| m.len());
        setup
    }

    /// The log file, once a script was handed over.
    pub fn log(&self) -> Option<PathBuf> {
        (self.0.status.borrow().setup.phase != SetupPhase::None).then(|| self.0.files.log())
    }

    /// When the script was handed over.
    pub(crate) fn since(&self) -> Option<SystemTime> {
        std::fs::metadata(self.0.files.id()).and_then(|m| m.modified()).ok()
    }

    fn id(&self) -> io::Result<Option<String>> {
        match files::read_text(&self.0.files.id(), MAX_ID) {
            Ok(id) => Ok(Some(id)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn publish(&self, id: String, phase: SetupPhase, exit_code: Option<i32>) {
        let log_bytes = std::fs::metadata(self.0.files.log()).map_or(0, |m| m.len());
        self.0.status.send_modify(|s| s.setup = SetupStatus { id, phase, exit_code, log_bytes });
    }

    fn supervise(&self) -> io::Result<()> {
        let files = &self.0.files;
        let lock = open_lock(&files.lock())?;
        lock.try_lock().map_err(|e| match e {
            TryLockError::WouldBlock => io::Error::other("another setup script's supervisor is alive"),
            TryLockError::Error(e) => e,
        })?;
        // The lock goes over with the open file: it is let go when the supervisor's copy is closed, by its end.
        let mut child = tokio::process::Command::new(&self.0.exe)
            .arg(SUPERVISE)
            .arg(&files.0)
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

    /// Waits, in a thread of its own, for the supervisor's end, however that comes.
    fn follow(&self, id: String) {
        let (told, ended) = oneshot::channel();
        let lock = self.0.files.lock();
        let waiting = std::thread::Builder::new().name("setup".into()).spawn(move || {
            let outcome = open_lock(&lock).and_then(|file| file.lock());
            let _ = told.send(outcome); // nobody listens any more when the guest agent is ending
        });
        if let Err(error) = waiting {
            error!(%error, "no thread to follow the setup script with; trying again");
        }
        let store = self.clone();
        tokio::spawn(async move {
            match ended.await {
                Ok(Ok(())) => store.ended(id),
                Ok(Err(error)) => {
                    error!(%error, "the setup script cannot be followed; trying again");
                    tokio::time::sleep(FOLLOW_AGAIN).await;
                    store.follow(id);
                }
                // There was no thread: said above.
                Err(_) => {
                    tokio::time::sleep(FOLLOW_AGAIN).await;
                    store.follow(id);
                }
            }
        });
    }

    fn ended(&self, id: String) {
        let files = &self.0.files;
        if let Some(code) = files.exit_code() {
            info!(id, code, "setup script exited");
            return self.publish(id, SetupPhase::Exited, Some(code));
        }
        if !files.started().exists() && files.script().exists() {
            info!(id, "the setup script was taken but never started; starting it");
            match self.supervise() {
                Ok(()) => return self.follow(id),
                Err(error) => self.note(&format!("starting the setup script: {error}")),
            }
        } else {
            warn!(id, "the setup script's supervisor was killed; ending the script");
            self.note("the setup script's supervisor was killed; the script is ended");
            let group = files::read_text(&files.started(), MAX_ID).ok().and_then(|t| t.trim().parse().ok());
            if let Some(group) = group {
                // ESRCH: it has ended by itself.
                let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
            }
        }
        for done in
            [std::fs::remove_file(files.script()), write_whole(&files.exit(), KILLED.to_string().as_bytes())]
        {
            if let Err(error) = done {
                warn!(%error, "tidying up after the setup script");
            }
        }
        self.publish(id, SetupPhase::Exited, Some(KILLED));
    }

    fn note(&self, words: &str) {
        let log = File::options().append(true).open(self.0.files.log());
        if let Err(error) = log.and_then(|mut log| writeln!(log, "shoes-vz: {words}")) {
            warn!(%error, words, "could not be written to the setup script's log");
        }
    }
}

fn open_lock(path: &Path) -> io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// A directory nobody else can look into, and nobody else has prepared for us.
fn private_dir(dir: &Path) -> anyhow::Result<()> {
    match DirBuilder::new().recursive(false).mode(0o700).create(dir) {
        Ok(()) => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e.into()),
    }
    let meta = std::fs::symlink_metadata(dir)?;
    anyhow::ensure!(meta.is_dir(), "is no directory");
    anyhow::ensure!(meta.uid() == Uid::current().as_raw(), "belongs to another user (uid {})", meta.uid());
    anyhow::ensure!(meta.mode() & 0o077 == 0, "is open to others (mode {:o})", meta.mode() & 0o777);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_others_can_look_into_is_refused() {
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join("d");
        DirBuilder::new().mode(0o755).create(&dir).unwrap();
        assert!(private_dir(&dir).unwrap_err().to_string().contains("755"));
        let link = parent.path().join("l");
        std::os::unix::fs::symlink("/tmp", &link).unwrap();
        assert!(private_dir(&link).unwrap_err().to_string().contains("no directory"));
        private_dir(&parent.path().join("new")).unwrap();
        private_dir(&parent.path().join("new")).unwrap();
    }
}
