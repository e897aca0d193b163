//! From the kernel's hand to a root file system with everything mounted.

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
    log::{self, fault, mark},
    uevent::Uevents,
};
use crate::cmdline::Cmdline;

/// The initial RAM disk's modules, in files named so that their order is the order of their needs.
const EARLY_MODULES: &str = "/modules/early";
const LATE_MODULES: &str = "/modules/late";
const DISK: &str = "/dev/vda";
const DISK_DEADLINE: Duration = Duration::from_secs(30);

/// What the rest of the boot goes on with.
pub(super) struct Booted {
    pub(super) cmdline: Cmdline,
    /// Open since before the root was moved, in their order.
    pub(super) late_modules: Vec<(String, File)>,
    pub(super) uevents: Uevents,
}

/// Loads what the disk needs, mounts it, and moves there. An error is a sentence.
pub(super) fn boot() -> Result<Booted, String> {
    mount_one(&Mount { what: "dev", at: "/dev", kind: "devtmpfs", flags: MsFlags::MS_NOSUID, data: "" })?;
    log::open();
    mark("first process");
    let uevents = Uevents::open().map_err(|e| format!("device events cannot be listened to: {e}"))?;
    for (name, file) in modules(Path::new(EARLY_MODULES))? {
        load(&name, &file);
    }
    mark("early modules loaded");
    await_disk(&uevents)?;
    mount(Some(DISK), "/root", Some("ext4"), MsFlags::MS_NOATIME, Some("noinit_itable,nodiscard,nobarrier"))
        .map_err(|e| format!("the root file system on {DISK} (ext4) cannot be mounted: {e}"))?;
    mark("root mounted");
    let late_modules = modules(Path::new(LATE_MODULES))?;
    free_initrd();
    move_root()?;
    let cmdline = rest_of_mounts()?;
    mark("everything mounted");
    Ok(Booted { cmdline, late_modules, uevents })
}

/// Loads a module; one that is built in or has no device is no reason to stop.
pub(super) fn load(name: &str, file: &File) {
    match finit_module(file, &CString::default(), ModuleInitFlags::empty()) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(e) => fault(&format!("kernel module {name} was not loaded: {e}")),
    }
}

fn modules(dir: &Path) -> Result<Vec<(String, File)>, String> {
    let words = |e: io::Error| format!("the initial RAM disk's {} cannot be read: {e}", dir.display());
    let mut paths = fs::read_dir(dir)
        .map_err(words)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<Vec<PathBuf>>>()
        .map_err(words)?;
    paths.sort();
    let open = |path: PathBuf| {
        let file = File::open(&path).map_err(words)?;
        Ok((path.file_name().unwrap_or_default().to_string_lossy().into_owned(), file))
    };
    paths.into_iter().map(open).collect()
}

fn await_disk(uevents: &Uevents) -> Result<(), String> {
    let words = |e: Errno| format!("the disk {DISK} did not appear within {DISK_DEADLINE:?}: {e}");
    uevents.deadline(Some(DISK_DEADLINE)).map_err(words)?;
    while !Path::new(DISK).exists() {
        uevents.next().map_err(words)?;
    }
    uevents.deadline(None).map_err(words)
}

/// Gives the initial RAM disk's memory back; what cannot be removed just stays in memory.
fn free_initrd() {
    let _ = fs::remove_dir_all("/modules");
    let _ = fs::remove_file("/init");
}

fn move_root() -> Result<(), String> {
    let words = |e: Errno| format!("the root cannot be moved to the disk: {e}");
    mount(Some("/dev"), "/root/dev", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(words)?;
    chdir("/root").map_err(words)?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>).map_err(words)?;
    chroot(".").map_err(words)?;
    chdir("/").map_err(words)
}

struct Mount {
    what: &'static str,
    at: &'static str,
    kind: &'static str,
    flags: MsFlags,
    data: &'static str,
}

fn mount_one(m: &Mount) -> Result<(), String> {
    match mount(Some(m.what), m.at, Some(m.kind), m.flags, Some(m.data)) {
        // The kernel may have mounted /dev already (CONFIG_DEVTMPFS_MOUNT).
        Ok(()) | Err(Errno::EBUSY) => Ok(()),
        Err(e) => Err(format!("{} ({}) cannot be mounted: {e}", m.at, m.kind)),
    }
}

fn rest_of_mounts() -> Result<Cmdline, String> {
    let hard = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let soft = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount_one(&Mount { what: "proc", at: "/proc", kind: "proc", flags: hard, data: "" })?;
    let text =
        fs::read_to_string("/proc/cmdline").map_err(|e| format!("/proc/cmdline cannot be read: {e}"))?;
    let cmdline = Cmdline::parse(&text);
    log::set_trace(cmdline.trace);
    mount_one(&Mount { what: "sysfs", at: "/sys", kind: "sysfs", flags: hard, data: "" })?;
    for dir in ["/dev/pts", "/dev/shm"] {
        fs::create_dir_all(dir).map_err(|e| format!("{dir} cannot be made: {e}"))?;
    }
    mount_one(&Mount {
        what: "devpts",
        at: "/dev/pts",
        kind: "devpts",
        flags: MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC,
        data: "gid=5,mode=620,ptmxmode=666",
    })?;
    mount_one(&Mount { what: "shm", at: "/dev/shm", kind: "tmpfs", flags: soft, data: "mode=1777" })?;
    mount_one(&Mount { what: "run", at: "/run", kind: "tmpfs", flags: soft, data: "mode=755" })?;
    mkdir("/run/sshd", 0o755)?;
    mkdir("/run/lock", 0o1777)?;
    for (link, to) in [
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
    ] {
        symlink(to, link).map_err(|e| format!("{link} cannot be made: {e}"))?;
    }
    sethostname(&cmdline.hostname)
        .map_err(|e| format!("the host name {:?} is refused: {e}", cmdline.hostname))?;
    Ok(cmdline)
}

fn mkdir(path: &str, mode: u32) -> Result<(), String> {
    fs::create_dir(path)
        .and_then(|()| fs::set_permissions(path, Permissions::from_mode(mode)))
        .map_err(|e| format!("{path} cannot be made: {e}"))
}
