//! What VMs have left behind: the bundles and processes of one runners path.

use std::{fs, path::Path};

use serde::Serialize;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOver {
    pub bundles: usize,
    /// Processes that name the runners path or run in it, except the agent.
    pub processes: usize,
}

impl LeftOver {
    pub const NONE: Self = Self { bundles: 0, processes: 0 };
}

/// Counts what is present now.
pub fn of(runners: &Path) -> LeftOver {
    let bundles = fs::read_dir(runners)
        .map(|entries| {
            entries.flatten().filter(|e| e.path().extension().is_some_and(|x| x == "bundle")).count()
        })
        .unwrap_or(0);
    LeftOver { bundles, processes: processes(runners).len() }
}

/// IDs of the VM processes, hypervisors and guests of the stand-in that belong to `runners`: their working directory is
/// inside it, or they were started for a bundle inside it.
pub fn processes(runners: &Path) -> Vec<i32> {
    let inside = format!("{}/", runners.display());
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|e| Some((e.file_name().to_str()?.parse::<i32>().ok()?, e.path())))
        .filter(|(_, proc)| {
            let runs_there =
                fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd.to_string_lossy().starts_with(&inside));
            // A zombie has neither a command line nor a directory.
            let names_it = fs::read(proc.join("cmdline"))
                .is_ok_and(|args| args.split(|b| *b == 0).any(|a| a.starts_with(inside.as_bytes())));
            // The stand-in sets this for its guests (VZCore/Sources/Virtualization).
            let disk = format!("VZ_GUEST_DISK={inside}");
            let is_guest = fs::read(proc.join("environ"))
                .is_ok_and(|vars| vars.split(|b| *b == 0).any(|v| v.starts_with(disk.as_bytes())));
            runs_there || names_it || is_guest
        })
        .map(|(pid, _)| pid)
        .collect()
}
