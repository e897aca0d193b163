//! Cleanup when an agent starts: what earlier agents left below its runners path besides bundles. These are files that were
//! not written completely, and processes whose VM no agent can adopt.
//!
//! ```text
//! lock ─▶ leftovers ─▶ bundles: adopt or remove (runners.rs) ─▶ processes ─▶ summary
//! ```
//! The agent holds the lock on the path, so that no other agent starts a VM below it. What does not clearly belong to an
//! agent is logged and left alone. A VM process does not end when its bundle disappears: the agent that follows it ends it,
//! or, if there is none, the next agent does so here.

mod leftovers;
mod processes;

use std::path::Path;

pub(crate) use self::leftovers::Leftovers;
pub use self::processes::{AdoptedVms, OrphansEnded};

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct CleanupSummary {
    /// Bundles whose VM runs.
    pub adopted: usize,
    /// Bundles whose VM has ended.
    pub removed: usize,
    /// Incomplete files that were removed.
    pub leftovers: usize,
    /// Processes that were killed.
    pub ended: usize,
    /// Unexpected files, directories and processes that were left alone.
    pub foreign: usize,
}

impl CleanupSummary {
    pub(crate) fn log(&self, runners_path: &Path) {
        let Self { adopted, removed, leftovers, ended, foreign } = *self;
        tracing::info!(
            adopted, removed, leftovers, ended, foreign, runners_path = %runners_path.display(),
            "startup cleanup done"
        );
    }
}
