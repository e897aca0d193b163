//! What this guest agent knows, published whole: `/status` reads it, `/events` follows it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use shoes_vz_model::guest::Status;
use tokio::sync::watch;

use crate::{env::ChildEnv, personalize::Means, setup::Store};

/// Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct State(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    status: watch::Sender<Status>,
    setup: Store,
    env: ChildEnv,
    means: Means,
}

impl State {
    pub(crate) fn new(start_id: &str, state_dir: PathBuf, env: ChildEnv) -> anyhow::Result<Self> {
        let exe = std::env::current_exe()?;
        let means = Means::of_this_guest(env.home.clone());
        Self::with_supervisor(start_id, state_dir, &exe, env, means)
    }

    fn with_supervisor(
        start_id: &str,
        state_dir: PathBuf,
        exe: &Path,
        env: ChildEnv,
        means: Means,
    ) -> anyhow::Result<Self> {
        let status = watch::Sender::new(Status { agent_start: start_id.to_owned(), ..Status::default() });
        let setup = Store::open(state_dir, exe.to_owned(), env.clone(), status.clone())?;
        Ok(Self(Arc::new(Inner { status, setup, env, means })))
    }

    /// For tests: files in `state_dir`, the supervisor being `exe`, home being `home`.
    pub fn for_tests(start_id: &str, state_dir: PathBuf, exe: &Path, home: PathBuf) -> anyhow::Result<Self> {
        let means = Means::new(home.join("init.sock"), vec![home.join("helper")], Some(home.clone()));
        Self::with_supervisor(start_id, state_dir, exe, ChildEnv { home, user: "runner".into() }, means)
    }

    /// How what is root's to do is done here.
    pub(crate) fn means(&self) -> &Means {
        &self.0.means
    }

    /// This is another guest than the one whose state was saved.
    pub(crate) fn personalized(&self, start_id: String) {
        self.0.status.send_modify(|s| s.agent_start = start_id);
    }

    /// Follow it.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.0.status.subscribe()
    }

    /// As it is now, the log's length included.
    pub fn status(&self) -> Status {
        let mut status = self.0.status.borrow().clone();
        status.setup = self.0.setup.status();
        status
    }

    /// Changes it; those who follow it hear of it only when something is different.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Status)) {
        self.0.status.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }

    /// The setup script's owner.
    pub fn setup(&self) -> &Store {
        &self.0.setup
    }

    pub(crate) fn env(&self) -> &ChildEnv {
        &self.0.env
    }
}
