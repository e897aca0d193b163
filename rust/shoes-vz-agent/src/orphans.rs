//! What former agents left below a runners path besides bundles, accounted for when an agent starts: files that are half
//! written, and processes whose VM nobody can adopt.
//!
//! ```text
//! lock ─▶ leftovers ─▶ bundles: adopt or remove (runners.rs) ─▶ processes ─▶ summary
//! ```
//! The agent holds the lock on the path, without which nobody starts a VM below it. What is not surely ours is named in
//! the log and left alone. A VM process does not end itself when its bundle disappears: while an agent follows it that
//! agent still can, and afterwards it is ended here.

mod leftovers;
mod processes;

use std::path::Path;

pub(crate) use self::leftovers::Leftovers;
pub use self::processes::{Adopted, Ended};

/// What there was.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Account {
    /// Bundles whose VM goes on.
    pub adopted: usize,
    /// Bundles whose VM is over.
    pub removed: usize,
    /// Temporary files that were removed.
    pub leftovers: usize,
    /// Processes that were ended.
    pub ended: usize,
    /// Files, directories and processes that were left alone although they should not be there.
    pub foreign: usize,
}

impl Account {
    /// The one line an operator looks for.
    pub(crate) fn log(&self, runners_path: &Path) {
        let Self { adopted, removed, leftovers, ended, foreign } = *self;
        tracing::info!(
            adopted, removed, leftovers, ended, foreign, runners_path = %runners_path.display(),
            "removed or adopted what former agents left"
        );
    }
}
