//! Following a guest: its last known status, and how much of the setup script's output has arrived.

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

/// Dropping it stops the following, and changes nothing in the guest.
pub struct GuestFollower {
    /// The last known status; `None` before the first.
    pub status: watch::Receiver<Option<Status>>,
    /// Bytes of the setup script's output in the log.
    pub logged: watch::Receiver<u64>,
    /// Reopens the event stream; `None` where the guest has none.
    reopen: Option<Arc<Notify>>,
    /// They feed the other fields, and end with this value.
    pub(crate) tasks: JoinSet<()>,
}

/// Waits until one of a [`GuestFollower`]'s tasks panics, and returns the reason. A task that returns is complete.
pub(crate) async fn first_panic(tasks: &mut JoinSet<()>) -> String {
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended
            && let Ok(panic) = error.try_into_panic()
        {
            return text::panic_reason(&*panic);
        }
    }
    std::future::pending().await
}

impl GuestFollower {
    pub fn new(
        status: watch::Receiver<Option<Status>>,
        logged: watch::Receiver<u64>,
        reopen: Option<Arc<Notify>>,
        tasks: JoinSet<()>,
    ) -> Self {
        Self { status, logged, reopen, tasks }
    }

    pub fn view(&self) -> FollowerView {
        FollowerView { status: self.status.clone(), logged: self.logged.clone(), reopen: self.reopen.clone() }
    }
}

/// What a [`GuestFollower`] knows, without ownership of its tasks.
#[derive(Debug, Clone)]
pub struct FollowerView {
    status: watch::Receiver<Option<Status>>,
    logged: watch::Receiver<u64>,
    reopen: Option<Arc<Notify>>,
}

impl FollowerView {
    /// What is known so far: a change shows that the guest lives.
    pub fn snapshot(&self) -> (Option<Status>, u64) {
        (self.status.borrow().clone(), *self.logged.borrow())
    }

    /// Whether the event stream lags behind the status `now` that the guest just returned.
    pub fn is_behind(&self, now: &Status) -> bool {
        // The length of the output changes all the time, and events report it only once the script has exited.
        let without_length = |s: &Status| {
            let mut s = s.clone();
            s.setup.log_bytes = 0;
            s
        };
        self.reopen.is_some()
            && self.status.borrow().as_ref().map(without_length) != Some(without_length(now))
    }

    /// Reopens the event stream, which begins with the current status.
    pub fn reopen(&self) {
        if let Some(reopen) = &self.reopen {
            // No permit is kept: a stream that is opened later begins with the current status anyway.
            reopen.notify_waiters();
        }
    }
}

/// `setup.log`, which only grows: its length is how much output has arrived, across agent restarts.
pub(super) struct SetupLog {
    path: PathBuf,
    file: Option<File>,
    pub(super) written: watch::Sender<u64>,
}

impl SetupLog {
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

/// Between two attempts to reach a guest agent that does not answer.
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
    async fn a_follower_that_panics_is_reported_and_one_that_returns_is_not() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async {});
        tasks.spawn(async { panic!("no room") });
        assert_eq!(first_panic(&mut tasks).await, "no room");
        let returned = first_panic(&mut tasks);
        assert!(tokio::time::timeout(Duration::from_millis(20), returned).await.is_err());
    }
}
