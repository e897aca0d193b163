//! Progress of a command: on a terminal one live line, cut to its width and rewritten in place; elsewhere a line for each
//! event and none for the time that passes.
//!
//! The cursor is never hidden, so a program that is ended by a signal leaves the terminal as it was.

use std::{
    fmt,
    io::{self, IsTerminal as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use crate::{live_line, output, text};

/// How often a live line's clock is rewritten.
const TICK: Duration = Duration::from_millis(100);
/// Only `wide_msg` is cut to the terminal's width; the parts before it are short.
const TEMPLATE: &str = "{prefix:9} … {since} {wide_msg}";
const LONGEST_PREFIX: usize = 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProgressTarget {
    /// A terminal that can rewrite a line.
    Terminal,
    /// A file, a pipe, a log, or a terminal that cannot.
    Plain,
}

impl ProgressTarget {
    pub fn of_stderr() -> Self {
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        if io::stderr().is_terminal() && !is_dumb { Self::Terminal } else { Self::Plain }
    }
}

/// Progress on stderr. Dropping it clears the live line and keeps the lines above it.
#[derive(Debug)]
pub struct Progress {
    target: ProgressTarget,
    bar: Option<ProgressBar>,
    activity: String,
}

impl Progress {
    pub fn new(target: ProgressTarget) -> Self {
        Self { target, bar: None, activity: String::new() }
    }

    /// Whether the passing time is shown.
    pub fn is_live(&self) -> bool {
        self.target == ProgressTarget::Terminal
    }

    /// A line that stays.
    pub fn event(&self, line: &str) {
        output::note(&text::lines(line));
    }

    /// Shows the current activity: on a terminal as the live line, with the time since `what` (a verb) began, and
    /// as much of `more` as fits; elsewhere as a line when `what` begins.
    pub fn now(&mut self, what: &str, more: &str) {
        let what: String = text::line(what).chars().take(LONGEST_PREFIX).collect();
        let began = self.activity != what;
        if self.target == ProgressTarget::Plain {
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
        self.activity = what;
    }

    /// There is no activity: clears the live line until the next [`Progress::now`].
    pub fn pause(&mut self) {
        self.activity.clear();
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
            live_line::set(None);
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
    live_line::set(Some(&bar));
    bar
}

fn style() -> ProgressStyle {
    let style = ProgressStyle::with_template(TEMPLATE).unwrap_or_else(|_| ProgressStyle::default_spinner());
    style.with_key("since", |state: &ProgressState, out: &mut dyn fmt::Write| {
        // Writing to a String cannot fail.
        let _ = out.write_str(&since(state.elapsed()));
    })
}

fn since(time: Duration) -> String {
    match time.as_secs() {
        0..=59 => format!("{:.1} s", time.as_secs_f64()),
        s @ 60..=3599 => format!("{} min {} s", s / 60, s % 60),
        s => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_live_lines_template_is_valid_for_indicatif() {
        assert!(ProgressStyle::with_template(TEMPLATE).is_ok());
    }

    #[test]
    fn a_wait_is_shown_in_the_unit_that_fits_it() {
        let shown = |millis| since(Duration::from_millis(millis));
        assert_eq!(
            [3200, 59_900, 65_000, 7_500_000].map(shown),
            ["3.2 s", "59.9 s", "1 min 5 s", "2 h 5 min"]
        );
    }
}
