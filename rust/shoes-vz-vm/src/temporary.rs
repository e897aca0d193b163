//! A file or socket that does not outlive its owner.

use std::{fs, path::PathBuf};

use shoes_vz_process::files::if_any;

/// Removed when dropped, if it exists then.
pub(crate) struct Temporary {
    pub(crate) path: PathBuf,
    /// The line of the log when that fails.
    pub(crate) failure: &'static str,
}

impl Temporary {
    pub(crate) fn remove(&self) {
        if let Err(error) = if_any(fs::remove_file(&self.path)) {
            tracing::warn!(message = self.failure, path = ?self.path, reason = %error);
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        self.remove();
    }
}
