//! What to tell about a runner under way: each stage as it begins and ends, a wait and its reason, a failure. And how
//! many runners an agent that is drained has left.

use std::io::Write as _;

use shoes_vz_model::{Stage, state::stage_from_wire};
use shoes_vz_proto::fleet::RunnerView;
use tokio::time::Instant;

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
                events.push(Event::Over(
                    stage,
                    std::time::Duration::from_micros(timing.duration_us).as_secs_f64() * 1e3,
                ));
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

/// How it is told on stderr.
#[derive(Debug)]
pub(super) enum Teller {
    /// A line for each stage, the one under way rewritten in place as time goes by.
    Live { under: Option<(Stage, Instant)>, waits: String },
    /// A line for each event.
    Plain,
}

impl Teller {
    pub(super) fn new(terminal: bool) -> Self {
        if terminal { Self::Live { under: None, waits: String::new() } } else { Self::Plain }
    }

    /// Whether [`Teller::tick`] shows anything.
    pub(super) fn is_live(&self) -> bool {
        matches!(self, Self::Live { .. })
    }

    pub(super) fn tell(&mut self, event: &Event) {
        let text = match self {
            Self::Plain => match event {
                Event::Under(stage) => format!("{} …\n", stage.as_str()),
                _ => format!("{}\n", line(event)),
            },
            Self::Live { under, waits } => match event {
                Event::Under(stage) => {
                    *under = Some((*stage, Instant::now()));
                    waits.clear();
                    String::new()
                }
                Event::Waits(why) => {
                    waits.clone_from(why);
                    String::new()
                }
                Event::Over(stage, _) => {
                    if under.is_some_and(|(s, _)| s == *stage) {
                        *under = None;
                    }
                    format!("\r\x1b[K{}\n", line(event))
                }
                Event::Failed(_) => format!("\r\x1b[K{}\n", line(event)),
            },
        };
        write(&text);
        self.tick();
    }

    /// Rewrites the live line.
    pub(super) fn tick(&self) {
        if let Self::Live { under: Some((stage, since)), waits } = self {
            let dash = if waits.is_empty() { "" } else { " — " };
            write(&format!(
                "\r\x1b[K{:<9}… {:.1} s{dash}{waits}",
                stage.as_str(),
                since.elapsed().as_secs_f64()
            ));
        }
    }

    /// Clears the live line; what follows stands on one of its own.
    pub(super) fn end(&mut self) {
        if let Self::Live { under, .. } = self
            && under.take().is_some()
        {
            write("\r\x1b[K");
        }
    }
}

/// One thing that counts down, told on stderr.
#[derive(Debug)]
pub(super) struct Counter {
    terminal: bool,
    since: Instant,
    text: String,
}

impl Counter {
    pub(super) fn new(terminal: bool) -> Self {
        Self { terminal, since: Instant::now(), text: String::new() }
    }

    /// Whether [`Counter::tick`] shows anything.
    pub(super) fn is_live(&self) -> bool {
        self.terminal
    }

    /// Where it stands: the live line's new text on a terminal, a line of its own elsewhere, nothing told twice.
    pub(super) fn tell(&mut self, text: &str) {
        if self.text == text {
            return;
        }
        text.clone_into(&mut self.text);
        if self.terminal {
            self.tick();
        } else {
            write(&format!("{text}\n"));
        }
    }

    /// Rewrites the live line.
    pub(super) fn tick(&self) {
        if self.terminal && !self.text.is_empty() {
            write(&format!("\r\x1b[K{} … {:.1} s", self.text, self.since.elapsed().as_secs_f64()));
        }
    }

    /// Clears the live line; what follows stands on one of its own.
    pub(super) fn end(&mut self) {
        if self.terminal && !std::mem::take(&mut self.text).is_empty() {
            write("\r\x1b[K");
        }
    }
}

fn line(event: &Event) -> String {
    match event {
        Event::Over(stage, ms) => format!("{:<9} {ms:>9.1} ms", stage.as_str()),
        Event::Under(stage) => stage.as_str().to_owned(),
        Event::Waits(why) => format!("waiting: {why}"),
        Event::Failed(why) => format!("failed: {why}"),
    }
}

/// Progress is a courtesy: a stderr nobody reads must not fail the command.
fn write(text: &str) {
    let mut err = std::io::stderr().lock();
    let written = err.write_all(text.as_bytes()).and_then(|()| err.flush());
    if let Err(error) = written {
        tracing::debug!(%error, "progress could not be shown");
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
