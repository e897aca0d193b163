//! Files that were not written completely, and files that do not belong to an agent.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use nix::{errno::Errno, sys::signal::kill, unistd::Pid};
use shoes_vz_model::bundle::{file, runner_of};
use shoes_vz_process::files::PART_SUFFIX;

/// Files of an agent directly below the runners path (`bundles`, `ends`, `run`, `shoes_vz_vm::accel`).
const AGENT_FILES: [&str; 4] = [".agent.lock", ".agent-id", ".ends", "accelerator.json"];
/// Prefixes of files whose names end in the ID of the process that uses them (`settings`, `shoes_vz_vm::accel`).
const PROBES: [&str; 2] = [".probe-", "accelerator-probe.rom."];
/// Files that an agent writes into bundles.
const BUNDLE_FILES: [&str; 2] = [file::METADATA, file::SETUP_SCRIPT];

#[derive(Debug, PartialEq, Eq)]
enum Owner {
    Agent,
    /// A write that was interrupted, or a process that has ended.
    Nobody,
    Other,
}

#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Leftovers {
    pub(crate) removed: usize,
    /// Files only: [`bundles::scan`] finds directories.
    pub(crate) foreign: Vec<PathBuf>,
}

impl Leftovers {
    /// Removes incomplete files below `runners_path`. Call it before any bundle is used, since its user writes there too.
    pub(crate) fn remove(runners_path: &Path) -> io::Result<Self> {
        let mut left = Self::default();
        for entry in fs::read_dir(runners_path)? {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            let name = name.to_string_lossy();
            if entry.file_type()?.is_dir() {
                if matches!(runner_of(&name), Some(Ok(_))) {
                    for name in BUNDLE_FILES {
                        left.remove_file(&path.join(format!("{name}{PART_SUFFIX}")));
                    }
                }
                continue;
            }
            match owner(&name) {
                Owner::Agent => {}
                Owner::Nobody => left.remove_file(&path),
                Owner::Other => {
                    tracing::warn!(?path, "unknown file in the runners path; leaving it alone");
                    left.foreign.push(path);
                }
            }
        }
        Ok(left)
    }

    fn remove_file(&mut self, path: &Path) {
        match fs::remove_file(path) {
            Ok(()) => {
                tracing::info!(?path, "removed an incomplete file of an earlier agent");
                self.removed += 1;
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            // It does no harm: the next writer replaces it.
            Err(error) => {
                tracing::warn!(?path, reason = %error, "removing an incomplete file of an earlier agent failed")
            }
        }
    }
}

fn owner(name: &str) -> Owner {
    if AGENT_FILES.contains(&name) {
        return Owner::Agent;
    }
    if name.strip_suffix(PART_SUFFIX).is_some_and(|name| AGENT_FILES.contains(&name)) {
        return Owner::Nobody;
    }
    let pid = PROBES.iter().find_map(|probe| name.strip_prefix(probe)?.parse::<i32>().ok());
    match pid {
        // It may be an agent that is about to find this path in use.
        Some(pid) if is_alive(pid) => Owner::Agent,
        Some(_) => Owner::Nobody,
        None => Owner::Other,
    }
}

fn is_alive(pid: i32) -> bool {
    pid > 0 && kill(Pid::from_raw(pid), None) != Err(Errno::ESRCH)
}

#[cfg(test)]
mod tests {
    use shoes_vz_model::{bundle::dir_name, id::RunnerId};

    use super::*;

    #[test]
    fn incomplete_files_are_removed_and_everything_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join(dir_name(RunnerId::random()));
        fs::create_dir(&bundle).unwrap();
        let mine = format!(".probe-{}", std::process::id());
        let kept =
            [".agent.lock", ".agent-id", ".ends", "accelerator.json", &mine, "notes.txt", "notes.txt.new"];
        // No process has this ID: the highest IDs of Linux and macOS are far below.
        let removed = [".ends.new", ".agent-id.new", ".probe-2147483647", "accelerator-probe.rom.2147483647"];
        for name in kept.iter().chain(&removed) {
            fs::write(dir.path().join(name), "").unwrap();
        }
        for name in ["RuntimeMetadata.json", "RuntimeMetadata.json.new", "setup-script.new", "Other.new"] {
            fs::write(bundle.join(name), "").unwrap();
        }
        let left = Leftovers::remove(dir.path()).unwrap();
        assert_eq!(left.removed, removed.len() + 2);
        let mut foreign: Vec<_> = left.foreign.iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        foreign.sort();
        assert_eq!(foreign, ["notes.txt", "notes.txt.new"]);
        assert!(kept.iter().all(|name| dir.path().join(name).exists()));
        assert!(removed.iter().all(|name| !dir.path().join(name).exists()));
        assert!(bundle.join("RuntimeMetadata.json").exists() && bundle.join("Other.new").exists());
        assert_eq!(Leftovers::remove(dir.path()).unwrap().removed, 0);
    }
}
