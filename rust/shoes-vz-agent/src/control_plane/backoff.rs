//! Pauses between attempts to reach the server, no two agents' alike, so that a restarted server is not met by all at
//! once.

use std::time::Duration;

use shoes_vz_model::Ambient;
use shoes_vz_process::backoff;
use tokio::time::sleep;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(5);

pub(super) struct Backoff {
    ambient: Ambient,
    pauses: backoff::Backoff,
}

impl Backoff {
    pub(super) fn new(ambient: Ambient) -> Self {
        Self { ambient, pauses: backoff::Backoff::new(FIRST, LONGEST) }
    }

    pub(super) fn reset(&mut self) {
        self.pauses.reset();
    }

    pub(super) async fn wait(&mut self) {
        let random = self.ambient.byte();
        sleep(self.pauses.jittered(random)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn fault_02_pauses_grow_to_a_limit_vary_and_begin_anew_after_a_success() {
        let mut backoff = Backoff::new(Ambient::real());
        let waited = async |backoff: &mut Backoff| {
            let before = tokio::time::Instant::now();
            backoff.wait().await;
            before.elapsed()
        };
        let slack = Duration::from_millis(1);
        assert!(waited(&mut backoff).await <= FIRST + slack);
        let mut last = Duration::ZERO;
        for _ in 0..10 {
            last = waited(&mut backoff).await;
        }
        assert!((LONGEST / 2..=LONGEST + slack).contains(&last), "{last:?}");
        backoff.reset();
        assert!(waited(&mut backoff).await <= FIRST + slack);
    }
}
