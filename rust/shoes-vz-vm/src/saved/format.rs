//! What a saved state consists of, what it has to fit, and why it may not.

#[cfg(target_os = "linux")]
use std::path::Path;

use shoes_vz_model::{
    bundle,
    template::{self, Os},
};

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
    /// What VM, template and hypervisor the state is of.
    pub const MANIFEST: &str = "SavedState.json";
}

/// What a state has to fit.
#[derive(Debug, Clone)]
pub struct Wanted {
    pub slot: u32,
    /// How it uses states and when it ends do not matter.
    pub spec: VmSpec,
    /// What the VM is a clone of.
    pub template: TemplateDir,
}

impl Wanted {
    /// The spec as far as a state depends on it.
    pub(super) fn essential_spec(&self) -> VmSpec {
        VmSpec { max_lifetime: None, state: StateUse::None, ..self.spec.clone() }
    }
}

/// Why a state cannot be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Missing,
    /// Of another version of the template, the hypervisor, the agent or this format.
    Version,
    /// Of another number of virtual CPUs.
    Cpus,
    /// Of another size of memory.
    Memory,
    /// Of a VM that differs otherwise.
    Configuration,
    /// A file of the state was changed or lost.
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
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Unusable {
    pub kind: Kind,
    reason: String,
}

impl Unusable {
    pub(super) fn new(kind: Kind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }
}

/// The disk, and what belongs to it, by name in bundle and state alike.
pub(super) fn disk_files(spec: &VmSpec) -> &'static [&'static str] {
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

/// Whether the memory in `dir` is as large as the VM's; else the reason. Only QEMU has it as a separate file.
#[cfg(target_os = "linux")]
pub(crate) fn check_memory(dir: &Path, bytes: u64) -> Result<(), String> {
    let path = dir.join(file::MEMORY);
    match std::fs::metadata(&path) {
        Ok(found) if found.len() == bytes => Ok(()),
        Ok(found) => Err(format!("the saved memory {path:?} is {} bytes, the VM's is {bytes}", found.len())),
        Err(error) => Err(format!("the saved memory {path:?} cannot be examined ({error})")),
    }
}
