//! The setup script: handed over once, run detached; its end is recorded.
//!
//! ```text
//!   guest agent ──spawns──▶ supervisor (own session) ──▶ /bin/bash script
//!        │                    holds the lock file open, and so locked;
//!        └──waits for the lock ◀── the kernel releases it when the supervisor ends
//! ```
//! The whole state is in files, so a guest agent that was restarted or killed in between finds it again:
//!
//! | file | |
//! |---|---|
//! | `id` | the ID with which it was handed over; written last, so that an incomplete handover does not count |
//! | `script` | until it has exited |
//! | `log` | its stdout and stderr |
//! | `lock` | locked (flock) as long as the supervisor lives |
//! | `started` | the supervisor has begun; holds the ID of the script's process group before its first command |
//! | `exit` | its exit code |

mod files;
mod log;
mod store;
pub mod supervise;

pub use log::follow;
pub use store::{PutError, Store};
