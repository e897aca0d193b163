//! From the hand-over of the setup script to the end of the job.

use std::{sync::Arc, time::Duration};

use shoes_vz_model::{
    bundle::{Phase, file},
    guest::{RunnerActivity, Status},
    text,
};
use shoes_vz_process::units;
use shoes_vz_proto::{
    agent::EndKind,
    vm::{VmEnd, VmEndKind},
};
use tokio::time::{Instant, sleep_until, timeout};

use super::{
    AGES, Runner,
    end::RunnerEnd,
    job::{Verdict, judge, listens},
    responsiveness::silence,
};
use crate::{
    files,
    guest::{GuestFollower, first_panic},
    provision::ReadyVm,
};

/// Until the last of a failed script's output has arrived.
const LOG_DEADLINE: Duration = Duration::from_secs(5);
/// Of a failed script's output.
const TAIL_LINES: usize = 50;
const TAIL_BYTES: usize = 8 << 10;

impl Runner {
    /// Follows the guest until its runner has finished.
    pub(super) async fn follow(&mut self, ready: &ReadyVm) -> RunnerEnd {
        let bundle = ready.resources.bundle.clone();
        let (vm, guest) = (&ready.vm, &ready.guest);
        let mut following = guest.follow(bundle.runner, &bundle.file(file::SETUP_LOG));
        let mut seen = self.report.journal.meta.phase == Phase::Running;
        let mut registration: Option<Instant> = None;
        let limits = self.agent.limits;
        let unresponsive =
            silence(Arc::clone(guest), vm.status(), following.view(), limits.unresponsive_guest_limit);
        let interruption = self.interruption();
        tokio::pin!(unresponsive, interruption);
        loop {
            let status = following.status.borrow_and_update().clone();
            if let Some(status) = &status {
                let verdict = judge(status, &mut seen);
                self.report.observe(status);
                if listens(status) && self.report.journal.meta.phase != Phase::Running {
                    self.report.listening();
                }
                match verdict {
                    Verdict::GoOn => registration = None,
                    Verdict::AwaitRegistration => {
                        let until = Instant::now() + limits.registration_deadline;
                        registration = registration.or(Some(until));
                    }
                    Verdict::Finished => {
                        return RunnerEnd::new(EndKind::Finished, "the Actions runner finished and exited");
                    }
                    Verdict::SetupFailed(code) => {
                        let failed = self.setup_failed(code, status.setup.log_bytes, &mut following);
                        return tokio::select! {
                            biased;
                            end = &mut interruption => end,
                            end = failed => end,
                        };
                    }
                }
            }
            let never_registered = sleep_until(registration.unwrap_or_else(|| Instant::now() + AGES));
            tokio::select! {
                biased;
                end = &mut interruption => return end,
                panic = first_panic(&mut following.tasks) => return RunnerEnd::fault_of_the_agent(&panic),
                changed = following.status.changed() => if changed.is_err() {
                    return RunnerEnd::fault_of_the_agent("the task that follows the guest ended");
                },
                end = vm.ended() => return self.vm_ended(&end, seen, status.as_ref()),
                silence = &mut unresponsive => {
                    return RunnerEnd::unresponsive(&silence, self.report.stage(), &bundle.path);
                }
                () = never_registered, if registration.is_some() => {
                    let limit = units::show_duration(limits.registration_deadline);
                    return RunnerEnd::new(
                        EndKind::Expired,
                        format!(
                            "the setup script exited 0, but no Actions runner appeared within {limit} \
                             (--registration-deadline)"
                        ),
                    );
                }
            }
        }
    }

    /// A guest that powers off once its runner is done has finished, not died.
    fn vm_ended(&self, end: &VmEnd, seen: bool, last: Option<&Status>) -> RunnerEnd {
        let done = seen && last.is_some_and(|s| s.state == RunnerActivity::Finished);
        if done && end.kind() == VmEndKind::GuestPoweroff {
            return RunnerEnd::new(
                EndKind::Finished,
                "the Actions runner finished, and the guest powered itself off",
            );
        }
        RunnerEnd::of_vm(end, self.report.stage(), &self.report.journal.bundle.path)
    }

    async fn setup_failed(&mut self, code: i32, log_bytes: u64, following: &mut GuestFollower) -> RunnerEnd {
        if timeout(LOG_DEADLINE, following.logged.wait_for(|n| *n >= log_bytes)).await.is_err() {
            tracing::warn!("end of the setup script's output did not arrive in time");
        }
        let tail = match files::last_bytes(&self.report.journal.bundle.file(file::SETUP_LOG), 1 << 20) {
            Ok(bytes) => text::plain(&text::tail(&bytes, TAIL_LINES, TAIL_BYTES)),
            Err(error) => format!("(setup.log cannot be read: {error})"),
        };
        let end = RunnerEnd::setup_failed(code, &tail);
        self.report.setup_tail(tail);
        end
    }
}
