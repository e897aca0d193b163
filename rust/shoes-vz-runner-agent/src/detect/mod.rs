//! Observes the Actions runner: its processes, `.runner`, `_diag`. Never uses this process' environment.
//!
//! ```text
//!   Offline ─▶ Preparing ─▶ Idle ⇄ Running ─▶ Finished
//!            config.sh,    Runner.Listener   none of them is left
//!            .runner       /  + Runner.Worker
//! ```
//! Observes again at every event (files of the runner's directories, the setup script's start and end), and every second
//! while a runner or the setup script is active, since no event for the end of a process exists on both Linux and macOS.

mod decide;
mod files;
mod processes;
mod watch;

use std::{path::PathBuf, time::Duration};

pub use decide::{Observation, decide};
pub use files::{DotRunner, parse_dot_runner, parse_worker_log};
pub use processes::{Process, classify};
use shoes_vz_model::guest::{RunnerActivity, SetupPhase};
use tokio::time::{Instant, sleep_until};
use tracing::info;

use crate::{settings::RunnerProcesses, state::State};

const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// The least time between two observations.
const MIN_INTERVAL: Duration = Duration::from_millis(100);

/// Follows the runner without end.
pub(crate) async fn run(state: State, paths: Vec<PathBuf>, which: RunnerProcesses) -> anyhow::Result<()> {
    let (mut watcher, mut events) = watch::Watch::new(paths.clone());
    let mut scanner = Scanner { paths, which, files: files::Files::default() };
    let mut changes = state.watch();
    let mut activity = RunnerActivity::Offline;
    loop {
        // Watch first: a change during the scan then causes another one.
        watcher.reconcile();
        let setup = changes.borrow_and_update().setup.phase;
        let since = state.setup().handed_over_at();
        let scanned_at = Instant::now();
        let (returned, (observation, found)) = tokio::task::spawn_blocking(move || {
            let scan = scanner.scan(since);
            (scanner, scan)
        })
        .await?;
        scanner = returned;
        let next = decide(activity, &observation);
        if next != activity {
            info!(from = ?activity, to = ?next, "runner state changed");
        }
        activity = next;
        state.update(|status| {
            status.state = activity;
            if let Some(runner) = found.runner {
                status.runner_name = runner.name;
                status.repository = runner.repository;
            }
            if found.job.is_some() || activity != RunnerActivity::Finished {
                status.job = found.job;
            }
        });
        let is_active = setup == SetupPhase::Running
            || !matches!(activity, RunnerActivity::Offline | RunnerActivity::Finished);
        let again = is_active.then_some(scanned_at + POLL_INTERVAL);
        loop {
            tokio::select! {
                Some(()) = events.recv() => break,
                changed = changes.changed() => {
                    changed?;
                    // This task's changes arrive here too; only the setup script's matter.
                    if changes.borrow_and_update().setup.phase != setup {
                        break;
                    }
                }
                () = sleep_until(again.unwrap_or(scanned_at)), if again.is_some() => break,
            }
        }
        sleep_until(scanned_at + MIN_INTERVAL).await;
    }
}

struct Scanner {
    paths: Vec<PathBuf>,
    which: RunnerProcesses,
    files: files::Files,
}

impl Scanner {
    fn scan(&mut self, setup_since: Option<std::time::SystemTime>) -> (Observation, files::Found) {
        let seen = classify(&processes::named_like_a_runner(), &self.paths, self.which);
        let found = self.files.scan(&self.paths, setup_since, seen.worker);
        let observation = Observation { configured: found.runner.is_some(), has_run: found.has_run, ..seen };
        (observation, found)
    }
}
