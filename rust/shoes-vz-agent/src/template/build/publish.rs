//! Publishing a finished template in one step.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use shoes_vz_model::template::file;
use shoes_vz_terminal::output::note;

/// A directory that is being filled; removed unless it is published.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Removes what an interrupted build left at `path`. Does not create the directory.
    pub(super) fn new(path: PathBuf) -> anyhow::Result<Self> {
        remove(&path)
            .with_context(|| format!("cannot remove {}, left by an earlier build", path.display()))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = remove(&self.0) {
            note(&format!("cannot remove {} ({e}); the next build removes it", self.0.display()));
        }
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Only a template, an empty directory or nothing at all may be replaced by a template.
pub(super) fn may_be_replaced(output: &Path) -> anyhow::Result<()> {
    let entries = match fs::read_dir(output) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("cannot list {}", output.display())),
    };
    let is_template = [file::METADATA, file::DISK].iter().any(|name| output.join(name).is_file());
    ensure!(
        is_template || entries.count() == 0,
        "{} is not a template, and its content would be lost; use another directory",
        output.display()
    );
    Ok(())
}

/// Exchanges the finished template with what is at `output`, and removes the latter. Processes with open files keep them, and
/// no reader sees a mixture of both.
pub(super) fn publish(scratch: Scratch, output: &Path) -> anyhow::Result<()> {
    let failure = || format!("cannot move the finished template to {}", output.display());
    if output.exists() {
        exchange(scratch.path(), output).with_context(failure)
    } else {
        fs::rename(scratch.path(), output).with_context(failure)
    }
    // The old template is in the scratch directory now, and is removed with it.
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    Ok(renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE)?)
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    let old = b.with_extension("old");
    remove(&old)?;
    fs::rename(b, &old)?;
    fs::rename(a, b)?;
    fs::rename(&old, a)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn template(dir: &Path, disk: &str) {
        fs::create_dir_all(dir).unwrap();
        fs::write(dir.join(file::DISK), disk).unwrap();
    }

    #[test]
    fn a_new_version_leaves_the_open_disk_of_the_old_one_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let output = dir.path().join("t");
        template(&output, "old");
        fs::write(output.join("only-in-the-old"), "").unwrap();
        let mut open = fs::File::open(output.join(file::DISK)).unwrap();

        let scratch = Scratch::new(dir.path().join(".t.new")).unwrap();
        template(scratch.path(), "new");
        publish(scratch, &output).unwrap();

        assert_eq!(fs::read_to_string(output.join(file::DISK)).unwrap(), "new");
        assert!(!output.join("only-in-the-old").exists());
        let mut content = String::new();
        open.read_to_string(&mut content).unwrap();
        assert_eq!(content, "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside the template");
    }

    #[test]
    fn the_next_build_removes_what_an_interrupted_one_left() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".t.new");
        template(&path, "half");
        let scratch = Scratch::new(path.clone()).unwrap();
        assert!(!path.exists());
        template(scratch.path(), "half again");
        drop(scratch);
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_that_is_not_a_template_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "").unwrap();
        let reason = may_be_replaced(dir.path()).unwrap_err().to_string();
        assert!(reason.contains("would be lost"), "{reason}");
        let empty = dir.path().join("empty");
        fs::create_dir(&empty).unwrap();
        may_be_replaced(&empty).unwrap();
        may_be_replaced(&dir.path().join("not-there")).unwrap();
        template(&empty, "x");
        may_be_replaced(&empty).unwrap();
    }
}
