//! Saved states: a booted guest of a slot, on disk, from which clones go on instead of booting.
//!
//! ```text
//! <root>/slot-<n>/SavedState.json    what it is of, and each file's size, time and checksum; written last
//!                 Disk.qcow2 | Disk.img, AuxiliaryStorage, HardwareModel.json, MachineIdentifier
//!                 memory             QEMU's guest memory: clones map it privately
//!                 machine-state      devices; on Virtualization.framework the memory too
//!        .new-…, .old-…              on their way in and out; left over once their process has ended
//! ```
//! A state is of one slot (its network address and machine identifier), one host, one hypervisor of one version, one
//! template as it was, one size. For any other VM it is unusable ([`Kind`] says why), and that VM boots instead. A new
//! state is used only after one guest was restored from it to prove it.

#[cfg(target_os = "linux")]
mod ability;
mod format;
mod manifest;
mod version;

use std::{
    fs, io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use shoes_vz_process::files::{if_any, sync_dir};

#[cfg(target_os = "linux")]
pub(crate) use self::format::check_memory;
pub use self::format::{Kind, Unusable, Wanted, file};
use self::{format::disk_files, manifest::Manifest};
use crate::spec::HypervisorKind;

const NEW: &str = ".new-";
const OLD: &str = ".old-";

/// Whether this host's hypervisor can save VMs; else the reason, and what to do. Blocks for some milliseconds; `dir`
/// holds a small file meanwhile.
pub fn possible(hypervisor: HypervisorKind, dir: &Path) -> Result<(), String> {
    match hypervisor {
        #[cfg(target_os = "linux")]
        HypervisorKind::Qemu => {
            let arch = crate::arch::Arch::of_this_host();
            // Without an emulator no VM starts, which is another error.
            arch.map_or(Ok(()), |arch| ability::of_qemu(Path::new(arch.program()), dir))
        }
        // Virtualization.framework can since macOS 14, and says of each configuration whether it can be saved.
        _ => {
            let _ = dir;
            Ok(())
        }
    }
}

/// All states of one host.
#[derive(Debug)]
pub struct SavedStates {
    root: PathBuf,
}

/// A state that fits the VM it was looked up for.
#[derive(Debug)]
pub struct SavedState {
    dir: PathBuf,
    slot: u32,
}

impl SavedState {
    /// Absolute if the root is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn slot(&self) -> u32 {
        self.slot
    }
}

impl SavedStates {
    /// Those below `root`, which is created with the first one.
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    fn slot_dir(&self, slot: u32) -> PathBuf {
        self.root.join(format!("slot-{slot}"))
    }

    /// The slot's state, if it fits and was proved.
    pub fn find(&self, wanted: &Wanted) -> Result<SavedState, Unusable> {
        let (state, manifest) = self.check(wanted)?;
        match manifest.proved {
            true => Ok(state),
            false => Err(Unusable::new(
                Kind::Unproved,
                "no guest has been restored from the slot's saved state yet",
            )),
        }
    }

    /// As [`SavedStates::find`], but also of a state that was not proved yet.
    pub fn find_unproved(&self, wanted: &Wanted) -> Result<SavedState, Unusable> {
        self.check(wanted).map(|(state, _)| state)
    }

    fn check(&self, wanted: &Wanted) -> Result<(SavedState, Manifest), Unusable> {
        let dir = self.slot_dir(wanted.slot);
        let manifest = Manifest::read(&dir)?;
        manifest.fits(wanted)?;
        manifest.check_files(&dir)?;
        Ok((SavedState { dir, slot: wanted.slot }, manifest))
    }

    /// An empty, private directory for a new state.
    pub fn draft(&self, wanted: &Wanted) -> io::Result<Draft> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root)?;
        let name = |what: &str| self.root.join(format!("{what}{}-{}", wanted.slot, std::process::id()));
        let dir = name(NEW);
        remove(&dir)?;
        fs::DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Draft { dir, slot_dir: self.slot_dir(wanted.slot), old: name(OLD), wanted: wanted.clone() })
    }

    /// A guest was restored from it: it may be used from now on.
    pub fn verified(&self, state: &SavedState) -> io::Result<()> {
        let mut manifest = Manifest::read(&state.dir).map_err(io::Error::other)?;
        manifest.proved = true;
        manifest.write(&state.dir)
    }

    /// Removes the slot's state.
    pub fn discard(&self, wanted: &Wanted, reason: &str) -> io::Result<()> {
        let slot_dir = self.slot_dir(wanted.slot);
        tracing::info!(slot = wanted.slot, reason, "discarding a saved state");
        // The manifest first: without it the rest is not a state, even if its removal fails half-way.
        if_any(fs::remove_file(slot_dir.join(file::MANIFEST)))?;
        remove(&slot_dir)
    }

    /// Removes what ended processes left half-made, and the states of slots from `slots` on, which no longer exist. The
    /// caller must be the only process that uses the runners path.
    pub fn sweep(&self, slots: u32) -> io::Result<()> {
        for entry in if_any(fs::read_dir(&self.root))?.into_iter().flatten() {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let slot = name.strip_prefix("slot-").and_then(|n| n.parse::<u32>().ok());
            let is_half_made = [NEW, OLD].iter().any(|begin| name.starts_with(begin));
            if is_half_made || slot.is_some_and(|slot| slot >= slots) {
                remove(&entry.path())?;
            }
        }
        Ok(())
    }
}

/// A state that is being made; removed when dropped.
#[derive(Debug)]
pub struct Draft {
    dir: PathBuf,
    slot_dir: PathBuf,
    old: PathBuf,
    wanted: Wanted,
}

impl Draft {
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file that the VM's devices are to be saved to.
    pub fn machine_state(&self) -> PathBuf {
        self.dir.join(file::STATE)
    }

    /// The VM of `bundle` is saved and has ended: takes its disk over, and replaces the slot's state, unproved. A crash on
    /// the way leaves the old state, none, or the new one.
    pub fn finish(self, bundle: &Path) -> io::Result<()> {
        for name in disk_files(&self.wanted.spec) {
            let from = bundle.join(name);
            // A Linux guest of Virtualization.framework has no firmware.
            if from.exists() {
                fs::rename(from, self.dir.join(name))?;
            }
        }
        let files = fs::read_dir(&self.dir)?.collect::<io::Result<Vec<_>>>()?;
        for entry in files {
            // What is still only in the kernel's memory would be lost in a power failure, although its size were right.
            fs::File::open(entry.path())?.sync_all()?;
        }
        let manifest = Manifest::of(&self.wanted, &self.dir)?;
        manifest.write(&self.dir)?;
        remove(&self.old)?;
        if_any(fs::rename(&self.slot_dir, &self.old))?;
        fs::rename(&self.dir, &self.slot_dir)?;
        if let Some(root) = self.slot_dir.parent() {
            sync_dir(root)?;
        }
        remove(&self.old)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.dir) {
            tracing::warn!(dir = ?self.dir, reason = %error, "removing an incomplete saved state failed; the agent's next start retries");
        }
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    if_any(fs::remove_dir_all(dir)).map(drop)
}

#[cfg(test)]
mod tests;
