//! A VM as it really is: a process of its own, which lives on when its agent dies.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use shoes_vz_model::guest::{RunnerActivity, SetupPhase, Status};
use shoes_vz_proto::vm::{VmEnd, VmEndKind, VmState, VmStatus};
use tokio::{sync::watch, time::sleep};

use crate::{
    plan::GIVEN_UP,
    world::{Named, World},
};

pub(crate) struct SimVm {
    pub(crate) agent: usize,
    place: Mutex<(PathBuf, Named)>,
    status: watch::Sender<VmStatus>,
    guest: watch::Sender<Status>,
    script: Mutex<Option<String>>,
    start_asked: AtomicBool,
    /// SSH has answered.
    ready: AtomicBool,
}

impl SimVm {
    pub(crate) fn new(agent: usize, bundle: PathBuf, named: Named) -> Arc<Self> {
        let created = VmStatus { state: VmState::Created.into(), ..VmStatus::default() };
        Arc::new(Self {
            agent,
            place: Mutex::new((bundle, named)),
            status: watch::Sender::new(created),
            guest: watch::Sender::default(),
            script: Mutex::default(),
            start_asked: AtomicBool::new(false),
            ready: AtomicBool::new(false),
        })
    }

    pub(crate) fn set_ready(&self) {
        self.ready.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Where its files are now.
    pub(crate) fn bundle(&self) -> PathBuf {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).0.clone()
    }

    /// Whose it is now.
    pub(crate) fn named(&self) -> Named {
        self.place.lock().unwrap_or_else(PoisonError::into_inner).1.clone()
    }

    /// Its bundle has another name, and it may be somebody else's.
    pub(crate) fn renamed(&self, bundle: PathBuf, named: Named) {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = (bundle, named);
    }

    /// Its guest's time stands still, or goes on.
    pub(crate) fn pause(&self, paused: bool) {
        let state = if paused { VmState::Paused } else { VmState::Running };
        self.status.send_if_modified(|s| {
            let lives = s.end.is_none();
            if lives {
                s.state = state.into();
            }
            lives
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

    /// Its first and only end.
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

    /// The guest begins. One that has begun already is fine, as with the real VM process.
    pub(crate) fn start(self: &Arc<Self>, world: &Arc<World>) {
        if self.start_asked.swap(true, Ordering::Relaxed) {
            return;
        }
        self.status.send_modify(|s| s.state = VmState::Starting.into());
        let (vm, world_) = (Arc::clone(self), Arc::clone(world));
        world.spawn(async move {
            tokio::select! {
                biased;
                _ = vm.ended() => {}
                () = vm.live(&world_) => {}
            }
        });
    }

    /// Takes the script; the first one counts. Gives the one that counts.
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

    async fn live(&self, world: &World) {
        let rates = world.rates();
        let slow = rates.slowness;
        sleep(world.millis(1, 50 * slow)).await;
        if world.one_in(rates.start) {
            return self.end(VmEndKind::HypervisorFailed, "the hypervisor failed to start");
        }
        self.status.send_modify(|s| (s.state, s.started_ms) = (VmState::Running.into(), 1));
        if world.one_in(rates.boot) {
            return std::future::pending().await;
        }
        sleep(world.millis(10, 400 * slow)).await;
        self.status.send_modify(|s| s.guest_up = true);
        let mut guest = self.guest();
        if guest.wait_for(|s| s.setup.phase == SetupPhase::Running).await.is_err() {
            return;
        }
        self.job(world).await;
    }

    async fn job(&self, world: &World) {
        let rates = world.rates();
        sleep(world.millis(5, 200)).await;
        if world.one_in(rates.script) {
            return self.script_exits(3);
        }
        if world.one_in(rates.register) {
            return self.script_exits(0);
        }
        self.runner(RunnerActivity::Preparing);
        sleep(world.millis(5, 500)).await;
        self.runner(RunnerActivity::Idle);
        if self.named().name.starts_with(GIVEN_UP) {
            return std::future::pending().await;
        }
        sleep(world.millis(5, 2000)).await;
        self.runner(RunnerActivity::Running);
        sleep(world.millis(50, 9000)).await;
        world.job_done(self);
        self.runner(RunnerActivity::Finished);
        if world.one_in(rates.power_off) {
            sleep(world.millis(0, 300)).await;
            return self.end(VmEndKind::GuestPoweroff, "the guest powered off");
        }
        sleep(world.millis(1, 100)).await;
        self.script_exits(0);
    }

    fn runner(&self, state: RunnerActivity) {
        self.guest.send_modify(|s| s.state = state);
    }

    fn script_exits(&self, code: i32) {
        self.guest.send_modify(|s| (s.setup.phase, s.setup.exit_code) = (SetupPhase::Exited, Some(code)));
    }
}

/// Longest a guest that comes up takes to do so, at this slowness; start deadlines are chosen beyond it.
pub(crate) const SLOWEST_START: Duration = Duration::from_secs(12);
