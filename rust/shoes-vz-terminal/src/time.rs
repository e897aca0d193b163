//! Times relative to now, for people. JSON output uses RFC 3339.

use jiff::Timestamp;

/// `12 s ago`, `5 min ago`, `3 h ago`, `2 d ago`; `in 5 s` for a clock that is ahead of this one.
pub fn ago(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(then).as_secs();
    match seconds {
        0 => "now".into(),
        1.. => format!("{} ago", span(seconds.unsigned_abs())),
        _ => format!("in {}", span(seconds.unsigned_abs())),
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        7200..=172_799 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;

    #[test]
    fn times_are_shown_in_the_unit_of_their_magnitude() {
        let now: Timestamp = "2026-01-02T03:04:05.9Z".parse().unwrap();
        for (seconds, text) in [
            (0, "now"),
            (12, "12 s ago"),
            (119, "119 s ago"),
            (120, "2 min ago"),
            (7199, "119 min ago"),
            (7200, "2 h ago"),
            (172_800, "2 d ago"),
            (-5, "in 5 s"),
            (-400, "in 6 min"),
        ] {
            assert_eq!(ago(now - SignedDuration::from_secs(seconds), now), text);
        }
    }
}
