//! `SavedState.json`.

use std::{collections::BTreeMap, fs, io, os::unix::fs::MetadataExt as _, path::Path};

use serde::{Deserialize, Serialize};

use super::{Kind, Unusable, Wanted, disk_files, essence, file, version};
use crate::{
    end::write_atomically,
    spec::{HypervisorKind, VmSpec},
};

/// Changes whenever what is in a state's directory means something else.
const FORMAT: u32 = 1;
/// Files up to this size are summed up too: devices always are, memory never is.
const SUMMED: u64 = 16 << 20;

/// See the module.
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
    files: BTreeMap<String, Mark>,
}

/// Of a manifest.
const MAX_MANIFEST: u64 = 1 << 20;

/// How a file looked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Mark {
    bytes: u64,
    /// Nanoseconds since 1970.
    modified: i128,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crc32: Option<u32>,
}

impl Mark {
    fn of(path: &Path) -> io::Result<Self> {
        let found = fs::metadata(path)?;
        let modified = i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec());
        let crc32 = match found.len() <= SUMMED {
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
            files.insert(entry.file_name().to_string_lossy().into_owned(), Mark::of(&entry.path())?);
        }
        let spec = essence(&wanted.spec);
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
        let bytes = match shoes_vz_process::files::read_bounded(&path, MAX_MANIFEST) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(Unusable::new(Kind::Missing, format!("the slot has no saved state ({dir:?})")));
            }
            Err(e) => return Err(Unusable::new(Kind::Damaged, format!("{path:?} cannot be read ({e})"))),
        };
        // A later format may look otherwise altogether.
        let format = serde_json::from_slice::<serde_json::Value>(&bytes).ok();
        let format = format.as_ref().and_then(|json| json.get("format")?.as_u64());
        if format.is_some_and(|format| format != u64::from(FORMAT)) {
            let words = format!("{path:?} is of format {}, not {FORMAT}", format.unwrap_or_default());
            return Err(Unusable::new(Kind::Version, words));
        }
        serde_json::from_slice(&bytes)
            .map_err(|e| Unusable::new(Kind::Damaged, format!("{path:?} is not valid ({e})")))
    }

    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let path = dir.join(file::MANIFEST);
        write_atomically(&path, &serde_json::to_vec_pretty(self)?)?;
        fs::File::open(path)?.sync_all()?;
        fs::File::open(dir)?.sync_all()
    }

    /// Whether it is of such a VM; the most telling difference is told.
    pub(super) fn fits(&self, wanted: &Wanted) -> Result<(), Unusable> {
        let differs = |kind, what: &str, saved: &dyn std::fmt::Display, now: &dyn std::fmt::Display| {
            Err(Unusable::new(kind, format!("the saved state is of {what} {saved}, and it is {now} now")))
        };
        let spec = essence(&wanted.spec);
        if self.spec.memory_bytes != spec.memory_bytes {
            return differs(Kind::Memory, "a memory size of", &self.spec.memory_bytes, &spec.memory_bytes);
        }
        if self.spec.cpus != spec.cpus {
            return differs(Kind::Cpus, "a number of CPUs of", &self.spec.cpus, &spec.cpus);
        }
        let fingerprint = wanted.template.fingerprint();
        if self.template_fingerprint != fingerprint {
            return differs(Kind::Version, "the template", &self.template_fingerprint, &fingerprint);
        }
        let hypervisor = version::of(spec.hypervisor);
        if self.hypervisor_version != hypervisor {
            return differs(Kind::Version, "hypervisor", &self.hypervisor_version, &hypervisor);
        }
        let agent = env!("CARGO_PKG_VERSION");
        if self.agent_version != agent {
            return differs(Kind::Version, "agent version", &self.agent_version, &agent);
        }
        if self.slot != wanted.slot || self.spec != spec {
            let words =
                "the saved state is of a VM that is otherwise made (network, disk, accelerator, template …)";
            return Err(Unusable::new(Kind::Configuration, words));
        }
        Ok(())
    }

    /// Whether each file is there, and as it was.
    pub(super) fn check_files(&self, dir: &Path) -> Result<(), Unusable> {
        let damaged = |words: String| Err(Unusable::new(Kind::Damaged, words));
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
            match Mark::of(&path) {
                Ok(now) if now == *mark => {}
                Ok(_) => return damaged(format!("{path:?} was changed since it was saved")),
                Err(error) => return damaged(format!("{path:?} cannot be looked at ({error})")),
            }
        }
        Ok(())
    }
}
