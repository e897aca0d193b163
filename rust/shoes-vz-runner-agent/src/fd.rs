//! Waiting for a file descriptor that is no socket of tokio's.

use std::{io, os::fd::AsRawFd};

use tokio::io::unix::AsyncFd;

/// Registers `owned` with the runtime.
///
/// tokio deprecates this constructor in favour of an `unsafe` one, since `AsRawFd` alone does not promise that the
/// descriptor stays the same. What is passed here (`File`, `OwnedFd`) owns its descriptor and never replaces it, which
/// `T: Into<OwnedFd>` says in the type; `unsafe` is forbidden in this project.
pub(crate) fn register<T: AsRawFd + Into<std::os::fd::OwnedFd>>(owned: T) -> io::Result<AsyncFd<T>> {
    #[expect(deprecated, reason = "see above")]
    AsyncFd::new(owned)
}
