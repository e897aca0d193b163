//! A VM as the simulation knows it: a separate process, which outlives its agent.

mod run;

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use shoes_vz_model::{
    bundle::RuntimeMetadata,
    guest::{RunnerActivity, SetupPhase, Status},
};
use shoes_vz_proto::vm::{VmEnd, VmEndKind, VmState, VmStatus};
use tokio::sync::watch;

/// The runner a bundle belongs to; a hot VM has no name.
#[derive(Debug, Clone)]
pub(crate) struct RunnerRef {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) cloud: String,
}

impl RunnerRef {
    pub(crate) fn of(meta: RuntimeMetadata) -> Self {
        Self { id: meta.runner_id, name: meta.runner_name, cloud: meta.cloud_id }
    }

    pub(crate) fn is_hot(&self) -> bool {
        self.name.is_empty()
    }
}

pub(crate) struct SimVm {
    pub(crate) agent: usize,
    location: Mutex<(PathBuf, RunnerRef)>,
    status: watch::Sender<VmStatus>,
    guest: watch::Sender<Status>,
    script: Mutex<Option<String>>,
    start_requested: AtomicBool,
    /// SSH has answered.
    ready: AtomicBool,
}

impl SimVm {
    pub(crate) fn new(agent: usize, bundle: PathBuf, runner: RunnerRef) -> Arc<Self> {
        let created = VmStatus { state: VmState::Created.into(), ..VmStatus::default() };
        Arc::new(Self {
            agent,
            location: Mutex::new((bundle, runner)),
            status: watch::Sender::new(created),
            guest: watch::Sender::default(),
            script: Mutex::default(),
            start_requested: AtomicBool::new(false),
            ready: AtomicBool::new(false),
        })
    }

    pub(crate) fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    pub(crate) fn bundle(&self) -> PathBuf {
        self.location.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    pub(crate) fn runner(&self) -> RunnerRef {
        self.location.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// Its bundle was renamed, and may belong to another runner.
    pub(crate) fn renamed(&self, bundle: PathBuf, runner: RunnerRef) {
        *self.location.lock().unwrap_or_else(PoisonError::into_inner) = (bundle, runner);
    }

    /// Pauses or resumes the guest.
    pub(crate) fn pause(&self, paused: bool) {
        let state = if paused { VmState::Paused } else { VmState::Running };
        self.status.send_if_modified(|s| {
            let is_live = s.end.is_none();
            if is_live {
                s.state = state.into();
            }
            is_live
        });
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.status.borrow().state() == VmState::Paused
    }

    pub(crate) fn is_live(&self) -> bool {
        self.status.borrow().end.is_none()
    }

    pub(crate) fn works_on_a_job(&self) -> bool {
        self.is_live() && self.guest.borrow().state == RunnerActivity::Running
    }

    pub(crate) fn status(&self) -> watch::Receiver<VmStatus> {
        self.status.subscribe()
    }

    pub(crate) fn guest(&self) -> watch::Receiver<Status> {
        self.guest.subscribe()
    }

    /// Only the first end counts.
    pub(crate) fn end(&self, kind: VmEndKind, reason: &str) {
        self.status.send_if_modified(|s| {
            let first = s.end.is_none();
            if first {
                s.state = VmState::Stopped.into();
                s.guest_up = false;
                s.end = Some(VmEnd { kind: kind.into(), reason: reason.into() });
            }
            first
        });
    }

    pub(crate) async fn ended(&self) -> VmEnd {
        let mut status = self.status();
        let last = status.wait_for(|s| s.end.is_some()).await;
        last.ok().and_then(|s| s.end.clone()).unwrap_or_default()
    }

    /// Accepts a script; only the first one counts. Returns the one that counts.
    pub(crate) fn set_up(&self, runner: &str, script: &str) -> String {
        let mut taken = self.script.lock().unwrap_or_else(PoisonError::into_inner);
        let script = taken.get_or_insert_with(|| script.to_owned()).clone();
        self.guest.send_if_modified(|s| {
            let first = s.setup.phase == SetupPhase::None;
            if first {
                (s.setup.id, s.setup.phase) = (runner.to_owned(), SetupPhase::Running);
            }
            first
        });
        script
    }
}

/// Longest start of a guest that does start; start deadlines are longer.
pub(crate) const SLOWEST_START: Duration = Duration::from_secs(12);
