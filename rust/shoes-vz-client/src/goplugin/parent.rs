//! Detects that the plugin host has ended.

use std::os::fd::{AsFd as _, OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Returns when stdout has no reader any more: the host reads it as long as it runs.
///
/// Linux's parent-death signal does not work here: it fires when the *thread* that spawned the child ends, and Go's threads
/// end at any time. Stays pending when stdout is not a pipe; a go-plugin host always provides one.
pub(super) async fn ended() {
    let stdout = std::io::stdout();
    #[expect(
        deprecated,
        reason = "its successor is unsafe for types with an odd AsRawFd; an OwnedFd has none"
    )]
    let register = |fd| AsyncFd::<OwnedFd>::with_interest(fd, Interest::WRITABLE);
    let registered = stdout.as_fd().try_clone_to_owned().and_then(register);
    let fd = match registered {
        Ok(fd) => fd,
        Err(error) => {
            tracing::debug!(reason = %error, "stdout is not a pipe; the end of the plugin host cannot be detected");
            return std::future::pending().await;
        }
    };
    loop {
        match fd.writable().await {
            Ok(guard) if guard.ready().is_write_closed() => return,
            Ok(mut guard) => guard.clear_ready(),
            // The runtime is shutting down.
            Err(_) => return,
        }
    }
}
