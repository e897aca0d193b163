//! The live line of this process, around which everything else is written.

use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::{ProgressBar, WeakProgressBar};

static LIVE: Mutex<Option<WeakProgressBar>> = Mutex::new(None);

/// Sets or removes the live line.
pub(crate) fn set(bar: Option<&ProgressBar>) {
    *live() = bar.map(ProgressBar::downgrade);
}

/// Runs `write` while the live line is cleared.
pub(crate) fn suspend<T>(write: impl FnOnce() -> T) -> T {
    let bar = live().as_ref().and_then(WeakProgressBar::upgrade);
    match bar {
        Some(bar) if !bar.is_finished() => bar.suspend(write),
        _ => write(),
    }
}

/// A panic of another thread cannot leave the value incomplete.
fn live() -> MutexGuard<'static, Option<WeakProgressBar>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}
