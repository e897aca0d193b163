//! What a guest's status means for its runner: decided here without any waiting or doing.
//!
//! | setup script | Actions runner | then |
//! |---|---|---|
//! | running | any | go on; RUNNING from the moment it listens |
//! | exited ≠ 0 | works on a job | go on: no running job is killed |
//! | exited ≠ 0 | else | failed |
//! | exited 0, or lost sight of | listens or works | go on |
//! | exited 0, or lost sight of | was seen, is gone | finished |
//! | exited 0, or lost sight of | never seen | wait, up to the registration deadline |

use shoes_vz_model::guest::{RunnerActivity, SetupPhase, Status};

/// What follows from a status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Nothing yet.
    GoOn,
    /// Nothing yet, up to a deadline: the script has ended and no runner was seen.
    AwaitRegistration,
    /// The runner has done its job and is gone.
    Finished,
    /// The script failed.
    SetupFailed(i32),
}

/// Judges a status; `seen` remembers whether a runner was ever there.
pub(super) fn judge(status: &Status, seen: &mut bool) -> Verdict {
    use RunnerActivity::{Finished, Idle, Offline, Preparing, Running};
    let there = matches!(status.state, Idle | Running);
    *seen |= there || status.state == Finished;
    match (status.setup.phase, status.setup.exit_code.unwrap_or(0)) {
        (SetupPhase::Running, _) => Verdict::GoOn,
        (SetupPhase::Exited, code) if code != 0 && status.state != Running => Verdict::SetupFailed(code),
        _ => match status.state {
            Idle | Running => Verdict::GoOn,
            Offline | Finished if *seen => Verdict::Finished,
            // Configured anew, perhaps: a seen runner that prepares is not gone.
            Preparing if *seen => Verdict::GoOn,
            Offline | Finished | Preparing => Verdict::AwaitRegistration,
        },
    }
}

/// Whether a runner listens or works now: RUNNING.
pub(super) fn listens(status: &Status) -> bool {
    matches!(status.state, RunnerActivity::Idle | RunnerActivity::Running)
}

#[cfg(test)]
mod tests {
    use shoes_vz_model::guest::SetupStatus;

    use super::*;

    fn status(state: RunnerActivity, phase: SetupPhase, exit_code: Option<i32>) -> Status {
        Status {
            state,
            setup: SetupStatus { phase, exit_code, ..SetupStatus::default() },
            ..Status::default()
        }
    }

    #[test]
    fn fault_21_myshoes_foreground_runner_runs_listens_works_and_is_reaped_when_the_script_ends() {
        let mut seen = false;
        for state in [
            RunnerActivity::Offline,
            RunnerActivity::Preparing,
            RunnerActivity::Idle,
            RunnerActivity::Running,
        ] {
            assert_eq!(judge(&status(state, SetupPhase::Running, None), &mut seen), Verdict::GoOn);
        }
        assert!(seen);
        // Its listener may restart itself for an update, so a pause while the script runs is no end.
        let between = status(RunnerActivity::Finished, SetupPhase::Running, None);
        assert_eq!(judge(&between, &mut seen), Verdict::GoOn);
        let over = status(RunnerActivity::Finished, SetupPhase::Exited, Some(0));
        assert_eq!(judge(&over, &mut seen), Verdict::Finished);
    }

    #[test]
    fn a_runner_left_in_the_background_goes_on_after_its_script() {
        let mut seen = false;
        let listening = status(RunnerActivity::Idle, SetupPhase::Exited, Some(0));
        assert_eq!(judge(&listening, &mut seen), Verdict::GoOn);
        let gone = status(RunnerActivity::Offline, SetupPhase::Exited, Some(0));
        assert_eq!(judge(&gone, &mut seen), Verdict::Finished);
    }

    #[test]
    fn a_failed_script_is_a_failure_unless_a_job_runs() {
        let failed = |state| judge(&status(state, SetupPhase::Exited, Some(3)), &mut false);
        assert_eq!(failed(RunnerActivity::Offline), Verdict::SetupFailed(3));
        assert_eq!(failed(RunnerActivity::Idle), Verdict::SetupFailed(3));
        assert_eq!(failed(RunnerActivity::Running), Verdict::GoOn);
    }

    #[test]
    fn pain_06_a_script_that_starts_no_runner_waits_for_one() {
        let none = status(RunnerActivity::Offline, SetupPhase::Exited, Some(0));
        assert_eq!(judge(&none, &mut false), Verdict::AwaitRegistration);
    }

    #[test]
    fn pain_06_a_runner_that_came_and_went_unseen_has_finished() {
        let gone = status(RunnerActivity::Finished, SetupPhase::Exited, Some(0));
        assert_eq!(judge(&gone, &mut false), Verdict::Finished);
    }

    #[test]
    fn a_guest_agent_that_forgot_the_script_does_not_hold_a_finished_vm() {
        let mut seen = true;
        let forgot = status(RunnerActivity::Offline, SetupPhase::None, None);
        assert_eq!(judge(&forgot, &mut seen), Verdict::Finished);
    }
}
