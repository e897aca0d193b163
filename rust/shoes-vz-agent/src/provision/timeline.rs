//! Where the time of a VM goes: one stage under way, those before it ended, measured by a monotonic clock.

use std::time::Duration;

use jiff::Timestamp;
use shoes_vz_model::{Ambient, state::Stage};
use tokio::time::Instant;

/// A stage that has ended: its start and its duration in microseconds.
pub(crate) type Ended = (Stage, Timestamp, u64);

#[derive(Debug)]
pub(crate) struct Timeline {
    ambient: Ambient,
    ended: Vec<Ended>,
    stage: Stage,
    began: Timestamp,
    /// Monotonic; what passed before an adoption is in `before`.
    since: Instant,
    before: Duration,
}

impl Timeline {
    pub(super) fn start(ambient: Ambient, stage: Stage) -> Self {
        let began = ambient.now();
        Self { ambient, ended: Vec::new(), stage, began, since: Instant::now(), before: Duration::ZERO }
    }

    /// Continues after a restart: the stage under way began when the last one ended.
    pub(super) fn resume(ambient: Ambient, ended: Vec<Ended>, stage: Stage, created_at: Timestamp) -> Self {
        let now = ambient.now();
        let began = ended.last().map_or(created_at, |(_, start, us)| {
            start.checked_add(Duration::from_micros(*us)).unwrap_or(now)
        });
        let before = Duration::try_from(now.duration_since(began)).unwrap_or_default();
        Self { ambient, ended, stage, began, since: Instant::now(), before }
    }

    /// Ends the stage under way and begins `next`. Beginning the present one again changes nothing.
    pub(super) fn enter(&mut self, next: Stage) {
        if next == self.stage {
            return;
        }
        self.close();
        (self.stage, self.began, self.since, self.before) =
            (next, self.ambient.now(), Instant::now(), Duration::ZERO);
    }

    /// Ends the stage under way for good.
    pub(super) fn close(&mut self) {
        let us = u64::try_from(self.in_stage().as_micros()).unwrap_or(u64::MAX);
        self.ended.push((self.stage, self.began, us));
    }

    pub(crate) fn stage(&self) -> Stage {
        self.stage
    }

    /// How long the stage under way has lasted.
    pub(crate) fn in_stage(&self) -> Duration {
        self.before + self.since.elapsed()
    }

    pub(crate) fn ended(&self) -> &[Ended] {
        &self.ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_stage_gets_its_own_time_and_no_moment_counts_twice() {
        let whole = Instant::now();
        let mut timeline = Timeline::start(Ambient::real(), Stage::Clone);
        tokio::time::sleep(Duration::from_millis(20)).await;
        timeline.enter(Stage::Start);
        timeline.enter(Stage::Start);
        timeline.enter(Stage::Guest);
        let names: Vec<_> = timeline.ended().iter().map(|(stage, _, _)| stage.as_str()).collect();
        assert_eq!(names, ["clone", "start"]);
        let (clone, start) = (timeline.ended()[0].2, timeline.ended()[1].2);
        assert!(
            clone >= 20_000 && u128::from(clone + start) <= whole.elapsed().as_micros(),
            "{clone} {start}"
        );
    }

    #[tokio::test]
    async fn a_stage_goes_on_through_a_restart() {
        let start: Timestamp = Timestamp::now() - Duration::from_secs(60);
        let timeline =
            Timeline::resume(Ambient::real(), vec![(Stage::Clone, start, 10_000_000)], Stage::Job, start);
        let secs = timeline.in_stage().as_secs();
        assert!((49..=52).contains(&secs), "{secs}");
    }
}
