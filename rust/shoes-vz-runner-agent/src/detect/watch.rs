//! Events of the runner's directories, which may not exist yet.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// Watches each runner's directory and its `_diag`, or the nearest directory above that exists.
pub(super) struct Watch {
    watcher: Option<RecommendedWatcher>,
    paths: Vec<PathBuf>,
    watched: BTreeSet<PathBuf>,
}

impl Watch {
    pub(super) fn new(paths: Vec<PathBuf>) -> (Self, mpsc::Receiver<()>) {
        let (tell, events) = mpsc::channel(1);
        let of_interest = paths.clone();
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // An error (an overflow, say) is a reason to look as well.
            if event.is_ok_and(|event| !concerns(&event, &of_interest)) {
                return;
            }
            let _ = tell.try_send(()); // full: told already
        });
        let watcher = watcher
            .inspect_err(
                |error| warn!(%error, "no file system events; looking at the runner every second only"),
            )
            .ok();
        (Self { watcher, paths, watched: BTreeSet::new() }, events)
    }

    /// Brings the watches in line with what exists now.
    pub(super) fn reconcile(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        let wanted: BTreeSet<PathBuf> = self.paths.iter().flat_map(|path| places(path)).collect();
        // A directory removed and made anew has lost its watch without a word, so gone ones are forgotten.
        for gone in self.watched.difference(&wanted) {
            let _ = watcher.unwatch(gone); // its watch may have gone with it
        }
        self.watched.retain(|place| wanted.contains(place));
        for place in wanted {
            if self.watched.contains(&place) {
                continue;
            }
            match watcher.watch(&place, RecursiveMode::NonRecursive) {
                Ok(()) => drop(self.watched.insert(place)),
                Err(error) => debug!(%error, place = %place.display(), "not watched"),
            }
        }
    }
}

fn places(runner: &Path) -> Vec<PathBuf> {
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

/// A busy /tmp is none of our business: only what lies on the way to a runner's directory, or directly within it.
fn concerns(event: &Event, runners: &[PathBuf]) -> bool {
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
    fn only_what_concerns_a_runner_wakes() {
        let runners = [PathBuf::from("/tmp/runner"), "/home/r/_work/_runner".into()];
        let event = |path: &str| Event::new(EventKind::Create(CreateKind::Any)).add_path(path.into());
        for yes in ["/tmp/runner", "/tmp/runner/.runner", "/home/r/_work", "/private/tmp/runner/_diag/x.log"]
        {
            assert!(concerns(&event(yes), &runners), "{yes}");
        }
        for no in ["/tmp/other", "/tmp/runner2", "/home/r/_work2"] {
            assert!(!concerns(&event(no), &runners), "{no}");
        }
    }
}
