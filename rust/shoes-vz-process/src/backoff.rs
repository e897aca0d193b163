//! Growing pauses between attempts.

use std::time::Duration;

/// An endless iterator of pauses: `first`, then twice as long each time, up to `longest`.
#[derive(Debug, Clone)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first.min(longest) }
    }

    /// To be called after a success: the next pause is `first` again.
    pub fn reset(&mut self) {
        self.next = self.first.min(self.longest);
    }

    /// Whether no pause was taken since the start or the last [`Self::reset`].
    pub fn is_fresh(&self) -> bool {
        self.next == self.first.min(self.longest)
    }

    pub fn pause(&mut self) -> Duration {
        let pause = self.next;
        self.next = pause.saturating_mul(2).min(self.longest);
        pause
    }

    /// The next pause, shortened by up to a half, so that many callers do not retry at the same time. `random` is a random
    /// byte: the caller draws it, so that a simulation can repeat it.
    pub fn jittered(&mut self, random: u8) -> Duration {
        let whole = self.pause();
        whole / 2 + whole / 2 * u32::from(random) / 255
    }
}

impl Iterator for Backoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(self.pause())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(100);
    const LONGEST: Duration = Duration::from_secs(5);

    #[test]
    fn pauses_double_up_to_the_longest_and_start_over_after_a_success() {
        let mut backoff = Backoff::new(FIRST, LONGEST);
        assert!(backoff.is_fresh());
        assert_eq!(backoff.pause(), FIRST);
        assert_eq!(backoff.pause(), FIRST * 2);
        assert!(!backoff.is_fresh());
        assert_eq!(backoff.by_ref().nth(10), Some(LONGEST));
        backoff.reset();
        assert!(backoff.is_fresh());
        assert_eq!(backoff.pause(), FIRST);
    }

    #[test]
    fn jitter_takes_at_most_half_of_a_pause() {
        assert_eq!(Backoff::new(FIRST, LONGEST).jittered(0), FIRST / 2);
        assert_eq!(Backoff::new(FIRST, LONGEST).jittered(255), FIRST);
    }

    #[test]
    fn a_first_pause_above_the_longest_is_cut() {
        assert_eq!(Backoff::new(LONGEST, FIRST).pause(), FIRST);
    }
}
