//! What to tell about a runner under way: each stage as it begins and ends, a wait and its reason, a failure. And how
//! many runners an agent that is drained has left. And, of any call, that it is waited for.

use std::time::Duration;

use shoes_vz_model::Stage;
use shoes_vz_proto::convert::stage_from_wire;
use shoes_vz_proto::fleet::RunnerView;
use shoes_vz_terminal::progress::{Progress, ProgressTarget};
use tokio::time::timeout;

use super::view;

/// One thing to tell.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// A stage is over; milliseconds.
    Over(Stage, f64),
    /// A stage began.
    Under(Stage),
    /// Why the request waits in the queue.
    Waits(String),
    /// The runner failed.
    Failed(String),
}

/// What has been told, so that nothing is told twice.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    over: Vec<Stage>,
    under: Option<Stage>,
    waits: String,
    failed: String,
}

impl Tracker {
    /// What is new in `view`.
    pub(super) fn update(&mut self, view: &RunnerView) -> Vec<Event> {
        let mut events = Vec::new();
        let Some(runner) = &view.runner else { return events };
        for timing in &runner.stages {
            let Some(stage) = stage_from_wire(timing.stage) else { continue };
            if !self.over.contains(&stage) {
                self.over.push(stage);
                events
                    .push(Event::Over(stage, Duration::from_micros(timing.duration_us).as_secs_f64() * 1e3));
            }
        }
        if let Some(stage) = stage_from_wire(runner.stage).filter(|s| !self.over.contains(s))
            && self.under != Some(stage)
        {
            self.under = Some(stage);
            events.push(Event::Under(stage));
        }
        if view.pending_reason != self.waits {
            self.waits.clone_from(&view.pending_reason);
            if !self.waits.is_empty() {
                events.push(Event::Waits(self.waits.clone()));
            }
        }
        if runner.error_message != self.failed {
            self.failed.clone_from(&runner.error_message);
            events.push(Event::Failed(self.failed.clone()));
        }
        events
    }

    /// Whether `stage` has been told as over.
    pub(super) fn is_over(&self, stage: Stage) -> bool {
        self.over.contains(&stage)
    }
}

/// After how long of silence a wait is shown: on a terminal, where it is one line that goes again, and elsewhere.
fn silence(place: ProgressTarget) -> Duration {
    match place {
        ProgressTarget::Terminal => Duration::from_secs(1),
        ProgressTarget::Plain => Duration::from_secs(5),
    }
}

/// Does `call`, and shows that `what` is waited for when it takes long.
pub(super) async fn shown<T>(what: &str, call: impl Future<Output = T>) -> T {
    let place = ProgressTarget::of_stderr();
    tokio::pin!(call);
    if let Ok(done) = timeout(silence(place), &mut call).await {
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

/// Tells of one runner on stderr.
#[derive(Debug)]
pub(super) struct Teller {
    progress: Progress,
    silent: bool,
    under: Option<Stage>,
    waits: String,
    silence: Duration,
}

impl Teller {
    pub(super) fn new() -> Self {
        let place = ProgressTarget::of_stderr();
        let progress = Progress::new(place);
        Self { progress, silent: true, under: None, waits: String::new(), silence: silence(place) }
    }

    /// How long it may stay silent.
    pub(super) fn silence(&self) -> Duration {
        self.silence
    }

    /// Whether nothing has been told yet.
    pub(super) fn is_silent(&self) -> bool {
        self.silent
    }

    /// Nothing is known yet but that there is a wait.
    pub(super) fn wait(&mut self, what: &str) {
        self.silent = false;
        wait(&mut self.progress, what);
    }

    pub(super) fn tell(&mut self, event: &Event) {
        self.silent = false;
        match event {
            Event::Under(stage) => {
                self.under = Some(*stage);
                self.waits.clear();
                self.progress.now(stage.as_str(), "");
            }
            Event::Waits(why) if self.progress.is_live() => {
                self.waits.clone_from(why);
                self.progress.now(self.under.map_or("queue", Stage::as_str), why);
            }
            Event::Over(stage, _) => {
                if self.under == Some(*stage) {
                    self.under = None;
                    self.progress.pause();
                }
                self.progress.event(&line(event));
            }
            Event::Waits(_) | Event::Failed(_) => self.progress.event(&line(event)),
        }
    }

    /// Clears the live line; what follows stands on one of its own.
    pub(super) fn end(&mut self) {
        self.progress.pause();
    }
}

/// One thing that counts down, told on stderr.
#[derive(Debug)]
pub(super) struct Counter {
    what: &'static str,
    progress: Progress,
    said: String,
}

impl Counter {
    /// `what` is done meanwhile, in one word.
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, progress: Progress::new(ProgressTarget::of_stderr()), said: String::new() }
    }

    /// Where it stands: the live line's new text on a terminal, a line of its own elsewhere, nothing told twice.
    pub(super) fn tell(&mut self, text: &str) {
        if self.said == text {
            return;
        }
        text.clone_into(&mut self.said);
        if self.progress.is_live() {
            self.progress.now(self.what, text);
        } else {
            self.progress.event(text);
        }
    }

    /// Clears the live line; what follows stands on one of its own.
    pub(super) fn end(&mut self) {
        self.progress.pause();
    }
}

fn line(event: &Event) -> String {
    match event {
        Event::Over(stage, ms) => format!("{:<9} {ms:>9.1} ms", stage.as_str()),
        Event::Under(stage) => stage.as_str().to_owned(),
        Event::Waits(why) => format!("waiting: {why}"),
        Event::Failed(why) => format!("failed: {}", view::headline(why)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoes_vz_proto::agent::{Runner, RunnerStage, StageTiming};

    fn view(stage: Stage, over: &[(Stage, u64)], waits: &str) -> RunnerView {
        let stages = over
            .iter()
            .map(|(s, us)| StageTiming {
                stage: RunnerStage::from(*s).into(),
                started_at: None,
                duration_us: *us,
            })
            .collect();
        let runner = Runner { stage: RunnerStage::from(stage).into(), stages, ..Runner::default() };
        RunnerView { runner: Some(runner), pending_reason: waits.into(), ..RunnerView::default() }
    }

    #[test]
    fn each_stage_is_told_once_as_it_begins_and_as_it_ends() {
        let mut tracker = Tracker::default();
        assert_eq!(
            tracker.update(&view(Stage::Queue, &[], "no slot")),
            [Event::Under(Stage::Queue), Event::Waits("no slot".into())]
        );
        assert_eq!(tracker.update(&view(Stage::Queue, &[], "no slot")), []);
        let both = [(Stage::Queue, 1500), (Stage::Clone, 2000)];
        assert_eq!(
            tracker.update(&view(Stage::Start, &both, "")),
            [Event::Over(Stage::Queue, 1.5), Event::Over(Stage::Clone, 2.0), Event::Under(Stage::Start)]
        );
        assert!(tracker.is_over(Stage::Clone) && !tracker.is_over(Stage::Start));
    }

    #[test]
    fn a_stage_reported_as_over_is_not_told_as_begun() {
        let mut tracker = Tracker::default();
        assert_eq!(
            tracker.update(&view(Stage::Ssh, &[(Stage::Ssh, 1000)], "")),
            [Event::Over(Stage::Ssh, 1.0)]
        );
    }

    #[test]
    fn a_failure_is_told_once() {
        let mut failed = view(Stage::Guest, &[], "");
        failed.runner.as_mut().unwrap().error_message = "panic".into();
        let mut tracker = Tracker::default();
        assert!(tracker.update(&failed).contains(&Event::Failed("panic".into())));
        assert_eq!(tracker.update(&failed), []);
    }
}
