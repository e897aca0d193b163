//! Whether a guest still responds. One that is healthy and idle sends nothing for hours, so it is asked.
//!
//! Silence is counted in unanswered requests, each with the time it took and no more than a request may take. So a host that
//! slept, a VM that was paused, a guest agent that was restarted and a guest that stalled do not count as unresponsive: any
//! answer, any event and any output of the setup script resets the count.

use std::{sync::Arc, time::Duration};

use shoes_vz_model::guest::{RunnerActivity, SetupPhase, Status};
use shoes_vz_process::units;
use shoes_vz_proto::vm::{VmState, VmStatus};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::guest::{FollowerView, Guest};

/// Between an answer and the next request, and until its answer must arrive; both less where the limit is short.
const ASK_EVERY: Duration = Duration::from_secs(30);
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// So many requests fit into the limit even when none is answered before its deadline.
const REQUESTS: u32 = 20;
/// However much time has passed, fewer unanswered requests than this do not count.
const LEAST_UNANSWERED: u32 = 3;

/// A guest that did not respond for too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Silence {
    pub(super) lasted: Duration,
    pub(super) unanswered: u32,
    /// Its last answer and its age; `None`: it has not answered this agent.
    pub(super) last: Option<(String, Duration)>,
    /// Of the last request.
    pub(super) error: String,
}

/// Asks the guest until it has been silent for `limit`; without one, without end. Answers also show when a stream of events
/// that stays open has stalled; it is then opened again.
pub(super) async fn silence(
    guest: Arc<dyn Guest>,
    mut vm: watch::Receiver<VmStatus>,
    view: FollowerView,
    limit: Option<Duration>,
) -> Silence {
    let mut count = Count::new(limit);
    let mut seen = view.snapshot();
    loop {
        sleep(count.every).await;
        let asked = Instant::now();
        let answer = timeout(count.deadline, guest.query_status()).await;
        if is_paused(&vm.borrow()) {
            // The VM's end is awaited elsewhere; a follower that died would end it too.
            drop(vm.wait_for(|s| !is_paused(s)).await);
            count.reset();
            continue;
        }
        let before = std::mem::replace(&mut seen, view.snapshot());
        let reason = match answer {
            Ok(Ok(status)) => {
                if let Some(status) = &status
                    && seen == before
                    && view.is_behind(status)
                {
                    view.reopen();
                }
                count.answered(status.map_or_else(|| "an answer without a status".into(), |s| describe(&s)));
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {}", units::show_duration(count.deadline)),
        };
        if seen != before {
            count.answered(seen.0.as_ref().map_or_else(|| "the setup script's output".into(), describe));
            continue;
        }
        tracing::debug!(reason, "guest agent does not answer");
        if let Some(silence) = count.missed(asked.elapsed(), reason) {
            return silence;
        }
    }
}

fn is_paused(vm: &VmStatus) -> bool {
    vm.state() == VmState::Paused
}

fn describe(status: &Status) -> String {
    let runner = match status.state {
        RunnerActivity::Offline => "no Actions runner yet",
        RunnerActivity::Idle => "the Actions runner listens",
        RunnerActivity::Preparing => "the Actions runner is being configured",
        RunnerActivity::Running => "the Actions runner works on a job",
        RunnerActivity::Finished => "the Actions runner has exited",
    };
    let setup = match (status.setup.phase, status.setup.exit_code) {
        (SetupPhase::None, _) => "no setup script".into(),
        (SetupPhase::Running, _) => "the setup script runs".into(),
        (SetupPhase::Exited, code) => format!("the setup script exited {}", code.unwrap_or_default()),
    };
    format!("{runner}, {setup}")
}

/// The count itself: no waiting, no asking.
struct Count {
    limit: Option<Duration>,
    every: Duration,
    deadline: Duration,
    silent: Duration,
    unanswered: u32,
    last: Option<(String, Instant)>,
}

impl Count {
    fn new(limit: Option<Duration>) -> Self {
        let share = limit.map_or(Duration::MAX, |l| l / REQUESTS / 2);
        let (every, deadline) = (ASK_EVERY.min(share), ANSWER_DEADLINE.min(share));
        Self { limit, every, deadline, silent: Duration::ZERO, unanswered: 0, last: None }
    }

    fn reset(&mut self) {
        (self.silent, self.unanswered) = (Duration::ZERO, 0);
    }

    fn answered(&mut self, what: String) {
        self.reset();
        self.last = Some((what, Instant::now()));
    }

    /// A request that was not answered in the time it `took`, and the pause before it.
    fn missed(&mut self, took: Duration, error: String) -> Option<Silence> {
        self.silent += self.every + took.min(self.deadline);
        self.unanswered += 1;
        let over = self.limit.is_some_and(|l| self.silent >= l) && self.unanswered >= LEAST_UNANSWERED;
        over.then(|| Silence {
            lasted: self.silent,
            unanswered: self.unanswered,
            last: self.last.as_ref().map(|(what, at)| (what.clone(), at.elapsed())),
            error,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(600);

    fn missed(count: &mut Count, took: Duration) -> Option<Silence> {
        count.missed(took, "refused".into())
    }

    #[tokio::test]
    async fn requests_unanswered_for_the_whole_limit_are_silence_and_show_the_last_answer() {
        let mut count = Count::new(Some(LIMIT));
        assert_eq!(count.every + count.deadline, LIMIT / REQUESTS);
        count.answered("it was fine".into());
        for _ in 1..REQUESTS {
            let took = count.deadline;
            assert_eq!(missed(&mut count, took), None);
        }
        let silence = missed(&mut count, Duration::from_secs(99)).unwrap();
        assert_eq!(
            (silence.lasted, silence.unanswered, silence.error.as_str()),
            (LIMIT, REQUESTS, "refused")
        );
        assert_eq!(silence.last.unwrap().0, "it was fine");
    }

    #[tokio::test]
    async fn one_answer_is_enough_to_reset() {
        let mut count = Count::new(Some(LIMIT));
        for _ in 0..5 {
            for _ in 1..REQUESTS {
                assert_eq!(missed(&mut count, Duration::from_secs(30)), None);
            }
            count.answered("restarted".into());
        }
    }

    #[test]
    fn a_host_that_slept_through_a_request_counts_it_as_one() {
        let mut count = Count::new(Some(LIMIT));
        for _ in 1..REQUESTS {
            assert_eq!(missed(&mut count, Duration::from_secs(8 * 3600)), None);
        }
        assert!(missed(&mut count, Duration::from_secs(8 * 3600)).is_some());
    }

    #[test]
    fn without_a_limit_nothing_is_silence() {
        let mut count = Count::new(None);
        assert_eq!((count.every, count.deadline), (ASK_EVERY, ANSWER_DEADLINE));
        assert!((0..10_000).all(|_| missed(&mut count, Duration::from_secs(30)).is_none()));
    }
}
