//! Growing pauses between tries, no two agents' alike, so that a restarted server is not met by all at once.

use std::time::Duration;

use shoes_vz_model::Outside;
use tokio::time::sleep;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

pub(super) struct Backoff {
    outside: Outside,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(outside: Outside) -> Self {
        Self { outside, next: FIRST }
    }

    pub(super) fn reset(&mut self) {
        self.next = FIRST;
    }

    pub(super) async fn wait(&mut self) {
        let random = self.outside.byte();
        sleep(self.pause(random)).await;
    }

    /// Between half of the present pause and all of it; `random` is from 0 to 255.
    fn pause(&mut self, random: u8) -> Duration {
        let whole = self.next;
        self.next = LONGEST.min(whole * 2);
        whole / 2 + whole / 2 * u32::from(random) / 255
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_02_pauses_grow_to_a_limit_vary_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new(Outside::real());
        assert_eq!(backoff.pause(0), FIRST / 2);
        assert_eq!(backoff.pause(255), FIRST * 2);
        for _ in 0..10 {
            backoff.pause(0);
        }
        assert_eq!(backoff.pause(255), LONGEST);
        backoff.reset();
        assert_eq!(backoff.pause(255), FIRST);
    }
}
