//! Computes the runner's state from one observation and the state before it. Pure.

use shoes_vz_model::guest::RunnerActivity;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Observation {
    /// A `Runner.Listener` that listens (not one that configures).
    pub listener: bool,
    pub worker: bool,
    /// `config.sh`, or `Runner.Listener configure`.
    pub configuring: bool,
    /// `run.sh`, `run-helper.sh`, `runsvc.sh`: these restart the listener, for example after it has updated itself.
    pub wrapper: bool,
    /// `.runner` exists.
    pub configured: bool,
    /// The logs in `_diag` since this guest's start show that a runner listened or worked.
    pub has_run: bool,
}

pub fn decide(before: RunnerActivity, observation: &Observation) -> RunnerActivity {
    use RunnerActivity::{Finished, Idle, Offline, Preparing, Running};
    let has_run = observation.has_run || matches!(before, Idle | Running | Finished);
    match observation {
        Observation { worker: true, .. } => Running,
        Observation { listener: true, .. } => Idle,
        Observation { configuring: true, .. } => Preparing,
        Observation { wrapper: true, .. } if has_run && before != Finished => Idle,
        _ if has_run => Finished,
        Observation { configured: true, .. } => Preparing,
        _ => Offline,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RunnerActivity::*;
    use proptest::prelude::*;

    const NOTHING: Observation = Observation {
        listener: false,
        worker: false,
        configuring: false,
        wrapper: false,
        configured: false,
        has_run: false,
    };

    fn run(observations: &[Observation]) -> Vec<RunnerActivity> {
        let mut state = Offline;
        observations
            .iter()
            .map(|observation| {
                state = decide(state, observation);
                state
            })
            .collect()
    }

    #[test]
    fn a_runner_is_followed_through_its_life() {
        let configured = Observation { configured: true, wrapper: true, ..NOTHING };
        let listening = Observation { listener: true, ..configured };
        let observations = [
            NOTHING,
            Observation { configuring: true, ..NOTHING },
            Observation { configured: true, ..NOTHING },
            configured,
            listening,
            Observation { worker: true, ..listening },
            listening,
            // An ephemeral runner removes `.runner` before its listener ends.
            Observation { configured: false, ..listening },
            NOTHING,
            NOTHING,
        ];
        let expected =
            [Offline, Preparing, Preparing, Preparing, Idle, Running, Idle, Idle, Finished, Finished];
        assert_eq!(run(&observations), expected);
    }

    #[test]
    fn a_listener_that_updates_itself_is_not_finished() {
        let observations = [
            Observation { listener: true, wrapper: true, ..NOTHING },
            Observation { wrapper: true, ..NOTHING },
        ];
        assert_eq!(run(&observations), [Idle, Idle]);
    }

    #[test]
    fn a_runner_that_started_and_ended_between_two_observations_is_finished() {
        assert_eq!(run(&[NOTHING, Observation { has_run: true, ..NOTHING }]), [Offline, Finished]);
    }

    #[test]
    fn a_configuration_that_failed_is_not_a_finished_runner() {
        assert_eq!(run(&[Observation { configuring: true, ..NOTHING }, NOTHING]), [Preparing, Offline]);
    }

    prop_compose! {
        fn observation()(b in any::<[bool; 6]>()) -> Observation {
            Observation { listener: b[0], worker: b[1], configuring: b[2], wrapper: b[3], configured: b[4], has_run: b[5] }
        }
    }

    proptest! {
        #[test]
        fn a_worker_always_means_running_and_an_observed_runner_is_never_forgotten(
            observations in proptest::collection::vec(observation(), 1..20),
        ) {
            let states = run(&observations);
            let mut ever = false;
            for (observation, state) in observations.iter().zip(&states) {
                prop_assert_eq!(observation.worker, *state == Running);
                ever |= observation.worker || observation.listener || observation.has_run;
                prop_assert!(*state != Finished || ever, "finished, but no runner was observed");
                if ever && !observation.configuring && matches!(state, Offline | Preparing) {
                    // Only a new configuration resets the state.
                    prop_assert!(observations.iter().any(|l| l.configuring));
                }
            }
        }

        #[test]
        fn the_same_observation_again_changes_nothing(before in 1i32..=5, observation in observation()) {
            let once = decide(RunnerActivity::try_from(before).unwrap(), &observation);
            prop_assert_eq!(decide(once, &observation), once);
        }
    }
}
