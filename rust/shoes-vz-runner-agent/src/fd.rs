//! Asynchronous waiting for file descriptors that tokio has no type for.

use std::{io, os::fd::AsRawFd};

use tokio::io::unix::AsyncFd;

/// Registers `owned` with the runtime.
///
/// tokio deprecates this constructor in favour of an `unsafe` one, since `AsRawFd` alone does not guarantee that the
/// descriptor stays the same. The types passed here (`File`, `OwnedFd`) own their descriptor and never replace it, which
/// `T: Into<OwnedFd>` expresses; `unsafe` is forbidden in this project.
pub(crate) fn register<T: AsRawFd + Into<std::os::fd::OwnedFd>>(owned: T) -> io::Result<AsyncFd<T>> {
    #[expect(deprecated, reason = "see above")]
    AsyncFd::new(owned)
}
