//! A simulated connection, which its process closes when it crashes.

use std::sync::{Mutex, MutexGuard, PoisonError};

use turmoil::net::TcpStream;

pub(crate) struct Wire(Mutex<Option<TcpStream>>);

impl Wire {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(Mutex::new(Some(stream)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Option<TcpStream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As the kernel does for a process that has ended.
    pub(crate) fn close(&self) {
        drop(self.lock().take());
    }
}
