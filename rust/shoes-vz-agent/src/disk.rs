//! Free space below the runners path. Clones share their template's disk and grow as they write, so a host that is short of
//! space refuses new VMs before a job runs out of space.
//!
//! ```text
//!           free < required                    free ≥ required + a tenth
//! accepts ───────────────────▶ refuses ────────────────────────────▶ accepts
//! ```
//! A file system sends no event when it fills, so it is checked before each clone and periodically.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use shoes_vz_process::units;
use tokio::{
    sync::watch,
    time::{MissedTickBehavior, interval},
};

pub const CHECK_INTERVAL: Duration = Duration::from_secs(10);

/// Bytes that are free on a path's file system for users without privileges.
pub type FreeBytes = Arc<dyn Fn(&Path) -> io::Result<u64> + Send + Sync>;

/// Cheap to clone; clones share the last result.
#[derive(Clone)]
pub struct Disk {
    path: PathBuf,
    required: u64,
    free_bytes: FreeBytes,
    refusal: Arc<watch::Sender<Option<String>>>,
}

impl Disk {
    /// Below `required` free bytes on the file system of `path`, new VMs are refused. 0 disables the check.
    pub fn new(path: PathBuf, required: u64, free_bytes: FreeBytes) -> Self {
        Self { path, required, free_bytes, refusal: Arc::new(watch::Sender::new(None)) }
    }

    /// Checks now. The error is the reason for which new VMs are refused.
    pub fn check(&self) -> Result<(), String> {
        if self.required == 0 {
            return Ok(());
        }
        let free = (self.free_bytes)(&self.path);
        let mut outcome = Ok(());
        self.refusal.send_if_modified(|refusal| {
            let now = self.judge(&free, refusal.is_some());
            match (refusal.is_some(), &now) {
                (false, Some(reason)) => tracing::warn!(reason, "low disk space; refusing new VMs"),
                (true, None) => {
                    tracing::info!(path = ?self.path, "enough disk space; accepting new VMs again")
                }
                _ => {}
            }
            outcome = now.clone().map_or(Ok(()), Err);
            let changed = *refusal != now;
            *refusal = now;
            changed
        });
        outcome
    }

    /// The reason for which new VMs are refused; `None` while they are accepted.
    pub fn refusal(&self) -> watch::Receiver<Option<String>> {
        self.refusal.subscribe()
    }

    /// Checks periodically; never returns.
    pub async fn check_periodically(self, period: Duration) {
        let mut tick = interval(period);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            // `refusal` publishes the result.
            drop(self.check());
        }
    }

    /// A host that refuses VMs needs a tenth more before it accepts them again, so that it does not alternate.
    fn judge(&self, free: &io::Result<u64>, refusing: bool) -> Option<String> {
        let resume = self.required.saturating_add(self.required / 10);
        match free {
            Ok(free) if *free >= if refusing { resume } else { self.required } => None,
            Ok(free) => Some(format!(
                "the file system of {:?} has {} free: new VMs are refused below {} (--min-free-disk) and accepted again \
                 from {}; free some space, or use a --runners-path on a larger file system",
                self.path,
                units::show_size(*free),
                units::show_size(self.required),
                units::show_size(resume)
            )),
            Err(error) => Some(format!("cannot determine the free space at {:?} ({error})", self.path)),
        }
    }
}

/// The bytes that are free for a user without privileges (POSIX `statvfs`: `f_bavail`).
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    // The block count has 64 bits on Linux and 32 on macOS.
    #[allow(clippy::unnecessary_cast, reason = "necessary on macOS")]
    Ok((stat.blocks_available() as u64).saturating_mul(stat.fragment_size() as u64))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn disk(required: u64) -> (Disk, Arc<AtomicU64>) {
        let free = Arc::new(AtomicU64::new(u64::MAX));
        let shared = free.clone();
        (Disk::new("/r".into(), required, Arc::new(move |_| Ok(shared.load(Ordering::Relaxed)))), free)
    }

    #[test]
    fn a_disk_short_of_space_is_refused_with_the_reason_and_accepted_again_only_with_a_tenth_more() {
        let (disk, free) = disk(10 << 30);
        let refusal = disk.refusal();
        assert_eq!(disk.check(), Ok(()));
        free.store((10 << 30) - 1, Ordering::Relaxed);
        let reason = disk.check().unwrap_err();
        for part in ["\"/r\"", "9.9 GiB", "10.0 GiB", "--min-free-disk"] {
            assert!(reason.contains(part), "{part:?} is not in {reason}");
        }
        assert_eq!(refusal.borrow().as_deref(), Some(reason.as_str()));
        free.store((11 << 30) - 1, Ordering::Relaxed);
        assert!(disk.check().unwrap_err().contains("10.9 GiB free"));
        free.store(11 << 30, Ordering::Relaxed);
        assert_eq!(disk.check(), Ok(()));
        assert_eq!(*refusal.borrow(), None);
        free.store(10 << 30, Ordering::Relaxed);
        assert_eq!(disk.check(), Ok(()), "once VMs are accepted again, the required space is enough");
    }

    #[test]
    fn the_same_refusal_is_published_once() {
        let (disk, free) = disk(10 << 30);
        free.store(5 << 30, Ordering::Relaxed);
        disk.check().unwrap_err();
        let refusal = disk.refusal();
        free.fetch_add(4096, Ordering::Relaxed);
        disk.check().unwrap_err();
        assert!(!refusal.has_changed().unwrap(), "the text rounds to a tenth of a GiB");
    }

    #[test]
    fn nothing_is_checked_where_no_space_is_required() {
        let disk = Disk::new("/r".into(), 0, Arc::new(|_| Err(io::Error::other("checked"))));
        assert_eq!(disk.check(), Ok(()));
    }

    #[test]
    fn a_disk_that_cannot_be_checked_is_refused() {
        let disk = Disk::new("/r".into(), 1, Arc::new(|_| Err(io::Error::other("unmounted"))));
        assert!(disk.check().unwrap_err().contains("unmounted"));
    }

    #[tokio::test]
    async fn a_disk_that_fills_is_noticed_without_a_clone() {
        let (disk, free) = disk(10 << 30);
        let mut refusal = disk.refusal();
        let checks = tokio::spawn(disk.check_periodically(Duration::from_millis(1)));
        free.store(0, Ordering::Relaxed);
        refusal.wait_for(Option::is_some).await.unwrap();
        free.store(u64::MAX, Ordering::Relaxed);
        refusal.wait_for(Option::is_none).await.unwrap();
        checks.abort();
    }

    #[test]
    fn the_real_file_system_reports_its_free_space() {
        let dir = tempfile::tempdir().unwrap();
        assert!(free_bytes(dir.path()).is_ok());
        assert!(free_bytes(&dir.path().join("none")).is_err());
    }
}
