//! What is left over of VMs: bundles and processes that belong to one runners path.

use std::{fs, path::Path};

use serde::Serialize;

/// Counted by [`of`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeftOver {
    /// Bundle directories.
    pub bundles: usize,
    /// Processes that name the runners path or work in it, the agent itself not counted.
    pub processes: usize,
}

impl LeftOver {
    /// Nothing at all.
    pub const NONE: Self = Self { bundles: 0, processes: 0 };
}

/// Counts what is there now.
pub fn of(runners: &Path) -> LeftOver {
    let bundles = fs::read_dir(runners)
        .map(|entries| {
            entries.flatten().filter(|e| e.path().extension().is_some_and(|x| x == "bundle")).count()
        })
        .unwrap_or(0);
    LeftOver { bundles, processes: processes(runners).len() }
}

/// Ids of VM processes, hypervisors and guests of the stand-in's that belong to `runners`: their working directory is
/// inside it, or they were started for a bundle inside it.
pub fn processes(runners: &Path) -> Vec<i32> {
    let inside = format!("{}/", runners.display());
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|e| Some((e.file_name().to_str()?.parse::<i32>().ok()?, e.path())))
        .filter(|(_, proc)| {
            let works_there =
                fs::read_link(proc.join("cwd")).is_ok_and(|cwd| cwd.to_string_lossy().starts_with(&inside));
            // An ended process that waits to be reaped has no command line and no directory any more.
            let names_it = fs::read(proc.join("cmdline"))
                .is_ok_and(|args| args.split(|b| *b == 0).any(|a| a.starts_with(inside.as_bytes())));
            // What the stand-in tells its guests (VZCore/Sources/Virtualization).
            let disk = format!("VZ_GUEST_DISK={inside}");
            let is_guest = fs::read(proc.join("environ"))
                .is_ok_and(|vars| vars.split(|b| *b == 0).any(|v| v.starts_with(disk.as_bytes())));
            works_there || names_it || is_guest
        })
        .map(|(pid, _)| pid)
        .collect()
}
