//! Log lines that somebody else can have repeated at will: said at first, then counted.
//!
//! A caller that asks again every ten seconds, an agent that reconnects in a loop, or anybody without a token must neither
//! fill a disk nor hide the lines that matter. Such a line has a key (what is repeated, by whom). Within a window its first
//! few occurrences are said; later ones are counted, and the next line that is said for the key has their number.
//! Memory is bounded: once there are too many keys, new ones share one.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// A key is heard of again after so long.
const WINDOW: Duration = Duration::from_secs(600);
/// Keys kept at once.
const MOST_KEYS: usize = 1024;
/// Bytes of a key that count.
const LONGEST_KEY: usize = 256;
/// What keys beyond the most share.
const OTHERS: &str = "\u{0}others";

/// How many occurrences within a window are said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Say {
    /// The first one.
    Once,
    /// The first few: for what may change to and fro.
    AFewTimes,
}

impl Say {
    fn limit(self) -> u64 {
        match self {
            Self::Once => 1,
            Self::AFewTimes => 5,
        }
    }
}

/// See the module. The time is handed in.
#[derive(Debug, Default)]
pub struct Repeats {
    keys: BTreeMap<String, Seen>,
}

#[derive(Debug)]
struct Seen {
    /// When its window began.
    since: Duration,
    /// Said within it.
    said: u64,
    /// Not said since the last that was.
    counted: u64,
}

impl Repeats {
    /// Notes that `key` occurred. `Some(n)`: it is to be said, and `n` occurrences were not since it was said last.
    pub fn note(&mut self, key: &str, say: Say, now: Duration) -> Option<u64> {
        let key = cut(key);
        if !self.keys.contains_key(key) && self.keys.len() >= MOST_KEYS {
            self.keys.retain(|_, seen| now.saturating_sub(seen.since) < WINDOW);
        }
        let key = match self.keys.contains_key(key) || self.keys.len() < MOST_KEYS {
            true => key,
            false => OTHERS,
        };
        let seen = self.keys.entry(key.to_owned()).or_insert(Seen { since: now, said: 0, counted: 0 });
        if now.saturating_sub(seen.since) >= WINDOW {
            (seen.since, seen.said) = (now, 0);
        }
        if seen.said >= say.limit() {
            seen.counted += 1;
            return None;
        }
        seen.said += 1;
        Some(std::mem::take(&mut seen.counted))
    }
}

fn cut(key: &str) -> &str {
    let mut end = key.len().min(LONGEST_KEY);
    while !key.is_char_boundary(end) {
        end -= 1;
    }
    &key[..end]
}

/// The same for several tasks, which look at the clock themselves.
#[derive(Debug)]
pub struct SharedRepeats {
    began: Instant,
    repeats: Mutex<Repeats>,
}

impl Default for SharedRepeats {
    fn default() -> Self {
        Self { began: Instant::now(), repeats: Mutex::default() }
    }
}

impl SharedRepeats {
    /// As [`Repeats::note`], now.
    pub fn note(&self, key: &str, say: Say) -> Option<u64> {
        let now = self.began.elapsed();
        self.repeats.lock().unwrap_or_else(PoisonError::into_inner).note(key, say, now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_line_is_said_once_then_counted_and_summed_up_once_its_window_is_over() {
        let mut repeats = Repeats::default();
        assert_eq!(repeats.note("a", Say::Once, at(0)), Some(0));
        for second in 1..600 {
            assert_eq!(repeats.note("a", Say::Once, at(second)), None);
        }
        assert_eq!(repeats.note("b", Say::Once, at(300)), Some(0), "another line is another matter");
        assert_eq!(repeats.note("a", Say::Once, at(600)), Some(599));
        assert_eq!(repeats.note("a", Say::Once, at(601)), None);
    }

    #[test]
    fn what_changes_to_and_fro_is_said_a_few_times() {
        let mut repeats = Repeats::default();
        let said = (0..100).filter(|s| repeats.note("a", Say::AFewTimes, at(*s)).is_some()).count();
        assert_eq!(said, 5);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(8))]
        #[test]
        fn no_number_of_keys_fills_memory_or_the_log(keys in proptest::collection::vec("[a-zé]{0,400}", 1..4000)) {
            let mut repeats = Repeats::default();
            let said = keys.iter().filter(|key| repeats.note(key, Say::Once, at(1)).is_some()).count();
            proptest::prop_assert!(said <= MOST_KEYS + 1);
            proptest::prop_assert!(repeats.keys.len() <= MOST_KEYS + 1);
            proptest::prop_assert!(repeats.keys.keys().all(|key| key.len() <= LONGEST_KEY));
        }
    }
}
