//! Limits log lines that others can cause as often as they like: the first few are logged, later ones are counted.
//!
//! A caller that retries every ten seconds, an agent that reconnects in a loop, or anyone without a token must neither fill
//! a disk nor hide the lines that matter. Such a line has a key (what occurred, caused by whom). Within a window the first
//! few occurrences of a key are logged; later ones are counted, and the next line that is logged for the key has their
//! number in its field `suppressed`. Memory is bounded: once there are too many keys, new ones share one.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// How long occurrences of a key are counted together.
const WINDOW: Duration = Duration::from_secs(600);
/// Most keys kept at once.
const MAX_KEYS: usize = 1024;
/// Bytes of a key that count.
const MAX_KEY: usize = 256;
/// The key that keys beyond the most share.
const OTHERS: &str = "\u{0}others";

/// How many occurrences within a window are logged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLimit {
    /// The first.
    Once,
    /// The first five, for what may change to and fro.
    Few,
}

impl LogLimit {
    fn count(self) -> u64 {
        match self {
            Self::Once => 1,
            Self::Few => 5,
        }
    }
}

/// The limiter of one task, which passes the time in.
#[derive(Debug, Default)]
pub struct LogLimiter {
    keys: BTreeMap<String, Window>,
}

#[derive(Debug)]
struct Window {
    began: Duration,
    logged: u64,
    /// Occurrences since the last that was logged.
    suppressed: u64,
}

impl LogLimiter {
    /// Counts an occurrence of `key`. `Some(n)`: log it, and `n` occurrences were suppressed since the last line.
    pub fn admit(&mut self, key: &str, limit: LogLimit, now: Duration) -> Option<u64> {
        let key = cut(key);
        if !self.keys.contains_key(key) && self.keys.len() >= MAX_KEYS {
            self.keys.retain(|_, window| now.saturating_sub(window.began) < WINDOW);
        }
        let key = match self.keys.contains_key(key) || self.keys.len() < MAX_KEYS {
            true => key,
            false => OTHERS,
        };
        let new = Window { began: now, logged: 0, suppressed: 0 };
        let window = self.keys.entry(key.to_owned()).or_insert(new);
        if now.saturating_sub(window.began) >= WINDOW {
            (window.began, window.logged) = (now, 0);
        }
        if window.logged >= limit.count() {
            window.suppressed += 1;
            return None;
        }
        window.logged += 1;
        Some(std::mem::take(&mut window.suppressed))
    }
}

fn cut(key: &str) -> &str {
    let mut end = key.len().min(MAX_KEY);
    while !key.is_char_boundary(end) {
        end -= 1;
    }
    &key[..end]
}

/// The limiter of several tasks, which reads the clock itself.
#[derive(Debug)]
pub struct SharedLogLimiter {
    began: Instant,
    limiter: Mutex<LogLimiter>,
}

impl Default for SharedLogLimiter {
    fn default() -> Self {
        Self { began: Instant::now(), limiter: Mutex::default() }
    }
}

impl SharedLogLimiter {
    /// As [`LogLimiter::admit`], now.
    pub fn admit(&self, key: &str, limit: LogLimit) -> Option<u64> {
        let now = self.began.elapsed();
        self.limiter.lock().unwrap_or_else(PoisonError::into_inner).admit(key, limit, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_line_is_logged_once_then_counted_and_its_count_is_logged_in_the_next_window() {
        let mut limiter = LogLimiter::default();
        assert_eq!(limiter.admit("a", LogLimit::Once, at(0)), Some(0));
        for second in 1..600 {
            assert_eq!(limiter.admit("a", LogLimit::Once, at(second)), None);
        }
        assert_eq!(limiter.admit("b", LogLimit::Once, at(300)), Some(0), "each key has its own count");
        assert_eq!(limiter.admit("a", LogLimit::Once, at(600)), Some(599));
        assert_eq!(limiter.admit("a", LogLimit::Once, at(601)), None);
    }

    #[test]
    fn what_changes_to_and_fro_is_logged_a_few_times() {
        let mut limiter = LogLimiter::default();
        let logged = (0..100).filter(|s| limiter.admit("a", LogLimit::Few, at(*s)).is_some()).count();
        assert_eq!(logged, 5);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(8))]
        #[test]
        fn no_number_of_keys_fills_memory_or_the_log(keys in proptest::collection::vec("[a-zé]{0,400}", 1..4000)) {
            let mut limiter = LogLimiter::default();
            let logged = keys.iter().filter(|key| limiter.admit(key, LogLimit::Once, at(1)).is_some()).count();
            proptest::prop_assert!(logged <= MAX_KEYS + 1);
            proptest::prop_assert!(limiter.keys.len() <= MAX_KEYS + 1);
            proptest::prop_assert!(limiter.keys.keys().all(|key| key.len() <= MAX_KEY));
        }
    }
}
