//! Putting a finished template where it belongs, in one step.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, ensure};
use shoes_vz_model::template::file;
use shoes_vz_terminal::output::note;

/// A directory being filled; removed unless it is published.
#[derive(Debug)]
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// Reserves the place; what an interrupted build left there goes. The directory itself is not made.
    pub(super) fn new(path: PathBuf) -> anyhow::Result<Self> {
        remove(&path).with_context(|| format!("removing {}, left by an earlier build", path.display()))?;
        Ok(Self(path))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(e) = remove(&self.0) {
            note(&format!("{} could not be removed ({e}); the next build does", self.0.display()));
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
        Err(e) => return Err(e).with_context(|| format!("{} cannot be looked into", output.display())),
    };
    let template = [file::METADATA, file::DISK].iter().any(|name| output.join(name).is_file());
    ensure!(
        template || entries.count() == 0,
        "{} holds something that is no template and would be lost; name another directory",
        output.display()
    );
    Ok(())
}

/// Exchanges the finished template with what is at `output`, which then is removed: whoever has its files open keeps
/// them, and nobody ever sees half of each.
pub(super) fn publish(scratch: Scratch, output: &Path) -> anyhow::Result<()> {
    let words = || format!("putting the finished template at {}", output.display());
    if output.exists() {
        exchange(scratch.path(), output).with_context(words)
    } else {
        fs::rename(scratch.path(), output).with_context(words)
    }
    // What was there before is in the scratch directory now, and goes with it.
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
    Ok(renameat2(AT_FDCWD, a, AT_FDCWD, b, RenameFlags::RENAME_EXCHANGE)?)
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    let aside = b.with_extension("old");
    remove(&aside)?;
    fs::rename(b, &aside)?;
    fs::rename(a, b)?;
    fs::rename(&aside, a)
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
        let mut still = String::new();
        open.read_to_string(&mut still).unwrap();
        assert_eq!(still, "old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside the template");
    }

    #[test]
    fn an_interrupted_build_leaves_nothing_for_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join(".t.new");
        template(&place, "half");
        let scratch = Scratch::new(place.clone()).unwrap();
        assert!(!place.exists());
        template(scratch.path(), "half again");
        drop(scratch);
        assert!(!place.exists());
    }

    #[test]
    fn a_directory_that_is_no_template_is_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis.tex"), "").unwrap();
        let told = may_be_replaced(dir.path()).unwrap_err().to_string();
        assert!(told.contains("would be lost"), "{told}");
        let empty = dir.path().join("empty");
        fs::create_dir(&empty).unwrap();
        may_be_replaced(&empty).unwrap();
        may_be_replaced(&dir.path().join("not-there")).unwrap();
        template(&empty, "x");
        may_be_replaced(&empty).unwrap();
    }
}
