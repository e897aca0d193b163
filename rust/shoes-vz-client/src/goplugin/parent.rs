//! Notices that the host is gone.

use std::os::fd::{AsFd as _, OwnedFd};

use tokio::io::{Interest, unix::AsyncFd};

/// Returns when nobody can read this process's stdout any more: the host reads it as long as it lives.
///
/// (Linux' parent-death signal would not do: it fires when the *thread* that spawned the child ends, and Go's threads
/// come and go.) Stays pending when stdout is no pipe; a go-plugin host always gives one.
pub(super) async fn gone() {
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
            tracing::debug!(%error, "stdout is no pipe; the host's end will not be noticed");
            return std::future::pending().await;
        }
    };
    loop {
        match fd.writable().await {
            Ok(guard) if guard.ready().is_write_closed() => return,
            Ok(mut guard) => guard.clear_ready(),
            // The runtime is going down.
            Err(_) => return,
        }
    }
}
