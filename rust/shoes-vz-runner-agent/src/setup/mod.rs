//! The setup script: handed over once, run detached, its end kept.
//!
//! ```text
//!   guest agent ──spawns──▶ supervisor (own session) ──▶ /bin/bash script
//!        │                    holds the lock file open, so locked;
//!        └──waits for the lock ◀── released by its end, however it ends
//! ```
//! Everything stands in files, so a guest agent that was restarted (or killed) in between finds all of it again:
//!
//! | file | |
//! |---|---|
//! | `id` | the id it was handed over under; written last, so that a half-made handover is none |
//! | `script` | until it has exited |
//! | `log` | its stdout and stderr |
//! | `lock` | locked (flock) as long as the supervisor lives |
//! | `started` | the supervisor has begun; holds the script's process group before its first command |
//! | `exit` | its exit code |

mod log;
mod store;
pub mod supervise;

use std::path::{Path, PathBuf};

use shoes_vz_process::files::{self, Readers};

pub use log::follow;
pub use store::{PutError, Store};

/// First argument that makes this program the supervisor of the directory that follows.
pub const SUPERVISE: &str = "setup-supervise";

/// The exit code written when the supervisor was killed: as a shell words SIGKILL.
const KILLED: i32 = 137;

#[derive(Debug, Clone)]
struct Files(PathBuf);

impl Files {
    fn id(&self) -> PathBuf {
        self.0.join("id")
    }
    fn script(&self) -> PathBuf {
        self.0.join("script")
    }
    fn log(&self) -> PathBuf {
        self.0.join("log")
    }
    fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }
    fn started(&self) -> PathBuf {
        self.0.join("started")
    }
    fn exit(&self) -> PathBuf {
        self.0.join("exit")
    }

    fn exit_code(&self) -> Option<i32> {
        shoes_vz_process::files::read_text(&self.exit(), 64).ok()?.trim().parse().ok()
    }
}

/// Writes a file only its owner can read, so that it is there whole or not at all.
fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    files::replace(path, bytes, Readers::Owner)
}
