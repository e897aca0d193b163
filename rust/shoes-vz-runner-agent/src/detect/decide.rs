//! From one look and the state before it to the state now. Pure.

use shoes_vz_model::guest::RunnerActivity;

/// One look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Seen {
    /// A `Runner.Listener` that listens (not one that configures).
    pub listener: bool,
    /// A `Runner.Worker`.
    pub worker: bool,
    /// `config.sh`, or `Runner.Listener configure`.
    pub configuring: bool,
    /// `run.sh`, `run-helper.sh`, `runsvc.sh`: these start the listener anew, after it updated itself for one.
    pub wrapper: bool,
    /// `.runner` is there.
    pub configured: bool,
    /// `_diag` of this guest's life shows that a runner listened or worked.
    pub was_there: bool,
}

/// The state now.
pub fn decide(before: RunnerActivity, seen: &Seen) -> RunnerActivity {
    use RunnerActivity::{Finished, Idle, Offline, Preparing, Running};
    let was_there = seen.was_there || matches!(before, Idle | Running | Finished);
    match seen {
        Seen { worker: true, .. } => Running,
        Seen { listener: true, .. } => Idle,
        Seen { configuring: true, .. } => Preparing,
        Seen { wrapper: true, .. } if was_there && before != Finished => Idle,
        _ if was_there => Finished,
        Seen { configured: true, .. } => Preparing,
        _ => Offline,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use RunnerActivity::*;
    use proptest::prelude::*;

    const NOTHING: Seen = Seen {
        listener: false,
        worker: false,
        configuring: false,
        wrapper: false,
        configured: false,
        was_there: false,
    };

    fn run(looks: &[Seen]) -> Vec<RunnerActivity> {
        let mut state = Offline;
        looks
            .iter()
            .map(|seen| {
                state = decide(state, seen);
                state
            })
            .collect()
    }

    #[test]
    fn a_runner_is_followed_through_its_life() {
        let configured = Seen { configured: true, wrapper: true, ..NOTHING };
        let listening = Seen { listener: true, ..configured };
        let looks = [
            NOTHING,
            Seen { configuring: true, ..NOTHING },
            Seen { configured: true, ..NOTHING },
            configured,
            listening,
            Seen { worker: true, ..listening },
            listening,
            // Ephemeral: `.runner` goes before the listener does.
            Seen { configured: false, ..listening },
            NOTHING,
            NOTHING,
        ];
        let expected =
            [Offline, Preparing, Preparing, Preparing, Idle, Running, Idle, Idle, Finished, Finished];
        assert_eq!(run(&looks), expected);
    }

    #[test]
    fn a_listener_that_updates_itself_is_not_finished() {
        let looks = [Seen { listener: true, wrapper: true, ..NOTHING }, Seen { wrapper: true, ..NOTHING }];
        assert_eq!(run(&looks), [Idle, Idle]);
    }

    #[test]
    fn a_runner_that_came_and_went_between_two_looks_is_finished() {
        assert_eq!(run(&[NOTHING, Seen { was_there: true, ..NOTHING }]), [Offline, Finished]);
    }

    #[test]
    fn a_configuration_that_failed_is_not_a_finished_runner() {
        assert_eq!(run(&[Seen { configuring: true, ..NOTHING }, NOTHING]), [Preparing, Offline]);
    }

    prop_compose! {
        fn seen()(b in any::<[bool; 6]>()) -> Seen {
            Seen { listener: b[0], worker: b[1], configuring: b[2], wrapper: b[3], configured: b[4], was_there: b[5] }
        }
    }

    proptest! {
        #[test]
        fn a_worker_always_means_running_and_no_runner_seen_is_ever_forgotten(
            looks in proptest::collection::vec(seen(), 1..20),
        ) {
            let states = run(&looks);
            let mut ever = false;
            for (look, state) in looks.iter().zip(&states) {
                prop_assert_eq!(look.worker, *state == Running);
                ever |= look.worker || look.listener || look.was_there;
                prop_assert!(*state != Finished || ever, "finished, and none was ever seen");
                if ever && !look.configuring && matches!(state, Offline | Preparing) {
                    // Only a new configuration makes it forget.
                    prop_assert!(looks.iter().any(|l| l.configuring));
                }
            }
        }

        #[test]
        fn the_same_look_again_changes_nothing(before in 1i32..=5, look in seen()) {
            let once = decide(RunnerActivity::try_from(before).unwrap(), &look);
            prop_assert_eq!(decide(once, &look), once);
        }
    }
}
