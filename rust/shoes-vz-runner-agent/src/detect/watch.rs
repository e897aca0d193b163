//! File system events of the runner's directories, which may not exist yet.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// Watches each runner's directory and its `_diag`, or the nearest parent directory that exists.
pub(super) struct Watch {
    watcher: Option<RecommendedWatcher>,
    paths: Vec<PathBuf>,
    watched: BTreeSet<PathBuf>,
}

impl Watch {
    pub(super) fn new(paths: Vec<PathBuf>) -> (Self, mpsc::Receiver<()>) {
        let (wake, events) = mpsc::channel(1);
        let runners = paths.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // An error, such as an overflow, also causes an observation.
            if event.is_ok_and(|event| !is_relevant(&event, &runners)) {
                return;
            }
            let _ = wake.try_send(()); // full: an event waits already
        });
        let watcher = watcher
            .inspect_err(
                |error| warn!(reason = %error, "watching the runner's files failed; polling only every second"),
            )
            .ok();
        (Self { watcher, paths, watched: BTreeSet::new() }, events)
    }

    /// Brings the watches in line with what exists now.
    pub(super) fn reconcile(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        let wanted: BTreeSet<PathBuf> = self.paths.iter().flat_map(|path| directories(path)).collect();
        // A directory that was removed and created again has lost its watch, so removed ones are forgotten.
        for removed in self.watched.difference(&wanted) {
            let _ = watcher.unwatch(removed); // fails when the watch was removed with the directory
        }
        self.watched.retain(|directory| wanted.contains(directory));
        for directory in wanted {
            if self.watched.contains(&directory) {
                continue;
            }
            match watcher.watch(&directory, RecursiveMode::NonRecursive) {
                Ok(()) => drop(self.watched.insert(directory)),
                Err(error) => {
                    debug!(reason = %error, path = %directory.display(), "watching a directory failed")
                }
            }
        }
    }
}

fn directories(runner: &Path) -> Vec<PathBuf> {
    if runner.is_dir() {
        let diag = runner.join("_diag");
        let parent = runner.parent().map(Path::to_owned);
        return [Some(runner.to_owned()), diag.is_dir().then_some(diag), parent]
            .into_iter()
            .flatten()
            .collect();
    }
    runner.ancestors().skip(1).find(|a| a.is_dir()).map(Path::to_owned).into_iter().collect()
}

/// Whether the path is in a runner's directory, or one of its parents: other events, as in a busy /tmp, do not matter.
fn is_relevant(event: &Event, runners: &[PathBuf]) -> bool {
    if event.kind.is_access() {
        return false;
    }
    event.need_rescan()
        || event.paths.iter().any(|changed| {
            let changed =
                changed.strip_prefix("/private").map_or(changed.clone(), |rest| Path::new("/").join(rest));
            runners.iter().any(|runner| changed.starts_with(runner) || runner.starts_with(&changed))
        })
}

#[cfg(test)]
mod tests {
    use notify::{EventKind, event::CreateKind};

    use super::*;

    #[test]
    fn only_events_of_a_runners_paths_are_relevant() {
        let runners = [PathBuf::from("/tmp/runner"), "/home/r/_work/_runner".into()];
        let event = |path: &str| Event::new(EventKind::Create(CreateKind::Any)).add_path(path.into());
        for yes in ["/tmp/runner", "/tmp/runner/.runner", "/home/r/_work", "/private/tmp/runner/_diag/x.log"]
        {
            assert!(is_relevant(&event(yes), &runners), "{yes}");
        }
        for no in ["/tmp/other", "/tmp/runner2", "/home/r/_work2"] {
            assert!(!is_relevant(&event(no), &runners), "{no}");
        }
    }
}
