//! `SavedState.json`.

use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt as _, path::Path};

use serde::{Deserialize, Serialize};
use shoes_vz_process::files::{self, Readers};

use super::{
    format::{Kind, Unusable, Wanted, disk_files, file},
    version,
};
use crate::spec::{HypervisorKind, VmSpec};

/// Changes whenever the meaning of what is in a state's directory changes.
const FORMAT: u32 = 1;
/// Files up to this size, in bytes, have a checksum too: devices always do, memory never does.
const MAX_CHECKSUMMED: u64 = 16 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    format: u32,
    pub(super) proved: bool,
    slot: u32,
    template: String,
    template_version: String,
    template_fingerprint: String,
    hypervisor_version: String,
    agent_version: String,
    created_at: jiff::Timestamp,
    spec: VmSpec,
    files: BTreeMap<String, FileMark>,
}

/// Of a manifest, in bytes.
const MAX_MANIFEST: u64 = 1 << 20;

/// A file as it was when the state was saved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct FileMark {
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: i128,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crc32: Option<u32>,
}

impl FileMark {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        let modified = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
        let crc32 = match found.len() <= MAX_CHECKSUMMED {
            true => Some(crc32fast::hash(&fs::read(path)?)),
            false => None,
        };
        Ok(Self { bytes: found.len(), modified, crc32 })
    }
}

impl Manifest {
    /// Of what is in `dir` now.
    pub(super) fn of(wanted: &Wanted, dir: &Path) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            files.insert(entry.file_name().to_string_lossy().into_owned(), FileMark::of(&entry.path())?);
        }
        let spec = wanted.essential_spec();
        Ok(Self {
            format: FORMAT,
            proved: false,
            slot: wanted.slot,
            template: wanted.template.name.clone(),
            template_version: wanted.template.meta.version.clone(),
            template_fingerprint: wanted.template.fingerprint(),
            hypervisor_version: version::of(spec.hypervisor),
            agent_version: env!("CARGO_PKG_VERSION").into(),
            created_at: jiff::Timestamp::now(),
            spec,
            files,
        })
    }

    pub(super) fn read(dir: &Path) -> Result<Self, Unusable> {
        let path = dir.join(file::MANIFEST);
        let bytes = files::read_if_any(&path, MAX_MANIFEST)
            .map_err(|e| Unusable::new(Kind::Damaged, format!("{path:?} cannot be read ({e})")))?
            .ok_or_else(|| Unusable::new(Kind::Missing, format!("the slot has no saved state ({dir:?})")))?;
        // A later format may have other fields.
        let format = serde_json::from_slice::<serde_json::Value>(&bytes).ok();
        let format = format.as_ref().and_then(|json| json.get("format")?.as_u64());
        if format.is_some_and(|format| format != u64::from(FORMAT)) {
            let reason = format!(
                "{path:?} has format {}, but this agent reads format {FORMAT}",
                format.unwrap_or_default()
            );
            return Err(Unusable::new(Kind::Version, reason));
        }
        serde_json::from_slice(&bytes)
            .map_err(|e| Unusable::new(Kind::Damaged, format!("{path:?} is not valid ({e})")))
    }

    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let path = dir.join(file::MANIFEST);
        files::replace(&path, &serde_json::to_vec_pretty(self)?, Readers::Owner)
    }

    /// Whether the state is of such a VM; the error names the most significant difference.
    pub(super) fn fits(&self, wanted: &Wanted) -> Result<(), Unusable> {
        let spec = wanted.essential_spec();
        let (saved_memory, memory) = (self.spec.memory_bytes.to_string(), spec.memory_bytes.to_string());
        let (saved_cpus, cpus) = (self.spec.cpus.to_string(), spec.cpus.to_string());
        let agent = env!("CARGO_PKG_VERSION").to_owned();
        for (kind, what, saved, now) in [
            (Kind::Memory, "memory size", &saved_memory, memory),
            (Kind::Cpus, "number of CPUs", &saved_cpus, cpus),
            (
                Kind::Version,
                "template fingerprint",
                &self.template_fingerprint,
                wanted.template.fingerprint(),
            ),
            (Kind::Version, "hypervisor", &self.hypervisor_version, version::of(spec.hypervisor)),
            (Kind::Version, "agent version", &self.agent_version, agent),
        ] {
            if *saved != now {
                let reason = format!("the saved state was saved with {what} {saved}, but now it is {now}");
                return Err(Unusable::new(kind, reason));
            }
        }
        if self.slot != wanted.slot || self.spec != spec {
            let reason = "the saved state was saved from a VM with another configuration (network, disk, accelerator, template …)";
            return Err(Unusable::new(Kind::Configuration, reason));
        }
        Ok(())
    }

    /// Whether no file is missing or was changed.
    pub(super) fn check_files(&self, dir: &Path) -> Result<(), Unusable> {
        let damaged = |reason: String| Err(Unusable::new(Kind::Damaged, reason));
        let needed = [file::STATE].into_iter().chain(match self.spec.hypervisor {
            HypervisorKind::Qemu => Some(file::MEMORY),
            HypervisorKind::Vz => None,
        });
        for name in needed.chain(disk_files(&self.spec).iter().copied()) {
            if !self.files.contains_key(name) {
                return damaged(format!("the saved state in {dir:?} has no {name}"));
            }
        }
        for (name, mark) in &self.files {
            let path = dir.join(name);
            match FileMark::of(&path) {
                Ok(now) if now == *mark => {}
                Ok(_) => return damaged(format!("{path:?} was changed since it was saved")),
                Err(error) => return damaged(format!("{path:?} cannot be examined ({error})")),
            }
        }
        Ok(())
    }
}
