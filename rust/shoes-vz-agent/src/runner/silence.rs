//! Whether a guest is still there. One that is healthy and idle says nothing for hours, so it is asked.
//!
//! Silence is counted in unanswered questions, each with the time it took and no more than a question may take. So a host
//! that slept, a VM that was paused, a guest agent that was restarted and a guest that stalled are none of them silent:
//! any answer, any event and any output of the setup script begins the count anew.

use std::{sync::Arc, time::Duration};

use shoes_vz_model::guest::{RunnerActivity, SetupPhase, Status};
use shoes_vz_process::units;
use shoes_vz_proto::vm::{VmState, VmStatus};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};

use crate::guest::{Guest, Watched};

/// Between an answer and the next question, and until an answer must be there; both less where the limit is short.
const ASK_EVERY: Duration = Duration::from_secs(30);
const ANSWER_DEADLINE: Duration = Duration::from_secs(30);
/// So many questions fit into the limit even when none is answered before its deadline.
const QUESTIONS: u32 = 20;
/// However much time passed, fewer unanswered questions than this mean nothing.
const LEAST_UNANSWERED: u32 = 3;

/// A guest that was not heard of for too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Silence {
    /// For how long it was asked in vain.
    pub(super) lasted: Duration,
    /// How often.
    pub(super) unanswered: u32,
    /// What it said last, and how long ago; `None`: nothing since this agent follows it.
    pub(super) last: Option<(String, Duration)>,
    /// Why the last question was not answered.
    pub(super) error: String,
}

/// Asks the guest until it has been silent for `limit`; without one, for ever. A stream of events that stays open and
/// tells nothing any more is found out by the answers, and opened anew.
pub(super) async fn silence(
    guest: Arc<dyn Guest>,
    mut vm: watch::Receiver<VmStatus>,
    watched: Watched,
    limit: Option<Duration>,
) -> Silence {
    let mut count = Count::new(limit);
    let mut told = watched.told();
    loop {
        sleep(count.every).await;
        let asked = Instant::now();
        let answer = timeout(count.deadline, guest.ask()).await;
        if is_paused(&vm.borrow()) {
            // The VM's end is awaited elsewhere; a follower that died would end it too.
            drop(vm.wait_for(|s| !is_paused(s)).await);
            count.begin_anew();
            continue;
        }
        let before = std::mem::replace(&mut told, watched.told());
        let why = match answer {
            Ok(Ok(status)) => {
                if let Some(status) = &status
                    && told == before
                    && watched.is_behind(status)
                {
                    watched.reopen();
                }
                count.heard(status.map_or_else(|| "an answer without a status".into(), |s| words(&s)));
                continue;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {}", units::show_duration(count.deadline)),
        };
        if told != before {
            count.heard(told.0.as_ref().map_or_else(|| "the setup script's output".into(), words));
            continue;
        }
        tracing::debug!(why, "the guest agent does not answer");
        if let Some(silence) = count.missed(asked.elapsed(), why) {
            return silence;
        }
    }
}

fn is_paused(vm: &VmStatus) -> bool {
    vm.state() == VmState::Paused
}

fn words(status: &Status) -> String {
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
        let share = limit.map_or(Duration::MAX, |l| l / QUESTIONS / 2);
        let (every, deadline) = (ASK_EVERY.min(share), ANSWER_DEADLINE.min(share));
        Self { limit, every, deadline, silent: Duration::ZERO, unanswered: 0, last: None }
    }

    fn begin_anew(&mut self) {
        (self.silent, self.unanswered) = (Duration::ZERO, 0);
    }

    fn heard(&mut self, what: String) {
        self.begin_anew();
        self.last = Some((what, Instant::now()));
    }

    /// A question that was not answered in the time it `took`, and the pause before it.
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
    async fn questions_unanswered_for_the_whole_limit_are_silence_and_say_what_was_last_heard() {
        let mut count = Count::new(Some(LIMIT));
        assert_eq!(count.every + count.deadline, LIMIT / QUESTIONS);
        count.heard("it was fine".into());
        for _ in 1..QUESTIONS {
            let took = count.deadline;
            assert_eq!(missed(&mut count, took), None);
        }
        let silence = missed(&mut count, Duration::from_secs(99)).unwrap();
        assert_eq!(
            (silence.lasted, silence.unanswered, silence.error.as_str()),
            (LIMIT, QUESTIONS, "refused")
        );
        assert_eq!(silence.last.unwrap().0, "it was fine");
    }

    #[tokio::test]
    async fn one_answer_is_enough_to_begin_anew() {
        let mut count = Count::new(Some(LIMIT));
        for _ in 0..5 {
            for _ in 1..QUESTIONS {
                assert_eq!(missed(&mut count, Duration::from_secs(30)), None);
            }
            count.heard("restarted".into());
        }
    }

    #[test]
    fn a_host_that_slept_through_a_question_counts_it_as_one() {
        let mut count = Count::new(Some(LIMIT));
        for _ in 1..QUESTIONS {
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
