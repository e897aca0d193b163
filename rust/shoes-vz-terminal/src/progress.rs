//! What happens while somebody waits: on a terminal one live line, cut to its width and rewritten in place; elsewhere a
//! line for each event and none for the time that passes.
//!
//! The cursor is never hidden, so a program that a signal ends leaves the terminal as it was.

use std::{
    fmt::{self, Write as _},
    io::{self, IsTerminal as _},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle, WeakProgressBar};

use crate::{output, text};

/// How often a live line's clock is rewritten.
const TICK: Duration = Duration::from_millis(100);
/// `wide_msg` is what is cut to the terminal's width; what stands before it is short.
const TEMPLATE: &str = "{prefix:9} … {since} {wide_msg}";
const LONGEST_PREFIX: usize = 20;

/// The live line there is, for what is written beside it.
static LIVE: Mutex<Option<WeakProgressBar>> = Mutex::new(None);

/// Where progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// A terminal that can rewrite a line.
    Terminal,
    /// A file, a pipe, a log, a terminal that only prints.
    Plain,
}

impl Place {
    /// What stderr is.
    pub fn of_stderr() -> Self {
        let only_prints = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if io::stderr().is_terminal() && !only_prints { Self::Terminal } else { Self::Plain }
    }
}

/// Progress on stderr. Dropping it clears the live line; the lines above it stay.
#[derive(Debug)]
pub struct Progress {
    place: Place,
    bar: Option<ProgressBar>,
    said: String,
}

impl Progress {
    /// With nothing shown yet.
    pub fn new(place: Place) -> Self {
        Self { place, bar: None, said: String::new() }
    }

    /// Whether time that passes is shown.
    pub fn is_live(&self) -> bool {
        self.place == Place::Terminal
    }

    /// A line that stays.
    pub fn event(&self, line: &str) {
        output::note(&text::lines(line));
    }

    /// What goes on from now on: on a terminal the live line, with the time since `what` (one or two words) began and
    /// `more` as far as there is room; elsewhere a line when `what` begins.
    pub fn now(&mut self, what: &str, more: &str) {
        let what: String = text::line(what).chars().take(LONGEST_PREFIX).collect();
        let began = self.said != what;
        if self.place == Place::Plain {
            if began {
                output::note(&format!("{what} …"));
            }
        } else {
            let bar = self.bar.get_or_insert_with(live_line);
            if began {
                bar.reset_elapsed();
                bar.set_prefix(what.clone());
            }
            let more = text::line(more);
            bar.set_message(if more.is_empty() { more } else { format!("— {more}") });
        }
        self.said = what;
    }

    /// Nothing goes on: the live line is cleared until the next [`Progress::now`].
    pub fn pause(&mut self) {
        self.said.clear();
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
            *live() = None;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.pause();
    }
}

fn live_line() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_style(style());
    bar.enable_steady_tick(TICK);
    *live() = Some(bar.downgrade());
    bar
}

fn style() -> ProgressStyle {
    let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_spinner());
    style.with_key("since", |state: &ProgressState, out: &mut dyn fmt::Write| {
        // Into a String, which takes everything.
        let _ = out.write_str(&since(state.elapsed()));
    })
}

fn since(time: Duration) -> String {
    let mut text = String::new();
    let _ = match time.as_secs() {
        0..=59 => write!(text, "{:.1} s", time.as_secs_f64()),
        s @ 60..=3599 => write!(text, "{} min {} s", s / 60, s % 60),
        s => write!(text, "{} h {} min", s / 3600, s % 3600 / 60),
    };
    text
}

/// Does `write` while no live line stands where it writes.
pub(crate) fn aside<T>(write: impl FnOnce() -> T) -> T {
    let bar = live().as_ref().and_then(WeakProgressBar::upgrade);
    match bar {
        Some(bar) if !bar.is_finished() => bar.suspend(write),
        _ => write(),
    }
}

/// A panic elsewhere leaves nothing half done in there.
fn live() -> MutexGuard<'static, Option<WeakProgressBar>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_live_lines_template_is_one_that_indicatif_reads() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }

    #[test]
    fn a_wait_is_told_in_the_unit_that_fits_it() {
        let told = |millis| since(Duration::from_millis(millis));
        assert_eq!(
            [3200, 59_900, 65_000, 7_500_000].map(told),
            ["3.2 s", "59.9 s", "1 min 5 s", "2 h 5 min"]
        );
    }
}
