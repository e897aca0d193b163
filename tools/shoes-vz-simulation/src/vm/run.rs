//! The life of a VM and of the job in it.

use std::sync::{Arc, atomic::Ordering};

use shoes_vz_model::guest::{RunnerActivity, SetupPhase};
use shoes_vz_proto::vm::{VmEndKind, VmState};
use tokio::time::sleep;

use super::SimVm;
use crate::{plan::GIVEN_UP, world::World};

impl SimVm {
    /// Starts the guest. Repeated calls have no effect, as with the real VM process.
    pub(crate) fn start(self: &Arc<Self>, world: &Arc<World>) {
        if self.start_requested.swap(true, Ordering::Relaxed) {
            return;
        }
        self.status.send_modify(|s| s.state = VmState::Starting.into());
        let (vm, world_) = (Arc::clone(self), Arc::clone(world));
        world.spawn(async move {
            tokio::select! {
                biased;
                _ = vm.ended() => {}
                () = vm.run(&world_) => {}
            }
        });
    }

    async fn run(&self, world: &World) {
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
        self.run_job(world).await;
    }

    async fn run_job(&self, world: &World) {
        let rates = world.rates();
        sleep(world.millis(5, 200)).await;
        if world.one_in(rates.script) {
            return self.script_exits(3);
        }
        if world.one_in(rates.register) {
            return self.script_exits(0);
        }
        self.set_activity(RunnerActivity::Preparing);
        sleep(world.millis(5, 500)).await;
        self.set_activity(RunnerActivity::Idle);
        if self.runner().name.starts_with(GIVEN_UP) {
            return std::future::pending().await;
        }
        sleep(world.millis(5, 2000)).await;
        self.set_activity(RunnerActivity::Running);
        sleep(world.millis(50, 9000)).await;
        world.job_done(self);
        self.set_activity(RunnerActivity::Finished);
        if world.one_in(rates.power_off) {
            sleep(world.millis(0, 300)).await;
            return self.end(VmEndKind::GuestPoweroff, "the guest powered off");
        }
        sleep(world.millis(1, 100)).await;
        self.script_exits(0);
    }

    fn set_activity(&self, state: RunnerActivity) {
        self.guest.send_modify(|s| s.state = state);
    }

    fn script_exits(&self, code: i32) {
        self.guest.send_modify(|s| (s.setup.phase, s.setup.exit_code) = (SetupPhase::Exited, Some(code)));
    }
}
