//! Files that are half written, and files that are not ours.

use std::{
    fs,
    io::{self, ErrorKind},
    path::{Path, PathBuf},
};

use nix::{errno::Errno, sys::signal::kill, unistd::Pid};
use shoes_vz_model::bundle::{file, runner_of};

use crate::bundles;

/// An agent's own, directly below the runners path (`bundles`, `ends`, `run`, `shoes_vz_vm::accel`).
const OWN: [&str; 4] = [".agent.lock", ".agent-id", ".ends", "accelerator.json"];
/// What their unfinished successors' names end in (`files`).
const NEW: &str = ".new";
/// Files whose names end in the id of the process they are for (`settings`, `shoes_vz_vm::accel`).
const PROBES: [&str; 2] = [".probe-", "accelerator-probe.rom."];
/// What an agent writes into a bundle, unfinished.
const IN_BUNDLES: [&str; 2] = [file::METADATA, bundles::SCRIPT];

/// What is to be done with a file.
#[derive(Debug, PartialEq, Eq)]
enum Belongs {
    Here,
    Nowhere,
    ToOthers,
}

/// What was found besides bundles.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Leftovers {
    pub(crate) removed: usize,
    /// Files only: directories are [`bundles::scan`]'s.
    pub(crate) foreign: Vec<PathBuf>,
}

impl Leftovers {
    /// Removes what is half written below `runners_path`. Before any bundle is used, since its user writes there too.
    pub(crate) fn remove(runners_path: &Path) -> io::Result<Self> {
        let mut left = Self::default();
        for entry in fs::read_dir(runners_path)? {
            let entry = entry?;
            let (name, path) = (entry.file_name(), entry.path());
            let name = name.to_string_lossy();
            if entry.file_type()?.is_dir() {
                if matches!(runner_of(&name), Some(Ok(_))) {
                    for unfinished in IN_BUNDLES {
                        left.remove_file(&path.join(format!("{unfinished}{NEW}")));
                    }
                }
                continue;
            }
            match belongs(&name) {
                Belongs::Here => {}
                Belongs::Nowhere => left.remove_file(&path),
                Belongs::ToOthers => {
                    tracing::warn!(?path, "this file is none of an agent's; it is left alone");
                    left.foreign.push(path);
                }
            }
        }
        Ok(left)
    }

    fn remove_file(&mut self, path: &Path) {
        match fs::remove_file(path) {
            Ok(()) => {
                tracing::info!(?path, "removed what a former agent left half written");
                self.removed += 1;
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            // It is in nobody's way: whoever writes there next begins it anew.
            Err(error) => tracing::warn!(?path, %error, "a former agent's leftover cannot be removed"),
        }
    }
}

fn belongs(name: &str) -> Belongs {
    if OWN.contains(&name) {
        return Belongs::Here;
    }
    if name.strip_suffix(NEW).is_some_and(|name| OWN.contains(&name)) {
        return Belongs::Nowhere;
    }
    let pid = PROBES.iter().find_map(|probe| name.strip_prefix(probe)?.parse::<i32>().ok());
    match pid {
        // Perhaps an agent that is about to find this path taken.
        Some(pid) if is_alive(pid) => Belongs::Here,
        Some(_) => Belongs::Nowhere,
        None => Belongs::ToOthers,
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
    fn half_written_files_go_and_everything_else_stays() {
        let dir = tempfile::tempdir().unwrap();
        let bundle = dir.path().join(dir_name(RunnerId::random()));
        fs::create_dir(&bundle).unwrap();
        let mine = format!(".probe-{}", std::process::id());
        let stays =
            [".agent.lock", ".agent-id", ".ends", "accelerator.json", &mine, "notes.txt", "notes.txt.new"];
        // No process has this id: Linux' and macOS' highest are far below.
        let goes = [".ends.new", ".agent-id.new", ".probe-2147483647", "accelerator-probe.rom.2147483647"];
        for name in stays.iter().chain(&goes) {
            fs::write(dir.path().join(name), "").unwrap();
        }
        for name in ["RuntimeMetadata.json", "RuntimeMetadata.json.new", "setup-script.new", "Other.new"] {
            fs::write(bundle.join(name), "").unwrap();
        }
        let left = Leftovers::remove(dir.path()).unwrap();
        assert_eq!(left.removed, goes.len() + 2);
        let mut foreign: Vec<_> = left.foreign.iter().map(|p| p.file_name().unwrap().to_owned()).collect();
        foreign.sort();
        assert_eq!(foreign, ["notes.txt", "notes.txt.new"]);
        assert!(stays.iter().all(|name| dir.path().join(name).exists()));
        assert!(goes.iter().all(|name| !dir.path().join(name).exists()));
        assert!(bundle.join("RuntimeMetadata.json").exists() && bundle.join("Other.new").exists());
        assert_eq!(Leftovers::remove(dir.path()).unwrap().removed, 0);
    }
}
