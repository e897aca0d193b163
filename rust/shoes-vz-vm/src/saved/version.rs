//! The hypervisor's version: another one may not read a state, or read it wrongly.

use crate::spec::HypervisorKind;

/// A text that stays equal as long as the hypervisor is the same.
pub(super) fn of(hypervisor: HypervisorKind) -> String {
    match hypervisor {
        HypervisorKind::Qemu => qemu(),
        HypervisorKind::Vz => host(),
    }
}

/// QEMU is asked once, and again when the program was replaced.
#[cfg(target_os = "linux")]
fn qemu() -> String {
    use std::{
        env, fs,
        os::unix::fs::MetadataExt as _,
        path::PathBuf,
        process::{Command, Stdio},
        sync::{Mutex, PoisonError},
    };

    use crate::arch::Arch;

    type Key = (PathBuf, u64, i64, i64);
    static KNOWN: Mutex<Option<(Key, String)>> = Mutex::new(None);

    let Some(program) = Arch::of_this_host().map(Arch::program) else { return "none".into() };
    let path = env::var_os("PATH").unwrap_or_default();
    let found = env::split_paths(&path).map(|dir| dir.join(program)).find_map(|path| {
        let found = fs::metadata(&path).ok()?;
        Some((path, found.ino(), found.mtime(), found.mtime_nsec()))
    });
    let Some(key) = found else { return "none".into() };
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((of, version)) = &*known
        && *of == key
    {
        return version.clone();
    }
    let output = Command::new(&key.0).arg("--version").stdin(Stdio::null()).output();
    let version = output.map_or_else(
        |error| format!("unknown ({error})"),
        |output| String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or("unknown").to_owned(),
    );
    *known = Some((key, version.clone()));
    version
}

#[cfg(not(target_os = "linux"))]
fn qemu() -> String {
    "none".into()
}

/// The build of macOS, which Virtualization.framework is part of.
fn host() -> String {
    let plist = std::fs::read_to_string("/System/Library/CoreServices/SystemVersion.plist");
    plist.ok().and_then(|text| build_of(&text)).unwrap_or_else(|| "unknown".into())
}

fn build_of(plist: &str) -> Option<String> {
    let (_, after) = plist.split_once("<key>ProductBuildVersion</key>")?;
    let (_, value) = after.split_once("<string>")?;
    value.split_once("</string>").map(|(build, _)| build.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macos_build_is_found_in_its_property_list() {
        let plist = "<dict>\n<key>ProductBuildVersion</key>\n\t<string>25E241</string>\n<key>X</key></dict>";
        assert_eq!(build_of(plist).as_deref(), Some("25E241"));
        assert_eq!(build_of("<dict/>"), None);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn qemu_is_asked_and_gives_the_same_answer_twice() {
        let version = of(HypervisorKind::Qemu);
        assert!(version.contains("version") || version == "none", "{version}");
        assert_eq!(of(HypervisorKind::Qemu), version);
    }
}
