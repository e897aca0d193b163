//! The boot from the initial RAM disk to a root file system with everything mounted.

use std::{
    ffi::CString,
    fs::{self, File, Permissions},
    io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    errno::Errno,
    kmod::{ModuleInitFlags, finit_module},
    mount::{MsFlags, mount},
    unistd::{chdir, chroot, sethostname},
};

use super::{
    log::{self, error, step},
    uevent::Uevents,
};
use crate::cmdline::Cmdline;

/// Directories of the initial RAM disk. The files' names sort in the order in which the modules must be loaded.
const EARLY_MODULES: &str = "/modules/early";
const DEFERRED_MODULES: &str = "/modules/late";
pub(super) const DISK: &str = "/dev/vda";
const DISK_DEADLINE: Duration = Duration::from_secs(30);

/// What the rest of the boot needs.
pub(super) struct Booted {
    pub(super) cmdline: Cmdline,
    /// In loading order. Opened before the root was moved, because their paths end with the initial RAM disk.
    pub(super) deferred_modules: Vec<(String, File)>,
    pub(super) uevents: Uevents,
}

/// Loads the modules that the disk needs, mounts the disk, and makes it the root. The error is the reason.
pub(super) fn boot() -> Result<Booted, String> {
    mount_one("dev", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "")?;
    log::open();
    step("first process started");
    let uevents = Uevents::open().map_err(|e| format!("opening the socket for device events failed: {e}"))?;
    for (name, file) in modules(Path::new(EARLY_MODULES))? {
        load(&name, &file);
    }
    step("early modules loaded");
    await_disk(&uevents)?;
    mount(Some(DISK), "/root", Some("ext4"), MsFlags::MS_NOATIME, Some("noinit_itable,nodiscard,nobarrier"))
        .map_err(|e| format!("mounting the root file system on {DISK} (ext4) failed: {e}"))?;
    step("root mounted");
    let deferred_modules = modules(Path::new(DEFERRED_MODULES))?;
    free_initrd();
    move_root()?;
    let cmdline = mount_the_rest()?;
    step("everything mounted");
    Ok(Booted { cmdline, deferred_modules, uevents })
}

/// Loads a module. A failure is only logged: the module may be built in, or the guest may not have its device.
pub(super) fn load(name: &str, file: &File) {
    match finit_module(file, &CString::default(), ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(e) => error(&format!("loading the kernel module {name} failed: {e}")),
    }
}

fn modules(dir: &Path) -> Result<Vec<(String, File)>, String> {
    let failed = |e: io::Error| format!("reading {} of the initial RAM disk failed: {e}", dir.display());
    let mut paths = fs::read_dir(dir)
        .map_err(failed)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<PathBuf>>>()
        .map_err(failed)?;
    paths.sort();
    let open = |path: PathBuf| {
        let file = File::open(&path).map_err(failed)?;
        Ok((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), file))
    };
    paths.into_iter().map(open).collect()
}

fn await_disk(uevents: &Uevents) -> Result<(), String> {
    let failed = |e: Errno| format!("the disk {DISK} did not appear within {DISK_DEADLINE:?}: {e}");
    uevents.set_timeout(Some(DISK_DEADLINE)).map_err(failed)?;
    while !Path::new(DISK).exists() {
        uevents.next().map_err(failed)?;
    }
    uevents.set_timeout(None).map_err(failed)
}

/// Frees the memory of the initial RAM disk. A file that cannot be removed stays in memory, which does no harm.
fn free_initrd() {
    let _ = fs::remove_dir_all("/modules");
    let _ = fs::remove_file("/init");
}

fn move_root() -> Result<(), String> {
    let failed = |e: Errno| format!("moving the root to the disk failed: {e}");
    mount(Some("/dev"), "/root/dev", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(failed)?;
    chdir("/root").map_err(failed)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(failed)?;
    chroot(".").map_err(failed)?;
    chdir("/").map_err(failed)
}

/// Arguments in the order of mount(2).
fn mount_one(what: &str, at: &str, kind: &str, flags: MsFlags, data: &str) -> Result<(), String> {
    match mount(Some(what), at, Some(kind), flags, Some(data)) {
        // The kernel may have mounted /dev already (CONFIG_DEVTMPFS_MOUNT).
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(e) => Err(format!("mounting {at} ({kind}) failed: {e}")),
    }
}

fn mount_the_rest() -> Result<Cmdline, String> {
    let hard = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let soft = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_one("proc", "/proc", "proc", hard, "")?;
    let text =
        fs::read_to_string("/proc/cmdline").map_err(|e| format!("reading /proc/cmdline failed: {e}"))?;
    let cmdline = Cmdline::parse(&text);
    log::set_trace(cmdline.trace);
    mount_one("sysfs", "/sys", "sysfs", hard, "")?;
    for dir in ["/dev/pts", "/dev/shm"] {
        fs::create_dir_all(dir).map_err(|e| format!("creating {dir} failed: {e}"))?;
    }
    let of_terminals = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount_one("devpts", "/dev/pts", "devpts", of_terminals, "gid=5,mode=620,ptmxmode=666")?;
    mount_one("shm", "/dev/shm", "tmpfs", soft, "mode=1777")?;
    mount_one("run", "/run", "tmpfs", soft, "mode=755")?;
    mkdir("/run/sshd", 0o755)?;
    mkdir("/run/lock", 0o1777)?;
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        symlink(to, link).map_err(|e| format!("creating {link} failed: {e}"))?;
    }
    sethostname(&cmdline.hostname)
        .map_err(|e| format!("setting the host name {:?} failed: {e}", cmdline.hostname))?;
    Ok(cmdline)
}

fn mkdir(path: &str, mode: u32) -> Result<(), String> {
    fs::create_dir(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(|e| format!("creating {path} failed: {e}"))
}
