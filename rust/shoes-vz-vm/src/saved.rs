//! Saved states: a booted guest of a slot, on disk, for clones to go on from instead of booting.
//!
//! ```text
//! <root>/slot-<n>/SavedState.json    what it is of, and how each file looked; written last
//!                 Disk.qcow2 | Disk.img, AuxiliaryStorage, HardwareModel.json, MachineIdentifier
//!                 memory             QEMU's guest memory: clones map it privately
//!                 machine-state      devices; on Virtualization.framework the memory too
//!        .new-…, .old-…              on their way in and out; nobody's once their process is gone
//! ```
//! A state is of one slot (its network address and machine identifier), one host, one hypervisor of one version, one
//! template as it was, one size. Anything else is told by [`Kind`] and booted instead. A new one is not believed in
//! before one guest was restored from it.

#[cfg(target_os = "linux")]
mod ability;
mod manifest;
mod version;

use std::{
    fmt, fs,
    io::{self, ErrorKind},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use shoes_vz_model::{
    bundle,
    template::{self, Os},
};

use self::manifest::Manifest;
use crate::{
    clone::OVERLAY,
    spec::{HypervisorKind, StateUse, VmSpec},
    template::TemplateDir,
};

/// Names inside a state's directory.
pub mod file {
    /// QEMU's guest memory.
    pub const MEMORY: &str = "memory";
    /// Devices, and on Virtualization.framework the memory.
    pub const STATE: &str = "machine-state";
    /// What it is of.
    pub const MANIFEST: &str = "SavedState.json";
}

const NEW: &str = ".new-";
const OLD: &str = ".old-";

/// Whether this host's hypervisor can save VMs; else why not, and what to do. Blocks for some milliseconds; `dir` holds a
/// small file meanwhile.
pub fn possible(hypervisor: HypervisorKind, dir: &Path) -> Result<(), String> {
    match hypervisor {
        #[cfg(target_os = "linux")]
        HypervisorKind::Qemu => {
            let arch = crate::hypervisor::qemu::command::Arch::of_this_host();
            // Without an emulator no VM starts, and that has its own words.
            arch.map_or(Ok(()), |arch| ability::of_qemu(Path::new(arch.program()), dir))
        }
        // Virtualization.framework has them since macOS 14, and says of each configuration whether it can be saved.
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

/// What a state is wanted for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The slot.
    pub slot: u32,
    /// The VM; what it does with states and when it ends do not matter.
    pub spec: VmSpec,
    /// What it is a clone of.
    pub template: TemplateDir,
}

/// A state that fits.
#[derive(Debug)]
pub struct SavedState {
    dir: PathBuf,
    slot: u32,
}

impl SavedState {
    /// Where it is, absolute if the root is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Whose it is.
    pub fn slot(&self) -> u32 {
        self.slot
    }
}

/// Why a state cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// There is none.
    Missing,
    /// Of another version of the template, the hypervisor, the agent or this format.
    Version,
    /// Of another number of virtual CPUs.
    Cpus,
    /// Of another size of memory.
    Memory,
    /// Of a VM that is otherwise made.
    Configuration,
    /// A file of it is not as it was.
    Damaged,
    /// No guest was restored from it yet.
    Unproved,
}

impl Kind {
    /// As a metric's label has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Version => "version",
            Self::Cpus => "cpus",
            Self::Memory => "memory",
            Self::Configuration => "configuration",
            Self::Damaged => "damaged",
            Self::Unproved => "unproved",
        }
    }
}

/// There is no state to use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unusable {
    /// In a word.
    pub kind: Kind,
    words: String,
}

impl Unusable {
    fn new(kind: Kind, words: impl Into<String>) -> Self {
        Self { kind, words: words.into() }
    }
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl std::error::Error for Unusable {}

impl SavedStates {
    /// Those below `root`, which is made when the first one is.
    pub fn at(root: PathBuf) -> Self {
        Self { root }
    }

    fn place(&self, slot: u32) -> PathBuf {
        self.root.join(format!("slot-{slot}"))
    }

    /// The slot's state, if it fits and is proved.
    pub fn find(&self, wanted: &Wanted) -> Result<SavedState, Unusable> {
        let (state, manifest) = self.look(wanted)?;
        match manifest.proved {
            true => Ok(state),
            false => Err(Unusable::new(Kind::Unproved, "no guest was restored from the slot's state yet")),
        }
    }

    /// As [`SavedStates::find`], of one that is still to be proved too.
    pub fn find_unproved(&self, wanted: &Wanted) -> Result<SavedState, Unusable> {
        self.look(wanted).map(|(state, _)| state)
    }

    fn look(&self, wanted: &Wanted) -> Result<(SavedState, Manifest), Unusable> {
        let dir = self.place(wanted.slot);
        let manifest = Manifest::read(&dir)?;
        manifest.fits(wanted)?;
        manifest.check_files(&dir)?;
        Ok((SavedState { dir, slot: wanted.slot }, manifest))
    }

    /// A place for a new state, empty and private.
    pub fn draft(&self, wanted: &Wanted) -> io::Result<Draft> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.root)?;
        let name = |what: &str| self.root.join(format!("{what}{}-{}", wanted.slot, std::process::id()));
        let dir = name(NEW);
        remove(&dir)?;
        fs::DirBuilder::new().mode(0o700).create(&dir)?;
        Ok(Draft { dir, place: self.place(wanted.slot), old: name(OLD), wanted: wanted.clone() })
    }

    /// A guest was restored from it: it is believed in from now on.
    pub fn verified(&self, state: &SavedState) -> io::Result<()> {
        let mut manifest = Manifest::read(&state.dir).map_err(io::Error::other)?;
        manifest.proved = true;
        manifest.write(&state.dir)
    }

    /// Removes the slot's state.
    pub fn discard(&self, wanted: &Wanted, why: &str) -> io::Result<()> {
        let place = self.place(wanted.slot);
        tracing::info!(slot = wanted.slot, why, "discarding the slot's saved state");
        // Without its manifest it is none, however far the rest gets.
        match fs::remove_file(place.join(file::MANIFEST)) {
            Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
            _ => remove(&place),
        }
    }

    /// Removes what dead processes left half-made, and the states of slots from `slots` on, which are there no more. The
    /// caller has the runners path to itself.
    pub fn sweep(&self, slots: u32) -> io::Result<()> {
        let entries = match fs::read_dir(&self.root) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
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

/// A state in the making; removed when dropped.
#[derive(Debug)]
pub struct Draft {
    dir: PathBuf,
    place: PathBuf,
    old: PathBuf,
    wanted: Wanted,
}

impl Draft {
    /// Where it is made.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where the VM's devices are to be saved.
    pub fn machine_state(&self) -> PathBuf {
        self.dir.join(file::STATE)
    }

    /// The VM of `bundle` is saved and over: takes its disk over, and puts the state in its place, unproved. A crash on the way
    /// leaves the old state, none, or the new one.
    pub fn finish(self, bundle: &Path) -> io::Result<()> {
        for name in disk_files(&self.wanted.spec) {
            let from = bundle.join(name);
            // A Linux guest of Virtualization.framework's has no firmware.
            if from.exists() {
                fs::rename(from, self.dir.join(name))?;
            }
        }
        let files = fs::read_dir(&self.dir)?.collect::<io::Result<Vec<_>>>()?;
        for entry in files {
            // What is only in the kernel's memory yet would be gone after a power failure, and its size right.
            fs::File::open(entry.path())?.sync_all()?;
        }
        let manifest = Manifest::of(&self.wanted, &self.dir)?;
        manifest.write(&self.dir)?;
        remove(&self.old)?;
        match fs::rename(&self.place, &self.old) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        fs::rename(&self.dir, &self.place)?;
        if let Some(root) = self.place.parent() {
            fs::File::open(root)?.sync_all()?;
        }
        remove(&self.old)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.dir) {
            tracing::warn!(dir = ?self.dir, %error, "a half-made saved state stays behind until the agent's next start");
        }
    }
}

/// The disk, and what belongs to it, by name in bundle and state alike.
pub(crate) fn disk_files(spec: &VmSpec) -> &'static [&'static str] {
    match (spec.hypervisor, spec.os) {
        (HypervisorKind::Qemu, _) => &[OVERLAY],
        (HypervisorKind::Vz, Os::Macos) => &[
            template::file::DISK,
            template::file::AUXILIARY,
            template::file::HARDWARE_MODEL,
            bundle::file::MACHINE_IDENTIFIER,
        ],
        (HypervisorKind::Vz, Os::Linux) => &[template::file::DISK, bundle::file::MACHINE_IDENTIFIER],
    }
}

/// Whether the memory in `dir` is as large as the VM's: else why not, in words. QEMU's alone is a file of its own.
#[cfg(target_os = "linux")]
pub(crate) fn check_memory(dir: &Path, bytes: u64) -> Result<(), String> {
    let path = dir.join(file::MEMORY);
    match fs::metadata(&path) {
        Ok(found) if found.len() == bytes => Ok(()),
        Ok(found) => Err(format!("the saved memory {path:?} is {} bytes, the VM's is {bytes}", found.len())),
        Err(error) => Err(format!("the saved memory {path:?} cannot be looked at ({error})")),
    }
}

fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// The spec as far as a state depends on it.
fn essence(spec: &VmSpec) -> VmSpec {
    VmSpec { max_lifetime: None, state: StateUse::None, ..spec.clone() }
}

#[cfg(test)]
mod tests;
