//! A guest followed: its last known state, and how much of the script's output has come over.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use shoes_vz_model::{guest::Status, text};
use shoes_vz_process::backoff::Backoff;
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::sleep,
};

/// Dropping it ends the following, and nothing else.
pub struct Following {
    /// The last known state; `None` before the first.
    pub status: watch::Receiver<Option<Status>>,
    /// Bytes of the script's output in the log.
    pub logged: watch::Receiver<u64>,
    /// Opens the events again; `None` where there are none.
    reopen: Option<Arc<Notify>>,
    /// What feeds it; they end with it.
    pub(crate) tasks: JoinSet<()>,
}

/// Waits until one of a [`Following`]'s tasks has panicked, and gives its message. One that ends otherwise is done.
pub(crate) async fn lost(tasks: &mut JoinSet<()>) -> String {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && let Ok(panic) = error.try_into_panic()
        {
            return text::of_panic(&*panic);
        }
    }
    std::future::pending().await
}

impl Following {
    /// What `tasks` feed; `reopen` has the events opened again, where there are any.
    pub fn new(
        status: watch::Receiver<Option<Status>>,
        logged: watch::Receiver<u64>,
        reopen: Option<Arc<Notify>>,
        tasks: JoinSet<()>,
    ) -> Self {
        Self { status, logged, reopen, tasks }
    }

    /// What it tells, for another who wants to know.
    pub fn watched(&self) -> Watched {
        Watched { status: self.status.clone(), logged: self.logged.clone(), reopen: self.reopen.clone() }
    }
}

/// What a [`Following`] tells, without the right to end it.
#[derive(Debug, Clone)]
pub struct Watched {
    status: watch::Receiver<Option<Status>>,
    logged: watch::Receiver<u64>,
    reopen: Option<Arc<Notify>>,
}

impl Watched {
    /// What is known so far: whenever it differs, the guest was heard of.
    pub fn seen(&self) -> (Option<Status>, u64) {
        (self.status.borrow().clone(), *self.logged.borrow())
    }

    /// Whether the events should have told something else, now that the guest says `now`.
    pub fn is_behind(&self, now: &Status) -> bool {
        // The output's length is told only once it is whole.
        let lasting = |s: &Status| {
            let mut s = s.clone();
            s.setup.log_bytes = 0;
            s
        };
        self.reopen.is_some() && self.status.borrow().as_ref().map(lasting) != Some(lasting(now))
    }

    /// Opens the events again, which begin with the present state.
    pub fn reopen(&self) {
        if let Some(reopen) = &self.reopen {
            // Not for those opened later: they tell the present state anyway.
            reopen.notify_waiters();
        }
    }
}

/// `setup.log`, which only grows: its length is how much has come over, through any number of restarts.
pub(super) struct Log {
    path: PathBuf,
    file: Option<File>,
    pub(super) written: watch::Sender<u64>,
}

impl Log {
    pub(super) fn open(path: &Path) -> Self {
        let len = fs::metadata(path).map_or(0, |m| m.len());
        Self { path: path.to_owned(), file: None, written: watch::Sender::new(len) }
    }

    pub(super) fn len(&self) -> u64 {
        *self.written.borrow()
    }

    pub(super) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::options().create(true).append(true).mode(0o600).open(&self.path)?),
        };
        file.write_all(bytes)?;
        self.written.send_modify(|n| *n += bytes.len() as u64);
        Ok(())
    }
}

/// Between two tries to reach a guest agent that went away: longer each time, until something comes again.
pub(super) struct Pause(Backoff);

impl Pause {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(1);

    pub(super) fn new() -> Self {
        Self(Backoff::new(Self::FIRST, Self::LONGEST))
    }

    pub(super) fn reset(&mut self) {
        self.0.reset();
    }

    pub(super) async fn wait(&mut self) {
        sleep(self.0.pause()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_follower_that_panics_is_told_and_one_that_is_done_is_not() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async {});
        tasks.spawn(async { panic!("no room") });
        assert_eq!(lost(&mut tasks).await, "no room");
        let done = lost(&mut tasks);
        assert!(tokio::time::timeout(Duration::from_millis(20), done).await.is_err());
    }
}
