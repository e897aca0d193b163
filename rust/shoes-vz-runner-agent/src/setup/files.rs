//! The files of the setup script, by their names in its directory.

use std::path::Path;

use shoes_vz_process::files;

pub(super) const ID: &str = "id";
pub(super) const SCRIPT: &str = "script";
pub(super) const LOG: &str = "log";
pub(super) const LOCK: &str = "lock";
pub(super) const STARTED: &str = "started";
pub(super) const EXIT: &str = "exit";

pub(super) fn exit_code(dir: &Path) -> Option<i32> {
    files::read_text(&dir.join(EXIT), 64).ok()?.trim().parse().ok()
}
