//! The state of this guest agent, published as a whole: `/status` reads it, `/events` follows it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use shoes_vz_model::guest::Status;
use tokio::sync::watch;

use crate::{env::ChildEnv, personalize::PrivilegedHelper, setup::Store};

/// Cheap to clone; all clones share one state.
#[derive(Debug, Clone)]
pub struct State(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    status: watch::Sender<Status>,
    setup: Store,
    env: ChildEnv,
    privileged_helper: PrivilegedHelper,
}

impl State {
    pub(crate) fn new(start_id: &str, state_dir: PathBuf, env: ChildEnv) -> anyhow::Result<Self> {
        let exe = std::env::current_exe()?;
        let helper = PrivilegedHelper::of_this_guest(env.home.clone());
        Self::with_supervisor(start_id, state_dir, &exe, env, helper)
    }

    fn with_supervisor(
        start_id: &str,
        state_dir: PathBuf,
        exe: &Path,
        env: ChildEnv,
        privileged_helper: PrivilegedHelper,
    ) -> anyhow::Result<Self> {
        let status = watch::Sender::new(Status { agent_start: start_id.to_owned(), ..Status::default() });
        let setup = Store::open(state_dir, exe.to_owned(), env.clone(), status.clone())?;
        Ok(Self(Arc::new(Inner { status, setup, env, privileged_helper })))
    }

    /// For tests: with the program `exe` as the supervisor, and init's socket and the helper in `home`.
    pub fn for_tests(start_id: &str, state_dir: PathBuf, exe: &Path, home: PathBuf) -> anyhow::Result<Self> {
        let helper = PrivilegedHelper::new(home.join("init.sock"), vec![home.join("helper")], home.clone());
        Self::with_supervisor(start_id, state_dir, exe, ChildEnv { home, user: "runner".into() }, helper)
    }

    pub(crate) fn privileged_helper(&self) -> &PrivilegedHelper {
        &self.0.privileged_helper
    }

    /// After a restore: this guest differs from the one whose state was saved.
    pub(crate) fn reset_start_id(&self) {
        self.0.status.send_modify(|s| s.agent_start = start_id());
    }

    pub fn watch(&self) -> watch::Receiver<Status> {
        self.0.status.subscribe()
    }

    /// The present status, with the present length of the setup log.
    pub fn status(&self) -> Status {
        let mut status = self.0.status.borrow().clone();
        status.setup = self.0.setup.status();
        status
    }

    /// Wakes the followers only if `change` makes a difference.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Status)) {
        self.0.status.send_if_modified(|status| {
            let before = status.clone();
            change(status);
            *status != before
        });
    }

    pub fn setup(&self) -> &Store {
        &self.0.setup
    }

    pub(crate) fn env(&self) -> &ChildEnv {
        &self.0.env
    }
}

/// Random enough to distinguish two starts. Does not wait for the kernel's entropy.
pub(crate) fn start_id() -> String {
    format!("{:016x}", shoes_vz_channel::nonce())
}
