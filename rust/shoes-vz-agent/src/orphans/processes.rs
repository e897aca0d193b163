//! VM processes and hypervisors that belong to bundles below a runners path, and the end of those whose VM was not adopted.

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

/// The bundles whose VM was adopted, with the ids of the VM's process and hypervisor (0: unknown).
pub type Adopted = BTreeMap<PathBuf, (u32, u32)>;

/// A process that belongs to a bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    pid: u32,
    parent: u32,
    /// Seconds since 1970: with the id it names one process for good.
    began: u64,
    what: What,
    bundle: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Vm,
    Qemu,
}

/// What became of the processes found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// That were ended.
    pub ended: usize,
    /// That could not be.
    pub left: usize,
}

impl Ended {
    /// Ends every process of this user's that runs a VM of a bundle below `runners_path` and is not of an adopted one.
    /// Blocks for some milliseconds.
    pub(crate) fn orphans(runners_path: &Path, adopted: &Adopted) -> Self {
        let mut count = Self::default();
        let mut system = match System::new() {
            Ok(system) => system,
            Err(error) => {
                tracing::warn!(%error, "which processes run cannot be found out; VMs nobody can adopt may be among them");
                return count;
            }
        };
        for orphan in orphans_of(all(&mut system, runners_path), adopted) {
            let Found { pid, what, bundle, .. } = &orphan;
            // Right before, so that the number is surely still its own.
            if one(&mut system, runners_path, *pid).is_none_or(|now| !orphan.is_same(&now)) {
                continue;
            }
            match i32::try_from(*pid)
                .map_err(|_| Errno::ESRCH)
                .and_then(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL))
            {
                Ok(()) => {
                    tracing::warn!(pid, ?what, ?bundle, "ended a process whose VM nobody can adopt");
                    count.ended += 1;
                }
                Err(Errno::ESRCH) => {}
                Err(error) => {
                    tracing::error!(pid, ?what, ?bundle, %error, "a process whose VM nobody can adopt cannot be ended");
                    count.left += 1;
                }
            }
        }
        count
    }
}

impl Found {
    /// Its parent may have ended meanwhile, and the kernel's word on when the host was booted, from which `began` is
    /// reckoned, is rounded anew each time.
    fn is_same(&self, now: &Self) -> bool {
        self.began.abs_diff(now.began) <= 1
            && *self == Self { parent: self.parent, began: self.began, ..now.clone() }
    }
}

/// Those of `found` that belong to no adopted VM, VM processes first: with one goes its hypervisor.
fn orphans_of(found: Vec<Found>, adopted: &Adopted) -> Vec<Found> {
    let vms: BTreeMap<u32, PathBuf> =
        found.iter().filter(|f| f.what == What::Vm).map(|f| (f.pid, f.bundle.clone())).collect();
    let is_orphan = |f: &Found| match (adopted.get(&f.bundle), f.what) {
        (None, _) => true,
        // A second one for a bundle finds it locked, and leaves by itself.
        (Some(_), What::Vm) => false,
        (Some((vm, qemu)), What::Qemu) => {
            f.pid != *qemu && f.parent != *vm && vms.get(&f.parent) != Some(&f.bundle)
        }
    };
    let mut orphans: Vec<Found> = found.into_iter().filter(is_orphan).collect();
    orphans.sort_by_key(|f| (f.what == What::Qemu, f.pid));
    orphans
}

fn all(system: &mut System, runners_path: &Path) -> Vec<Found> {
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, wanted());
    system.processes().values().filter_map(|p| found(p, runners_path)).collect()
}

fn one(system: &mut System, runners_path: &Path, pid: u32) -> Option<Found> {
    let id = sysinfo::Pid::from_u32(pid);
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[id]), true, wanted());
    found(system.process(id)?, runners_path)
}

fn wanted() -> ProcessRefreshKind {
    ProcessRefreshKind::nothing()
        .without_tasks()
        .with_cmd(UpdateKind::Always)
        .with_cwd(UpdateKind::Always)
        .with_user(UpdateKind::Always)
}

fn found(process: &sysinfo::Process, runners_path: &Path) -> Option<Found> {
    let mine = process.user_id().is_some_and(|id| **id == getuid().as_raw());
    let over = matches!(process.status(), ProcessStatus::Zombie | ProcessStatus::Dead);
    if !mine || over || process.pid().as_u32() == std::process::id() {
        return None;
    }
    let (what, bundle) = recognise(process.cmd(), process.cwd(), runners_path)?;
    Some(Found {
        pid: process.pid().as_u32(),
        parent: process.parent().map_or(0, sysinfo::Pid::as_u32),
        began: process.start_time(),
        what,
        bundle,
    })
}

/// What runs a VM of a bundle below `runners_path`: both work in it, a VM process once it has begun; before, its command
/// line says which.
fn recognise(args: &[OsString], cwd: Option<&Path>, runners_path: &Path) -> Option<(What, PathBuf)> {
    if let [_, vm, flag, bundle, ..] = args
        && vm == "vm"
        && flag == "--bundle"
    {
        // It works in its bundle, which may have been renamed since it was started.
        let works_in = cwd.and_then(|cwd| bundle_below(runners_path, &named(cwd)));
        return Some((What::Vm, works_in.or_else(|| bundle_below(runners_path, Path::new(bundle)))?));
    }
    let program = Path::new(args.first()?).file_name()?.to_str()?;
    // `exec-with-parent` is what becomes QEMU in a moment.
    let is_qemu = program.starts_with("qemu-system-") || args.get(1).is_some_and(|a| a == "exec-with-parent");
    is_qemu.then_some(())?;
    Some((What::Qemu, bundle_below(runners_path, &named(cwd?))?))
}

/// Linux' word for a directory that is gone.
fn named(cwd: &Path) -> PathBuf {
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

    /// A runners path with a program named `vm` beside it, which runs until it is killed or let go.
    struct Place {
        dir: TempDir,
        children: Vec<Child>,
    }

    impl Place {
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
            // Its stdin ends with this test, and it with that, however the test ends.
            let child = command.stdin(Stdio::piped()).spawn().unwrap();
            let pid = child.id();
            self.children.push(child);
            pid
        }

        /// `sh vm --bundle BUNDLE`, as the VM process' command line is.
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
        let mut place = Place::new();
        let mut elsewhere = Place::new();
        let (gone, kept) = (place.bundle(), place.bundle());
        let (stray, owned) = (place.vm(&gone), place.vm(&kept));
        let foreign = elsewhere.vm(&elsewhere.bundle());
        std::fs::remove_dir(&gone).unwrap();
        let adopted = Adopted::from([(kept, (owned, 0))]);
        let ended = Ended::orphans(&place.runners_path(), &adopted);
        assert_eq!(ended, Ended { ended: 1, left: 0 });
        assert!(place.is_killed(stray));
        assert!(!place.is_killed(owned) && !elsewhere.is_killed(foreign));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_hypervisor_is_ended_unless_the_adopted_vm_process_owns_it() {
        let mut place = Place::new();
        let (gone, kept) = (place.bundle(), place.bundle());
        let (stray, orphan, owned) = (place.qemu(&gone), place.qemu(&kept), place.qemu(&kept));
        std::fs::remove_dir(&gone).unwrap();
        let adopted = Adopted::from([(kept, (1, owned))]);
        assert_eq!(Ended::orphans(&place.runners_path(), &adopted), Ended { ended: 2, left: 0 });
        assert!(place.is_killed(stray) && place.is_killed(orphan));
        assert!(!place.is_killed(owned));
    }

    #[test]
    fn only_command_lines_of_this_runners_paths_bundles_are_recognised() {
        let bundle = Path::new("/r").join(dir_name(RunnerId::random()));
        let recognise = |args: &[&str], cwd: &str| {
            let args: Vec<OsString> = args.iter().map(OsString::from).collect();
            recognise(&args, Some(Path::new(cwd)), Path::new("/r"))
        };
        let path = bundle.to_str().unwrap();
        assert_eq!(recognise(&["/opt/a", "vm", "--bundle", path], "/"), Some((What::Vm, bundle.clone())));
        let renamed = format!("/r/{}", dir_name(RunnerId::random()));
        let vm = recognise(&["/opt/a", "vm", "--bundle", path], &renamed);
        assert_eq!(vm, Some((What::Vm, PathBuf::from(&renamed))), "a hot VM that became a runner's");
        let qemu = recognise(&["qemu-system-aarch64", "-S"], &format!("{path} (deleted)"));
        assert_eq!(qemu, Some((What::Qemu, bundle.clone())));
        for (args, cwd) in [
            (&["vim", "vm", "--bundle"][..], path),
            (&["/opt/a", "vm", "--bundle", "/r/photos"], "/"),
            (&["/opt/a", "vm", "--bundle", &format!("/other{path}")], "/"),
            (&["tail", "-f", "vm.log"], path),
            (&["qemu-system-aarch64", "-S"], "/r"),
            (&[], path),
        ] {
            assert_eq!(recognise(args, cwd), None, "{args:?}");
        }
    }

    #[test]
    fn a_process_is_the_same_though_its_start_is_rounded_otherwise_and_another_of_its_number_is_not() {
        let found = |began| Found { pid: 7, parent: 1, began, what: What::Vm, bundle: "/r/a".into() };
        let orphaned = Found { parent: 2, ..found(101) };
        assert!(found(100).is_same(&found(99)) && found(100).is_same(&orphaned));
        assert!(!found(100).is_same(&found(102)));
        assert!(!found(100).is_same(&Found { bundle: "/r/b".into(), ..found(100) }));
    }

    #[test]
    fn a_hypervisor_whose_parent_is_its_bundles_vm_process_is_owned() {
        let bundle = PathBuf::from("/r/a");
        let found = |pid, parent, what| Found { pid, parent, began: 0, what, bundle: bundle.clone() };
        let adopted = Adopted::from([(bundle.clone(), (0, 0))]);
        let all = vec![found(7, 1, What::Vm), found(8, 7, What::Qemu), found(9, 1, What::Qemu)];
        assert_eq!(orphans_of(all.clone(), &adopted), [found(9, 1, What::Qemu)]);
        assert_eq!(orphans_of(all, &Adopted::new()).iter().map(|f| f.pid).collect::<Vec<_>>(), [7, 8, 9]);
    }
}
