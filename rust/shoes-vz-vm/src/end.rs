//! How a VM ended, in memory, on disk (`VmEnd.json`) and on the wire.

use std::{fmt, io, path::Path};

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use shoes_vz_model::bundle::file;
use shoes_vz_process::files::{self, Readers};
use shoes_vz_proto::vm as wire;

/// Of `VmEnd.json`, in bytes.
const MAX_END: u64 = 1 << 20;

/// The numbers are those of the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndKind {
    Requested = wire::VmEndKind::Requested as isize,
    GuestPoweroff = wire::VmEndKind::GuestPoweroff as isize,
    /// The guest reset itself; a VM never boots twice.
    GuestReset = wire::VmEndKind::GuestReset as isize,
    GuestPanic = wire::VmEndKind::GuestPanic as isize,
    /// A signal ended the hypervisor.
    HypervisorKilled = wire::VmEndKind::HypervisorKilled as isize,
    /// The hypervisor did not start, or exited by itself; also: the VM process died.
    HypervisorFailed = wire::VmEndKind::HypervisorFailed as isize,
    MaxLifetime = wire::VmEndKind::MaxLifetime as isize,
    /// The host's disk below the VM is full or broken.
    DiskError = wire::VmEndKind::DiskError as isize,
    /// The saved state was refused or is damaged; the guest never ran.
    RestoreRefused = wire::VmEndKind::RestoreRefused as isize,
}

impl EndKind {
    const ALL: [Self; 9] = [
        Self::Requested,
        Self::GuestPoweroff,
        Self::GuestReset,
        Self::GuestPanic,
        Self::HypervisorKilled,
        Self::HypervisorFailed,
        Self::MaxLifetime,
        Self::DiskError,
        Self::RestoreRefused,
    ];

    /// FAILED rather than STOPPED: neither the host nor the guest intended this end.
    pub fn is_failure(self) -> bool {
        matches!(
            self,
            Self::GuestPanic
                | Self::HypervisorKilled
                | Self::HypervisorFailed
                | Self::DiskError
                | Self::RestoreRefused
        )
    }
}

/// For a reason: "SIGKILL".
pub(crate) fn signal_name(signal: i32) -> &'static str {
    Signal::try_from(signal).map_or("unknown", Signal::as_str)
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub kind: EndKind,
    /// For a person.
    pub reason: String,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl End {
    pub fn new(kind: EndKind, reason: impl Into<String>) -> Self {
        Self { kind, reason: reason.into() }
    }

    pub(crate) fn as_asked() -> Self {
        Self::new(EndKind::Requested, "the VM was ended as asked")
    }

    /// The state of a VM after this end.
    pub fn state(&self) -> wire::VmState {
        if self.kind.is_failure() { wire::VmState::Failed } else { wire::VmState::Stopped }
    }

    pub fn to_wire(&self) -> wire::VmEnd {
        wire::VmEnd { kind: self.kind as i32, reason: self.reason.clone() }
    }

    /// A kind that this version does not know becomes a failed hypervisor, and the reason is kept.
    pub fn from_wire(end: &wire::VmEnd) -> Self {
        let kind = EndKind::ALL.into_iter().find(|k| *k as i32 == end.kind);
        Self { kind: kind.unwrap_or(EndKind::HypervisorFailed), reason: end.reason.clone() }
    }

    /// From `bundle`; `None` when the VM process wrote nothing.
    pub fn read(bundle: &Path) -> io::Result<Option<Self>> {
        let Some(json) = files::read_if_any(&bundle.join(file::VM_END), MAX_END)? else { return Ok(None) };
        serde_json::from_slice(&json).map(Some).map_err(io::Error::other)
    }

    pub(crate) fn write(&self, bundle: &Path) -> io::Result<()> {
        files::replace(&bundle.join(file::VM_END), &serde_json::to_vec(self)?, Readers::Owner)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn every_end_reads_back_from_the_wire_and_from_the_bundle() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(End::read(bundle.path()).unwrap(), None);
        for kind in EndKind::ALL {
            let end = End::new(kind, "because");
            assert_eq!(End::from_wire(&end.to_wire()), end);
            end.write(bundle.path()).unwrap();
            assert_eq!(End::read(bundle.path()).unwrap(), Some(end));
        }
        assert_eq!(fs::read_dir(bundle.path()).unwrap().count(), 1, "no half-written file is left");
    }

    #[test]
    fn an_end_that_this_version_does_not_know_keeps_its_reason() {
        let end = End::from_wire(&wire::VmEnd { kind: 99, reason: "sucked into a hole".into() });
        assert_eq!(end, End::new(EndKind::HypervisorFailed, "sucked into a hole"));
    }
}
