//! Finds the VM processes and hypervisors of bundles below a runners path, and kills those whose VM was not adopted.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::{Pid, getuid},
};
use shoes_vz_model::bundle::runner_of;
use sysinfo::{ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System, UpdateKind};

/// The bundles whose VM was adopted, with the process IDs of the VM process and its hypervisor (0: unknown).
pub type AdoptedVms = BTreeMap<PathBuf, (u32, u32)>;

#[derive(Debug, Clone, PartialEq, Eq)]
struct BundleProcess {
    pid: u32,
    parent: u32,
    /// Seconds since 1970: together with the ID it identifies one process.
    started: u64,
    kind: Kind,
    bundle: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Vm,
    Qemu,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct OrphansEnded {
    pub ended: usize,
    /// Processes that could not be killed.
    pub left: usize,
}

impl OrphansEnded {
    /// Kills every process of this user that runs a VM of a bundle below `runners_path`, unless the VM was adopted. Blocks
    /// for some milliseconds.
    pub(crate) fn end(runners_path: &Path, adopted: &AdoptedVms) -> Self {
        Self::kill(runners_path, |found| orphans_of(found, adopted))
    }

    /// Kills every process of this user that runs the VM of `bundle`. Blocks for some milliseconds.
    pub(crate) fn end_one(runners_path: &Path, bundle: &Path) -> Self {
        Self::kill(runners_path, |found| found.into_iter().filter(|f| f.bundle == bundle).collect())
    }

    fn kill(runners_path: &Path, which: impl FnOnce(Vec<BundleProcess>) -> Vec<BundleProcess>) -> Self {
        let mut count = Self::default();
        let mut system = match System::new() {
            Ok(system) => system,
            Err(error) => {
                tracing::warn!(reason = %error, "listing processes failed; VMs that no agent can adopt may still run");
                return count;
            }
        };
        for orphan in which(list(&mut system, runners_path)) {
            let BundleProcess { pid, kind, bundle, .. } = &orphan;
            // Checked again right before the signal, so that the ID still belongs to this process.
            if look_up(&mut system, runners_path, *pid).is_none_or(|now| !orphan.is_same(&now)) {
                continue;
            }
            match i32::try_from(*pid)
                .map_err(|_| Errno::ESRCH)
                .and_then(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL))
            {
                Ok(()) => {
                    tracing::warn!(pid, ?kind, ?bundle, "killed a process whose VM no agent can adopt");
                    count.ended += 1;
                }
                Err(Errno::ESRCH) => {}
                Err(error) => {
                    tracing::error!(pid, ?kind, ?bundle, reason = %error, "killing a process whose VM no agent can adopt failed");
                    count.left += 1;
                }
            }
        }
        count
    }
}

impl BundleProcess {
    /// The parent may have ended meanwhile. The kernel rounds the host's boot time, from which `started` is computed, each
    /// time it is read.
    fn is_same(&self, now: &Self) -> bool {
        self.started.abs_diff(now.started) <= 1
            && *self == Self { parent: self.parent, started: self.started, ..now.clone() }
    }
}

/// Those of `found` that belong to no adopted VM. VM processes come first, since a hypervisor ends with its VM process.
fn orphans_of(found: Vec<BundleProcess>, adopted: &AdoptedVms) -> Vec<BundleProcess> {
    let vms: BTreeMap<u32, PathBuf> =
        found.iter().filter(|f| f.kind == Kind::Vm).map(|f| (f.pid, f.bundle.clone())).collect();
    let is_orphan = |f: &BundleProcess| match (adopted.get(&f.bundle), f.kind) {
        (None, _) => true,
        // A second VM process for a bundle finds it locked, and exits.
        (Some(_), Kind::Vm) => false,
        (Some((vm, qemu)), Kind::Qemu) => {
            f.pid != *qemu && f.parent != *vm && vms.get(&f.parent) != Some(&f.bundle)
        }
    };
    let mut orphans: Vec<BundleProcess> = found.into_iter().filter(is_orphan).collect();
    orphans.sort_by_key(|f| (f.kind == Kind::Qemu, f.pid));
    orphans
}

fn list(system: &mut System, runners_path: &Path) -> Vec<BundleProcess> {
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, refresh_kind());
    system.processes().values().filter_map(|p| bundle_process(p, runners_path)).collect()
}

fn look_up(system: &mut System, runners_path: &Path, pid: u32) -> Option<BundleProcess> {
    let id = sysinfo::Pid::from_u32(pid);
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[id]), true, refresh_kind());
    bundle_process(system.process(id)?, runners_path)
}

fn refresh_kind() -> ProcessRefreshKind {
    ProcessRefreshKind::nothing()
        .without_tasks()
        .with_cmd(UpdateKind::Always)
        .with_cwd(UpdateKind::Always)
        .with_user(UpdateKind::Always)
}

fn bundle_process(process: &sysinfo::Process, runners_path: &Path) -> Option<BundleProcess> {
    let is_mine = process.user_id().is_some_and(|id| **id == getuid().as_raw());
    let has_ended = matches!(process.status(), ProcessStatus::Zombie | ProcessStatus::Dead);
    if !is_mine || has_ended || process.pid().as_u32() == std::process::id() {
        return None;
    }
    let (kind, bundle) = recognize(process.cmd(), process.cwd(), runners_path)?;
    Some(BundleProcess {
        pid: process.pid().as_u32(),
        parent: process.parent().map_or(0, sysinfo::Pid::as_u32),
        started: process.start_time(),
        kind,
        bundle,
    })
}

/// The kind and the bundle of a process that runs a VM below `runners_path`. The working directory of both kinds is the
/// bundle; a VM process that has just started is recognized by its command line.
fn recognize(args: &[OsString], cwd: Option<&Path>, runners_path: &Path) -> Option<(Kind, PathBuf)> {
    if let [_, vm, flag, bundle, ..] = args
        && vm == "vm"
        && flag == "--bundle"
    {
        // The bundle may have been renamed since the process was started.
        let current = cwd.and_then(|cwd| bundle_below(runners_path, &without_deleted(cwd)));
        return Some((Kind::Vm, current.or_else(|| bundle_below(runners_path, Path::new(bundle)))?));
    }
    let program = Path::new(args.first()?).file_name()?.to_str()?;
    // `exec-with-parent` becomes QEMU in a moment.
    let is_qemu = program.starts_with("qemu-system-") || args.get(1).is_some_and(|a| a == "exec-with-parent");
    is_qemu.then_some(())?;
    Some((Kind::Qemu, bundle_below(runners_path, &without_deleted(cwd?))?))
}

/// Linux appends " (deleted)" to the path of a removed directory.
fn without_deleted(cwd: &Path) -> PathBuf {
    let bytes = cwd.as_os_str().as_bytes();
    PathBuf::from(OsString::from_vec(bytes.strip_suffix(b" (deleted)").unwrap_or(bytes).to_vec()))
}

fn bundle_below(runners_path: &Path, path: &Path) -> Option<PathBuf> {
    let is_bundle = path.file_name()?.to_str().and_then(runner_of)?.is_ok();
    (is_bundle && path.parent() == Some(runners_path)).then(|| path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use shoes_vz_model::{bundle::dir_name, id::RunnerId};
    use tempfile::TempDir;

    use super::*;

    /// A runners path with a program named `vm` beside it, which runs until it is killed or its stdin closes.
    struct TestHost {
        dir: TempDir,
        children: Vec<Child>,
    }

    impl TestHost {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::create_dir(dir.path().join("r")).unwrap();
            std::fs::write(dir.path().join("vm"), "read line\n").unwrap();
            Self { dir, children: Vec::new() }
        }

        fn runners_path(&self) -> PathBuf {
            self.dir.path().canonicalize().unwrap().join("r")
        }

        fn bundle(&self) -> PathBuf {
            let bundle = self.runners_path().join(dir_name(RunnerId::random()));
            std::fs::create_dir(&bundle).unwrap();
            bundle
        }

        fn spawn(&mut self, command: &mut Command) -> u32 {
            // However the test ends, its end closes the child's stdin, which ends the child.
            let child = command.stdin(Stdio::piped()).spawn().unwrap();
            let pid = child.id();
            self.children.push(child);
            pid
        }

        /// `sh vm --bundle BUNDLE`, like the command line of a VM process.
        fn vm(&mut self, bundle: &Path) -> u32 {
            let dir = self.dir.path().to_owned();
            self.spawn(Command::new("sh").current_dir(dir).args(["vm", "--bundle"]).arg(bundle))
        }

        #[cfg(target_os = "linux")]
        fn qemu(&mut self, bundle: &Path) -> u32 {
            use std::os::unix::process::CommandExt as _;
            let script = self.dir.path().join("vm");
            self.spawn(Command::new("sh").arg0("/usr/bin/qemu-system-x86_64").arg(script).current_dir(bundle))
        }

        fn is_killed(&mut self, pid: u32) -> bool {
            use std::os::unix::process::ExitStatusExt as _;
            let child = self.children.iter_mut().find(|c| c.id() == pid).unwrap();
            drop(child.stdin.take());
            child.wait().unwrap().signal() == Some(Signal::SIGKILL as i32)
        }
    }

    #[test]
    fn a_vm_process_without_an_adopted_bundle_is_ended_and_no_other() {
        let mut host = TestHost::new();
        let mut other_host = TestHost::new();
        let (removed, kept) = (host.bundle(), host.bundle());
        let (stray, owned) = (host.vm(&removed), host.vm(&kept));
        let foreign = other_host.vm(&other_host.bundle());
        std::fs::remove_dir(&removed).unwrap();
        let adopted = AdoptedVms::from([(kept, (owned, 0))]);
        let ended = OrphansEnded::end(&host.runners_path(), &adopted);
        assert_eq!(ended, OrphansEnded { ended: 1, left: 0 });
        assert!(host.is_killed(stray));
        assert!(!host.is_killed(owned) && !other_host.is_killed(foreign));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_hypervisor_is_ended_unless_the_adopted_vm_process_owns_it() {
        let mut host = TestHost::new();
        let (removed, kept) = (host.bundle(), host.bundle());
        let (stray, orphan, owned) = (host.qemu(&removed), host.qemu(&kept), host.qemu(&kept));
        std::fs::remove_dir(&removed).unwrap();
        let adopted = AdoptedVms::from([(kept, (1, owned))]);
        assert_eq!(OrphansEnded::end(&host.runners_path(), &adopted), OrphansEnded { ended: 2, left: 0 });
        assert!(host.is_killed(stray) && host.is_killed(orphan));
        assert!(!host.is_killed(owned));
    }

    #[test]
    fn only_processes_of_bundles_below_the_runners_path_are_recognized() {
        let bundle = Path::new("/r").join(dir_name(RunnerId::random()));
        let recognize = |args: &[&str], cwd: &str| {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            recognize(&args, Some(Path::new(cwd)), Path::new("/r"))
        };
        let path = bundle.to_str().unwrap();
        assert_eq!(recognize(&["/opt/a", "vm", "--bundle", path], "/"), Some((Kind::Vm, bundle.clone())));
        let renamed = format!("/r/{}", dir_name(RunnerId::random()));
        let vm = recognize(&["/opt/a", "vm", "--bundle", path], &renamed);
        assert_eq!(vm, Some((Kind::Vm, PathBuf::from(&renamed))), "a hot VM that a runner claimed");
        let qemu = recognize(&["qemu-system-aarch64", "-S"], &format!("{path} (deleted)"));
        assert_eq!(qemu, Some((Kind::Qemu, bundle.clone())));
        for (args, cwd) in [
            (&["vim", "vm", "--bundle"][..], path),
            (&["/opt/a", "vm", "--bundle", "/r/photos"], "/"),
            (&["/opt/a", "vm", "--bundle", &format!("/other{path}")], "/"),
            (&["tail", "-f", "vm.log"], path),
            (&["qemu-system-aarch64", "-S"], "/r"),
            (&[], path),
        ] {
            assert_eq!(recognize(args, cwd), None, "{args:?}");
        }
    }

    #[test]
    fn a_process_stays_the_same_when_its_start_is_rounded_differently_and_a_reused_id_is_another_process() {
        let process =
            |started| BundleProcess { pid: 7, parent: 1, started, kind: Kind::Vm, bundle: "/r/a".into() };
        let orphaned = BundleProcess { parent: 2, ..process(101) };
        assert!(process(100).is_same(&process(99)) && process(100).is_same(&orphaned));
        assert!(!process(100).is_same(&process(102)));
        assert!(!process(100).is_same(&BundleProcess { bundle: "/r/b".into(), ..process(100) }));
    }

    #[test]
    fn a_hypervisor_whose_parent_is_the_vm_process_of_its_bundle_is_not_an_orphan() {
        let bundle = PathBuf::from("/r/a");
        let process =
            |pid, parent, kind| BundleProcess { pid, parent, started: 0, kind, bundle: bundle.clone() };
        let adopted = AdoptedVms::from([(bundle.clone(), (0, 0))]);
        let all = vec![process(7, 1, Kind::Vm), process(8, 7, Kind::Qemu), process(9, 1, Kind::Qemu)];
        assert_eq!(orphans_of(all.clone(), &adopted), [process(9, 1, Kind::Qemu)]);
        assert_eq!(orphans_of(all, &AdoptedVms::new()).iter().map(|f| f.pid).collect::<Vec<_>>(), [7, 8, 9]);
    }
}
