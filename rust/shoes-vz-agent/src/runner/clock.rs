//! Where a runner's time goes: one stage under way, those before it over, measured monotonically.

use std::time::Duration;

use jiff::Timestamp;
use shoes_vz_model::{Ambient, state::Stage};
use shoes_vz_proto::{agent as wire, convert};
use tokio::time::Instant;

/// A stage that is over, as in `RuntimeMetadata.json`: name, start, microseconds.
pub(super) type Over = (String, Timestamp, u64);

/// The stages of one runner.
#[derive(Debug)]
pub(super) struct Clock {
    ambient: Ambient,
    over: Vec<Over>,
    stage: Stage,
    began: Timestamp,
    /// Monotonic; what passed before an adoption is in `before`.
    since: Instant,
    before: Duration,
}

impl Clock {
    /// Begins with `stage`, now.
    pub(super) fn start(ambient: Ambient, stage: Stage) -> Self {
        let began = ambient.now();
        Self { ambient, over: Vec::new(), stage, began, since: Instant::now(), before: Duration::ZERO }
    }

    /// Goes on after a restart: the stage under way began when the last one was over.
    pub(super) fn resume(ambient: Ambient, over: Vec<Over>, stage: Stage, created_at: Timestamp) -> Self {
        let now = ambient.now();
        let began = over.last().map_or(created_at, |(_, start, us)| {
            start.checked_add(Duration::from_micros(*us)).unwrap_or(now)
        });
        let before = Duration::try_from(now.duration_since(began)).unwrap_or_default();
        Self { ambient, over, stage, began, since: Instant::now(), before }
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
        self.over.push((self.stage.as_str().to_owned(), self.began, us));
    }

    pub(super) fn stage(&self) -> Stage {
        self.stage
    }

    /// How long the stage under way has been.
    pub(super) fn in_stage(&self) -> Duration {
        self.before + self.since.elapsed()
    }

    pub(super) fn over(&self) -> &[Over] {
        &self.over
    }

    pub(super) fn to_wire(&self) -> Vec<wire::StageTiming> {
        let stage_of = |name: &str| Stage::ALL.into_iter().find(|s| s.as_str() == name);
        self.over
            .iter()
            .filter_map(|(name, start, us)| {
                Some(wire::StageTiming {
                    stage: wire::RunnerStage::from(stage_of(name)?) as i32,
                    started_at: Some(convert::time_to_wire(*start)),
                    duration_us: *us,
                })
            })
            .collect()
    }
}

/// The stage of a wire runner, for its words.
pub(super) fn stage_name(number: i32) -> &'static str {
    convert::stage_from_wire(number).map_or("unknown", Stage::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn each_stage_gets_its_own_time_and_no_moment_counts_twice() {
        let whole = Instant::now();
        let mut clock = Clock::start(Ambient::real(), Stage::Clone);
        tokio::time::sleep(Duration::from_millis(20)).await;
        clock.enter(Stage::Start);
        clock.enter(Stage::Start);
        clock.enter(Stage::Guest);
        let names: Vec<_> = clock.over().iter().map(|(name, _, _)| name.as_str()).collect();
        assert_eq!(names, ["clone", "start"]);
        let (clone, start) = (clock.over()[0].2, clock.over()[1].2);
        assert!(
            clone >= 20_000 && u128::from(clone + start) <= whole.elapsed().as_micros(),
            "{clone} {start}"
        );
        assert_eq!(clock.to_wire()[1].stage, wire::RunnerStage::Start as i32);
    }

    #[tokio::test]
    async fn a_stage_goes_on_through_a_restart() {
        let start: Timestamp = Timestamp::now() - Duration::from_secs(60);
        let clock =
            Clock::resume(Ambient::real(), vec![("clone".into(), start, 10_000_000)], Stage::Job, start);
        let secs = clock.in_stage().as_secs();
        assert!((49..=52).contains(&secs), "{secs}");
    }
}
