//! What the Actions runner does, seen from outside: its processes, `.runner`, `_diag`. Never this process' environment.
//!
//! ```text
//!   Offline ─▶ Preparing ─▶ Idle ⇄ Running ─▶ Finished
//!            config.sh,    Runner.Listener   none of them is left
//!            .runner       /  + Runner.Worker
//! ```
//! Looks again on every event (files of the runner's directories, the setup script's start and end), and every second
//! as long as something is going on, since the end of a process makes no event that works on Linux and macOS alike.

mod decide;
mod files;
mod processes;
mod watch;

use std::{path::PathBuf, time::Duration};

pub use decide::{Seen, decide};
pub use files::{DotRunner, parse_dot_runner, parse_worker_log};
pub use processes::{Process, Sorted, sort};
use shoes_vz_model::guest::{JobInfo, RunnerActivity, SetupPhase};
use tokio::time::{Instant, sleep_until};
use tracing::info;

use crate::{State, settings::RunnerProcesses};

const BACK_STOP: Duration = Duration::from_secs(1);
/// A busy `_diag` is looked at this often at most.
const PAUSE: Duration = Duration::from_millis(100);

/// Follows the runner for ever.
pub(crate) async fn run(state: State, paths: Vec<PathBuf>, which: RunnerProcesses) -> anyhow::Result<()> {
    let (mut watcher, mut events) = watch::Watch::new(paths.clone());
    let mut scanner = Scanner { paths, which, files: files::Files::default() };
    let mut changes = state.watch();
    let mut activity = RunnerActivity::Offline;
    loop {
        // Watch first: what happens during the look is then looked at again.
        watcher.reconcile();
        let setup = changes.borrow_and_update().setup.phase;
        let since = state.setup().since();
        let looked = Instant::now();
        let (back, look) = tokio::task::spawn_blocking(move || {
            let look = scanner.look(since);
            (scanner, look)
        })
        .await?;
        scanner = back;
        let next = decide(activity, &look.seen);
        if next != activity {
            info!(from = ?activity, to = ?next, "runner");
        }
        activity = next;
        state.update(|status| {
            status.state = activity;
            if let Some(runner) = look.runner {
                status.runner_name = runner.name;
                status.repository = runner.repository;
            }
            if look.job.is_some() || activity != RunnerActivity::Finished {
                status.job = look.job;
            }
        });
        let going_on = setup == SetupPhase::Running
            || !matches!(activity, RunnerActivity::Offline | RunnerActivity::Finished);
        let again = going_on.then_some(looked + BACK_STOP);
        loop {
            tokio::select! {
                Some(()) = events.recv() => break,
                changed = changes.changed() => {
                    changed?;
                    // Its own publications come back here; only the setup script's are news.
                    if changes.borrow_and_update().setup.phase != setup {
                        break;
                    }
                }
                () = sleep_until(again.unwrap_or(looked)), if again.is_some() => break,
            }
        }
        sleep_until(looked + PAUSE).await;
    }
}

struct Scanner {
    paths: Vec<PathBuf>,
    which: RunnerProcesses,
    files: files::Files,
}

struct Look {
    seen: Seen,
    runner: Option<DotRunner>,
    job: Option<JobInfo>,
}

impl Scanner {
    fn look(&mut self, setup_since: Option<std::time::SystemTime>) -> Look {
        let sorted = sort(&processes::named_like_a_runner(), &self.paths, self.which);
        let files = self.files.look(&self.paths, setup_since, sorted.worker);
        let seen = Seen {
            listener: sorted.listener,
            worker: sorted.worker,
            configuring: sorted.configuring,
            wrapper: sorted.wrapper,
            configured: files.runner.is_some(),
            was_there: files.was_there,
        };
        Look { seen, runner: files.runner, job: files.job }
    }
}
