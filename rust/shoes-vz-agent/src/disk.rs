//! Free space below the runners path: clones share their template's disk and grow as they write, so a host that is short
//! of space takes no more of them, and says so before a job would find out.
//!
//! ```text
//!          free < wanted                     free ≥ wanted + a tenth
//! takes ───────────────────▶ takes none ────────────────────────────▶ takes
//! ```
//! A file system tells nobody when it fills: it is looked at before each clone, and now and then in between.

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

/// Between two looks when no clone asks for one.
pub const LOOK_EVERY: Duration = Duration::from_secs(10);

/// Bytes a path's file system has free for such as us.
pub type FreeBytes = Arc<dyn Fn(&Path) -> io::Result<u64> + Send + Sync>;

/// The look-out for a full disk. Cheap to clone; clones share what they saw.
#[derive(Clone)]
pub struct Disk {
    path: PathBuf,
    wanted: u64,
    free_bytes: FreeBytes,
    refusal: Arc<watch::Sender<Option<String>>>,
}

impl Disk {
    /// Of the file system `path` is on; below `wanted` bytes no VM is taken. 0: it is never looked at.
    pub fn new(path: PathBuf, wanted: u64, free_bytes: FreeBytes) -> Self {
        Self { path, wanted, free_bytes, refusal: Arc::new(watch::Sender::new(None)) }
    }

    /// Looks now, and says why no VM can be taken.
    pub fn look(&self) -> Result<(), String> {
        if self.wanted == 0 {
            return Ok(());
        }
        let free = (self.free_bytes)(&self.path);
        let mut outcome = Ok(());
        self.refusal.send_if_modified(|refusal| {
            let now = self.judge(&free, refusal.is_some());
            match (refusal.is_some(), &now) {
                (false, Some(words)) => tracing::warn!(words, "this host takes no more VMs for now"),
                (true, None) => tracing::info!(path = ?self.path, "this host takes VMs again"),
                _ => {}
            }
            outcome = now.clone().map_or(Ok(()), Err);
            let changed = *refusal != now;
            *refusal = now;
            changed
        });
        outcome
    }

    /// Why no VM can be taken, now and on each change; `None` while they can.
    pub fn refusal(&self) -> watch::Receiver<Option<String>> {
        self.refusal.subscribe()
    }

    /// Looks now and then, for ever.
    pub async fn look_on(self, every: Duration) {
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tick.tick().await;
            // Whoever wants to know follows `refusal`.
            drop(self.look());
        }
    }

    /// A host that was refusing needs a tenth more before it takes VMs again, so that it does not waver.
    fn judge(&self, free: &io::Result<u64>, refusing: bool) -> Option<String> {
        let again = self.wanted.saturating_add(self.wanted / 10);
        match free {
            Ok(free) if *free >= if refusing { again } else { self.wanted } => None,
            Ok(free) => Some(format!(
                "the file system of {:?} has {} free: VMs are refused below {} (--min-free-disk) and taken again from {} \
                 on; free some space on it, or give this agent a --runners-path with more",
                self.path,
                units::show_size(*free),
                units::show_size(self.wanted),
                units::show_size(again)
            )),
            Err(error) => {
                Some(format!("how much space is free at {:?} cannot be found out ({error})", self.path))
            }
        }
    }
}

/// What a file system has free for a user without privileges (POSIX `statvfs`: `f_bavail`).
pub fn free_bytes(path: &Path) -> io::Result<u64> {
    let about = nix::sys::statvfs::statvfs(path)?;
    // Both types differ: 64 bits on Linux, 32 for the blocks on macOS.
    #[allow(clippy::unnecessary_cast, reason = "not everywhere")]
    Ok((about.blocks_available() as u64).saturating_mul(about.fragment_size() as u64))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    fn disk(wanted: u64) -> (Disk, Arc<AtomicU64>) {
        let free = Arc::new(AtomicU64::new(u64::MAX));
        let told = free.clone();
        (Disk::new("/r".into(), wanted, Arc::new(move |_| Ok(told.load(Ordering::Relaxed)))), free)
    }

    #[test]
    fn a_short_disk_is_refused_in_words_and_taken_again_only_with_a_tenth_more() {
        let (disk, free) = disk(10 << 30);
        let told = disk.refusal();
        assert_eq!(disk.look(), Ok(()));
        free.store((10 << 30) - 1, Ordering::Relaxed);
        let words = disk.look().unwrap_err();
        for part in ["\"/r\"", "9.9 GiB", "10.0 GiB", "--min-free-disk"] {
            assert!(words.contains(part), "{part:?} is not in {words}");
        }
        assert_eq!(told.borrow().as_deref(), Some(words.as_str()));
        free.store((11 << 30) - 1, Ordering::Relaxed);
        assert!(disk.look().unwrap_err().contains("10.9 GiB free"));
        free.store(11 << 30, Ordering::Relaxed);
        assert_eq!(disk.look(), Ok(()));
        assert_eq!(*told.borrow(), None);
        free.store(10 << 30, Ordering::Relaxed);
        assert_eq!(disk.look(), Ok(()), "once it takes VMs again, what is wanted is enough");
    }

    #[test]
    fn the_same_refusal_is_told_once() {
        let (disk, free) = disk(10 << 30);
        free.store(5 << 30, Ordering::Relaxed);
        disk.look().unwrap_err();
        let told = disk.refusal();
        free.fetch_add(4096, Ordering::Relaxed);
        disk.look().unwrap_err();
        assert!(!told.has_changed().unwrap(), "some kilobytes are no news");
    }

    #[test]
    fn nothing_is_looked_at_where_nothing_is_wanted() {
        let disk = Disk::new("/r".into(), 0, Arc::new(|_| Err(io::Error::other("looked"))));
        assert_eq!(disk.look(), Ok(()));
    }

    #[test]
    fn a_disk_that_cannot_be_looked_at_takes_nothing() {
        let disk = Disk::new("/r".into(), 1, Arc::new(|_| Err(io::Error::other("gone"))));
        assert!(disk.look().unwrap_err().contains("gone"));
    }

    #[tokio::test]
    async fn a_disk_that_fills_is_noticed_without_a_clone() {
        let (disk, free) = disk(10 << 30);
        let mut told = disk.refusal();
        let looking = tokio::spawn(disk.look_on(Duration::from_millis(1)));
        free.store(0, Ordering::Relaxed);
        told.wait_for(Option::is_some).await.unwrap();
        free.store(u64::MAX, Ordering::Relaxed);
        told.wait_for(Option::is_none).await.unwrap();
        looking.abort();
    }

    #[test]
    fn the_real_file_system_says_something() {
        let dir = tempfile::tempdir().unwrap();
        assert!(free_bytes(dir.path()).is_ok());
        assert!(free_bytes(&dir.path().join("none")).is_err());
    }
}
