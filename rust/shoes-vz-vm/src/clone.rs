//! Bundles: made from a template in milliseconds for any size of the disk, and removed.
//!
//! QEMU: the disk is a qcow2 overlay over the template's raw image; kernel and initrd are read from the template.
//! Virtualization.framework: VZCore clones the template's files (`clonefile(2)`), which must be on the same volume.
//! Both functions block; call them by `spawn_blocking`.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use shoes_vz_model::{
    bundle::{self, file},
    template,
};
use shoes_vz_process::files::if_any;

use crate::{
    qcow2,
    spec::{HypervisorKind, StateUse, VmSpec},
    template::TemplateDir,
};

/// The overlay's name in a QEMU bundle.
pub const OVERLAY: &str = "Disk.qcow2";

/// Why a bundle was not made, or not removed.
#[derive(Debug, thiserror::Error)]
pub enum CloneError {
    #[error("{what} {path:?} failed")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("the bundle {0:?} already holds a VM; remove it first")]
    Taken(PathBuf),
    #[error("{0:?} is not a bundle (its name does not end in \".bundle\"), so it is not removed")]
    NotABundle(PathBuf),
    #[error("cloning the template {template:?} into {bundle:?} failed")]
    Vz { template: PathBuf, bundle: PathBuf, source: shoes_vz_bridge::Failure },
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> CloneError + 'a {
    move |source| CloneError::Io { what, path: path.to_owned(), source }
}

/// Makes the VM's files in `dir`, which is created (mode 0700) unless it exists and holds no VM yet.
/// On any error everything made here is removed again.
pub fn make_bundle(template: &TemplateDir, dir: &Path, spec: &VmSpec) -> Result<(), CloneError> {
    let mut undo = Undo { dir: None, files: Vec::new() };
    match fs::DirBuilder::new().mode(0o700).create(dir) {
        Ok(()) => undo.dir = Some(dir.to_owned()),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {
            let disk = dir.join(disk_name(spec.hypervisor));
            if dir.join(file::VM_SPEC).exists() || disk.exists() {
                return Err(CloneError::Taken(dir.to_owned()));
            }
            let private = fs::Permissions::from_mode(0o700);
            fs::set_permissions(dir, private)
                .map_err(io_error("restricting the permissions of the bundle", dir))?;
        }
        Err(e) => return Err(io_error("creating the bundle", dir)(e)),
    }

    match spec.hypervisor {
        HypervisorKind::Qemu => overlay(template, dir, spec, &mut undo)?,
        HypervisorKind::Vz => {
            // When it fails, it removes itself what it has made.
            let from = match &spec.state {
                StateUse::Restore(state) => state,
                StateUse::None | StateUse::Save(_) => &template.path,
            };
            shoes_vz_bridge::clone_bundle(from, dir, spec.os.as_str(), spec.disk_bytes).map_err(
                |source| CloneError::Vz { template: from.clone(), bundle: dir.to_owned(), source },
            )?;
            undo.files.extend(VZ_FILES.map(|name| dir.join(name)));
            if let StateUse::Restore(state) = &spec.state {
                // A state is of one machine, and the clone has another identity.
                let (from, to) = (state.join(file::MACHINE_IDENTIFIER), dir.join(file::MACHINE_IDENTIFIER));
                fs::copy(&from, &to).map_err(io_error("copying the machine identifier", &from))?;
            }
        }
    }

    // Last, so that a bundle with a Vm.json is complete.
    let vm_json = dir.join(file::VM_SPEC);
    undo.files.push(vm_json.clone());
    spec.write(dir).map_err(io_error("writing the VM's settings", &vm_json))?;
    undo.keep();
    Ok(())
}

/// What a clone by VZCore may consist of.
const VZ_FILES: [&str; 4] = [
    template::file::DISK,
    template::file::AUXILIARY,
    template::file::HARDWARE_MODEL,
    file::MACHINE_IDENTIFIER,
];

fn disk_name(hypervisor: HypervisorKind) -> &'static str {
    match hypervisor {
        HypervisorKind::Qemu => OVERLAY,
        HypervisorKind::Vz => template::file::DISK,
    }
}

fn overlay(template: &TemplateDir, dir: &Path, spec: &VmSpec, undo: &mut Undo) -> Result<(), CloneError> {
    let backing = template.path.join(template::file::DISK);
    let over = match &spec.state {
        StateUse::Restore(state) => Some((state.join(OVERLAY), qcow2::Format::Qcow2)),
        StateUse::None | StateUse::Save(_) => None,
    };
    // The image may have been replaced since the template was checked: a disk shorter than its image would cut off
    // the guest's file system.
    let raw = fs::metadata(&backing).map_err(io_error("examining the template's disk", &backing))?.len();
    let bytes = spec.disk_bytes.max(raw).next_multiple_of(512);
    let overlay = dir.join(OVERLAY);
    undo.files.push(overlay.clone());
    let (backing, format) = over.unwrap_or((backing, qcow2::Format::Raw));
    qcow2::create_overlay(&overlay, &backing, format, bytes)
        .map_err(io_error("writing the overlay disk", &overlay))
}

/// Removes a bundle and all in it; one that does not exist is fine.
pub fn remove_bundle(dir: &Path) -> Result<(), CloneError> {
    if !dir.file_name().is_some_and(|n| n.to_string_lossy().ends_with(bundle::SUFFIX)) {
        return Err(CloneError::NotABundle(dir.to_owned()));
    }
    if_any(fs::remove_dir_all(dir)).map(drop).map_err(io_error("removing the bundle", dir))
}

/// What to remove when making a bundle fails half-way.
struct Undo {
    dir: Option<PathBuf>,
    files: Vec<PathBuf>,
}

impl Undo {
    fn keep(mut self) {
        self.dir = None;
        self.files.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for file in &self.files {
            if let Err(error) = if_any(fs::remove_file(file)) {
                tracing::warn!(?file, reason = %error, "removing a file of an incomplete bundle failed");
            }
        }
        if let Some(dir) = &self.dir
            && let Err(error) = fs::remove_dir(dir)
        {
            tracing::warn!(?dir, reason = %error, "removing an incomplete bundle failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// A Linux template whose disk is sparse and `bytes` long.
    fn template(dir: &Path, bytes: u64) -> TemplateDir {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("Template.json"), r#"{"os":"linux","guest_agent":"channel"}"#).unwrap();
        fs::write(dir.join("kernel"), "k").unwrap();
        fs::write(dir.join("initrd"), "i").unwrap();
        fs::File::create(dir.join("Disk.img")).unwrap().set_len(bytes).unwrap();
        TemplateDir::open(dir).unwrap()
    }

    fn spec(template: &TemplateDir) -> VmSpec {
        VmSpec { hypervisor: HypervisorKind::Qemu, ..VmSpec::of_template(template) }
    }

    #[test]
    fn a_bundle_is_private_complete_and_made_in_milliseconds_for_any_size_of_the_disk() {
        let tmp = tempfile::tempdir().unwrap();
        let t = template(&tmp.path().join("t"), 512 << 30);
        let took: Vec<_> = (0..9)
            .map(|i| {
                let dir = tmp.path().join(format!("{i}.bundle"));
                let began = Instant::now();
                make_bundle(&t, &dir, &spec(&t)).unwrap();
                let took = began.elapsed();
                assert_eq!(fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);
                for name in [OVERLAY, file::VM_SPEC] {
                    assert_eq!(
                        fs::metadata(dir.join(name)).unwrap().permissions().mode() & 0o777,
                        0o600,
                        "{name}"
                    );
                }
                remove_bundle(&dir).unwrap();
                remove_bundle(&dir).unwrap();
                assert!(!dir.exists());
                took
            })
            .collect();
        // The fastest of nine: other work on the machine must not fail this.
        assert!(took.iter().min().unwrap().as_millis() <= 15, "{took:?}");
    }

    #[test]
    fn a_bundle_that_holds_a_vm_is_not_overwritten() {
        let tmp = tempfile::tempdir().unwrap();
        let t = template(&tmp.path().join("t"), 1 << 20);
        let dir = tmp.path().join("a.bundle");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join(file::METADATA), "{}").unwrap();
        make_bundle(&t, &dir, &spec(&t)).unwrap();
        assert!(matches!(make_bundle(&t, &dir, &spec(&t)).unwrap_err(), CloneError::Taken(_)));
        assert!(dir.join(OVERLAY).exists());
    }

    #[test]
    fn a_failed_clone_leaves_only_what_was_there_before() {
        let tmp = tempfile::tempdir().unwrap();
        let t = template(&tmp.path().join("t"), 1 << 20);
        let bad = VmSpec { disk_bytes: u64::MAX / 1024 * 512, ..spec(&t) };
        let fresh = tmp.path().join("fresh.bundle");
        make_bundle(&t, &fresh, &bad).unwrap_err();
        assert!(!fresh.exists());

        let begun = tmp.path().join("begun.bundle");
        fs::create_dir(&begun).unwrap();
        fs::write(begun.join(file::METADATA), "{}").unwrap();
        make_bundle(&t, &begun, &bad).unwrap_err();
        let left: Vec<_> = fs::read_dir(&begun).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, [file::METADATA]);

        fs::remove_file(t.path.join("Disk.img")).unwrap();
        let text = make_bundle(&t, &fresh, &spec(&t)).unwrap_err().to_string();
        assert!(text.contains("Disk.img"), "{text}");
        assert!(!fresh.exists());
    }

    #[test]
    fn only_bundles_are_removed() {
        let tmp = tempfile::tempdir().unwrap();
        assert!(matches!(remove_bundle(tmp.path()).unwrap_err(), CloneError::NotABundle(_)));
        assert!(tmp.path().exists());
    }
}
