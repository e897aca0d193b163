//! Progress on stderr: the stages of a runner as they begin and end, its wait and its failure; how many runners a draining
//! agent has left; and that a slow call is still pending.

use std::time::Duration;

use shoes_vz_model::Stage;
use shoes_vz_proto::convert::stage_from_wire;
use shoes_vz_proto::fleet::RunnerView;
use shoes_vz_terminal::progress::{Progress, ProgressTarget};
use tokio::time::timeout;

use super::view;

/// One line of progress.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// With its duration in milliseconds.
    StageEnded(Stage, f64),
    StageBegan(Stage),
    /// The request waits in the queue for this reason.
    Waiting(String),
    Failed(String),
}

/// What has been shown, so that nothing is shown twice.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    ended: Vec<Stage>,
    current: Option<Stage>,
    waiting: String,
    failed: String,
}

impl Tracker {
    /// The events that are new in `view`.
    pub(super) fn update(&mut self, view: &RunnerView) -> Vec<Event> {
        let mut events = Vec::new();
        let Some(runner) = &view.runner else { return events };
        for timing in &runner.stages {
            let Some(stage) = stage_from_wire(timing.stage) else { continue };
            if !self.ended.contains(&stage) {
                self.ended.push(stage);
                events.push(Event::StageEnded(
                    stage,
                    Duration::from_micros(timing.duration_us).as_secs_f64() * 1e3,
                ));
            }
        }
        if let Some(stage) = stage_from_wire(runner.stage).filter(|s| !self.ended.contains(s))
            && self.current != Some(stage)
        {
            self.current = Some(stage);
            events.push(Event::StageBegan(stage));
        }
        if view.pending_reason != self.waiting {
            self.waiting.clone_from(&view.pending_reason);
            if !self.waiting.is_empty() {
                events.push(Event::Waiting(self.waiting.clone()));
            }
        }
        if runner.error_message != self.failed {
            self.failed.clone_from(&runner.error_message);
            events.push(Event::Failed(self.failed.clone()));
        }
        events
    }

    pub(super) fn has_ended(&self, stage: Stage) -> bool {
        self.ended.contains(&stage)
    }
}

/// How long a wait stays unannounced. On a terminal it is one line that disappears again, so it comes sooner.
fn quiet_period(place: ProgressTarget) -> Duration {
    match place {
        ProgressTarget::Terminal => Duration::from_secs(1),
        ProgressTarget::Plain => Duration::from_secs(5),
    }
}

/// Awaits `call`, and shows that it waits for `what` when it takes long.
pub(super) async fn with_progress<T>(what: &str, call: impl Future<Output = T>) -> T {
    let place = ProgressTarget::of_stderr();
    tokio::pin!(call);
    if let Ok(done) = timeout(quiet_period(place), &mut call).await {
        return done;
    }
    let mut progress = Progress::new(place);
    wait(&mut progress, what);
    call.await
}

fn wait(progress: &mut Progress, what: &str) {
    if progress.is_live() {
        progress.now("waiting", what);
    } else {
        progress.event(&format!("waiting for {what} …"));
    }
}

/// The progress of one runner on stderr. Dropping it clears the live line, so that what follows begins on a new line.
#[derive(Debug)]
pub(super) struct RunnerProgress {
    progress: Progress,
    /// Whether nothing has been shown yet.
    pub(super) is_quiet: bool,
    pub(super) quiet_period: Duration,
    current: Option<Stage>,
}

impl RunnerProgress {
    pub(super) fn new() -> Self {
        let place = ProgressTarget::of_stderr();
        let (progress, quiet_period) = (Progress::new(place), quiet_period(place));
        Self { progress, is_quiet: true, quiet_period, current: None }
    }

    /// Shows a wait about which nothing else is known.
    pub(super) fn wait(&mut self, what: &str) {
        self.is_quiet = false;
        wait(&mut self.progress, what);
    }

    pub(super) fn show(&mut self, event: &Event) {
        self.is_quiet = false;
        match event {
            Event::StageBegan(stage) => {
                self.current = Some(*stage);
                self.progress.now(stage.as_str(), "");
            }
            Event::Waiting(reason) if self.progress.is_live() => {
                self.progress.now(self.current.map_or("queue", Stage::as_str), reason);
            }
            Event::StageEnded(stage, _) => {
                if self.current == Some(*stage) {
                    self.current = None;
                    self.progress.pause();
                }
                self.progress.event(&line(event));
            }
            Event::Waiting(_) | Event::Failed(_) => self.progress.event(&line(event)),
        }
    }
}

/// A count that goes down, on stderr. Dropping it clears the live line.
#[derive(Debug)]
pub(super) struct Counter {
    what: &'static str,
    progress: Progress,
    shown: String,
}

impl Counter {
    /// `what` names the activity in one word.
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, progress: Progress::new(ProgressTarget::of_stderr()), shown: String::new() }
    }

    /// Replaces the live line on a terminal; prints a line elsewhere. Repeated text is shown once.
    pub(super) fn show(&mut self, text: &str) {
        if self.shown == text {
            return;
        }
        text.clone_into(&mut self.shown);
        if self.progress.is_live() {
            self.progress.now(self.what, text);
        } else {
            self.progress.event(text);
        }
    }
}

fn line(event: &Event) -> String {
    match event {
        Event::StageEnded(stage, ms) => format!("{:<9} {ms:>9.1} ms", stage.as_str()),
        Event::StageBegan(stage) => stage.as_str().to_owned(),
        Event::Waiting(reason) => format!("waiting: {reason}"),
        Event::Failed(reason) => format!("failed: {}", view::headline(reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoes_vz_proto::agent::{Runner, RunnerStage, StageTiming};

    fn view(stage: Stage, ended: &[(Stage, u64)], pending_reason: &str) -> RunnerView {
        let stages = ended
            .iter()
            .map(|(s, us)| StageTiming {
                stage: RunnerStage::from(*s).into(),
                started_at: None,
                duration_us: *us,
            })
            .collect();
        let runner = Runner { stage: RunnerStage::from(stage).into(), stages, ..Runner::default() };
        RunnerView { runner: Some(runner), pending_reason: pending_reason.into(), ..RunnerView::default() }
    }

    #[test]
    fn each_stage_is_shown_once_as_it_begins_and_as_it_ends() {
        let mut tracker = Tracker::default();
        assert_eq!(
            tracker.update(&view(Stage::Queue, &[], "no slot")),
            [Event::StageBegan(Stage::Queue), Event::Waiting("no slot".into())]
        );
        assert_eq!(tracker.update(&view(Stage::Queue, &[], "no slot")), []);
        let both = [(Stage::Queue, 1500), (Stage::Clone, 2000)];
        assert_eq!(
            tracker.update(&view(Stage::Start, &both, "")),
            [
                Event::StageEnded(Stage::Queue, 1.5),
                Event::StageEnded(Stage::Clone, 2.0),
                Event::StageBegan(Stage::Start)
            ]
        );
        assert!(tracker.has_ended(Stage::Clone) && !tracker.has_ended(Stage::Start));
    }

    #[test]
    fn a_stage_reported_as_ended_is_not_shown_as_begun() {
        let mut tracker = Tracker::default();
        assert_eq!(
            tracker.update(&view(Stage::Ssh, &[(Stage::Ssh, 1000)], "")),
            [Event::StageEnded(Stage::Ssh, 1.0)]
        );
    }

    #[test]
    fn a_failure_is_shown_once() {
        let mut failed = view(Stage::Guest, &[], "");
        failed.runner.as_mut().unwrap().error_message = "panic".into();
        let mut tracker = Tracker::default();
        assert!(tracker.update(&failed).contains(&Event::Failed("panic".into())));
        assert_eq!(tracker.update(&failed), []);
    }
}
