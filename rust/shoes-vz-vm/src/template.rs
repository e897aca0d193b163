//! A template directory, checked as a whole, so that every mistake in it is reported at once.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use shoes_vz_model::template::{HardwareModel, Os, Template, file};
use shoes_vz_process::files;

/// Of a template's JSON files, each of which is a few lines; in bytes.
const MAX_JSON: u64 = 1 << 20;

/// A template that has all it needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateDir {
    /// Absolute.
    pub path: PathBuf,
    /// From `Template.json`, or the defaults.
    pub meta: Template,
    /// From `Template.json`, else the directory's name.
    pub name: String,
    /// Of a clone: the size of the template's disk, or `min_disk_bytes` when that is more.
    pub disk_bytes: u64,
}

/// Everything that is wrong with a template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the template {path:?} cannot be used: {}", .mistakes.join("; "))]
pub struct TemplateError {
    pub path: PathBuf,
    /// One sentence for each mistake.
    pub mistakes: Vec<String>,
}

impl TemplateDir {
    /// Checks the template in `path`.
    pub fn open(path: &Path) -> Result<Self, TemplateError> {
        let fail = |mistakes| TemplateError { path: path.to_owned(), mistakes };
        let dir = fs::canonicalize(path).map_err(|e| fail(vec![format!("it cannot be opened ({e})")]))?;
        if !dir.is_dir() {
            return Err(fail(vec!["it is not a directory".into()]));
        }
        let mut mistakes = Vec::new();
        if dir.to_str().is_none() {
            mistakes
                .push(format!("its path {dir:?} is not UTF-8, as the settings of VMs must be; rename it"));
        }
        let meta = read_metadata(&dir, &mut mistakes);
        // Without a readable Template.json only the disk is known to be required.
        let required = meta.as_ref().map_or(&[file::DISK][..], |m| m.os.required_files());
        for name in required {
            check_file(&dir, name, &mut mistakes);
        }
        let meta = meta.unwrap_or_default();
        let disk = fs::metadata(dir.join(file::DISK)).map_or(0, |m| m.len());
        if !disk.is_multiple_of(512) {
            mistakes.push(format!(
                "{} is {disk} bytes, which is not a whole number of 512-byte sectors",
                file::DISK
            ));
        }
        check_metadata(&dir, &meta, &mut mistakes);
        if !mistakes.is_empty() {
            return Err(fail(mistakes));
        }
        let name = match meta.name.as_str() {
            "" => dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned(),
            name => name.to_owned(),
        };
        let disk_bytes = disk.max(meta.min_disk_bytes.next_multiple_of(512));
        Ok(Self { path: dir, meta, name, disk_bytes })
    }

    /// Changes whenever a file of the template is replaced or written to: length, time, inode. Reads no file.
    pub fn fingerprint(&self) -> String {
        use std::os::unix::fs::MetadataExt as _;
        let of = |name: &&str| match fs::metadata(self.path.join(name)) {
            Ok(m) => format!("{name}:{}:{}.{:09}:{}", m.len(), m.mtime(), m.mtime_nsec(), m.ino()),
            Err(e) => format!("{name}:{}", e.kind()),
        };
        let key = (!self.meta.ssh_key_file.is_empty()).then_some(self.meta.ssh_key_file.as_str());
        let names = self.meta.os.required_files().iter().copied().chain([file::METADATA]).chain(key);
        let files: Vec<String> = names.map(|name| of(&name)).collect();
        files.join(" ")
    }

    /// The private key that `Template.json` names, absolute.
    pub fn ssh_key(&self) -> Option<PathBuf> {
        (!self.meta.ssh_key_file.is_empty()).then(|| self.path.join(&self.meta.ssh_key_file))
    }
}

fn read_metadata(dir: &Path, mistakes: &mut Vec<String>) -> Option<Template> {
    let mistake = match files::read_if_any(&dir.join(file::METADATA), MAX_JSON) {
        Ok(None) => return Some(Template::default()),
        Ok(Some(json)) => match serde_json::from_slice(&json) {
            Ok(meta) => return Some(meta),
            Err(e) => format!("{} is not valid ({e})", file::METADATA),
        },
        Err(e) => format!("{} cannot be read ({e})", file::METADATA),
    };
    mistakes.push(mistake);
    None
}

fn check_file(dir: &Path, name: &str, mistakes: &mut Vec<String>) {
    let path = dir.join(name);
    let mistake = match fs::metadata(&path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => "is missing".to_owned(),
        Err(e) => format!("cannot be examined ({e})"),
        Ok(m) if !m.is_file() => "is not a regular file".to_owned(),
        Ok(m) if m.len() == 0 => "is empty".to_owned(),
        Ok(_) => match fs::File::open(&path) {
            Ok(_) => return,
            Err(e) => format!("cannot be read ({e})"),
        },
    };
    mistakes.push(format!("{name} {mistake}"));
}

fn check_metadata(dir: &Path, meta: &Template, mistakes: &mut Vec<String>) {
    if meta.ssh_user.is_empty() {
        mistakes.push(format!("{}: ssh_user is empty", file::METADATA));
    }
    if !meta.ssh_host_key.is_empty() && meta.ssh_host_key.split_whitespace().count() < 2 {
        mistakes.push(format!(
            "{}: ssh_host_key is not a line in OpenSSH's public key format (\"ssh-ed25519 AAAA…\")",
            file::METADATA
        ));
    }
    match meta.ssh_key_file.as_str() {
        "" => {}
        name if name.contains('/') || name == ".." => mistakes.push(format!(
            "{}: ssh_key_file {name:?} must be a file in the template's directory",
            file::METADATA
        )),
        name => check_file(dir, name, mistakes),
    }
    let model = dir.join(file::HARDWARE_MODEL);
    if meta.os == Os::Macos
        && let Err(e) = files::read_bounded(&model, MAX_JSON)
            .and_then(|bytes| Ok(serde_json::from_slice::<HardwareModel>(&bytes)?))
        && !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied)
    {
        mistakes.push(format!("{} is not valid ({e})", file::HARDWARE_MODEL));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    }

    #[test]
    fn a_template_of_the_go_implementation_works_untouched() {
        let sector = "x".repeat(1024);
        let dir = template(&[
            ("Disk.img", &sector),
            ("AuxiliaryStorage", "a"),
            ("HardwareModel.json", r#"{"hardwareModel":"AAAA"}"#),
        ]);
        let t = TemplateDir::open(dir.path()).unwrap();
        assert_eq!((t.meta.os, t.disk_bytes), (Os::Macos, 1024));
        assert_eq!(t.name, dir.path().file_name().unwrap().to_str().unwrap());
        assert_eq!(t.ssh_key(), None);
    }

    #[test]
    fn all_mistakes_are_reported_at_once() {
        let dir = template(&[
            (
                "Template.json",
                r#"{"os":"linux","ssh_user":"","ssh_host_key":"AAAA","ssh_key_file":"../key"}"#,
            ),
            ("Disk.img", "short"),
            ("initrd", ""),
        ]);
        let e = TemplateDir::open(dir.path()).unwrap_err();
        let text = e.to_string();
        for word in [
            "kernel is missing",
            "initrd is empty",
            "512",
            "ssh_user",
            "ssh_host_key",
            "ssh_key_file \"../key\"",
        ] {
            assert!(text.contains(word), "{word:?} is not in {text}");
        }
        assert_eq!(e.mistakes.len(), 6, "{text}");
    }

    #[test]
    fn a_mistyped_key_is_named_beside_the_missing_disk() {
        let dir = template(&[("Template.json", r#"{"oss":"linux"}"#)]);
        let text = TemplateDir::open(dir.path()).unwrap_err().to_string();
        assert!(text.contains("oss") && text.contains("Disk.img is missing"), "{text}");
        let text = TemplateDir::open(&dir.path().join("nowhere")).unwrap_err().to_string();
        assert!(text.contains("nowhere"), "{text}");
    }

    #[test]
    fn a_description_without_an_end_is_refused_by_its_limit() {
        let dir = template(&[("Disk.img", &"x".repeat(512)), ("AuxiliaryStorage", "a")]);
        for name in ["Template.json", "HardwareModel.json"] {
            fs::File::create(dir.path().join(name)).unwrap().set_len(1 << 40).unwrap();
        }
        let text = TemplateDir::open(dir.path()).unwrap_err().to_string();
        assert!(text.contains("Template.json cannot be read (it is larger than"), "{text}");
        fs::remove_file(dir.path().join("Template.json")).unwrap();
        let text = TemplateDir::open(dir.path()).unwrap_err().to_string();
        assert!(text.contains("HardwareModel.json is not valid (it is larger than"), "{text}");
    }

    #[test]
    fn a_path_that_is_not_utf8_is_refused_rather_than_failing_each_runner() {
        use std::os::unix::ffi::OsStrExt as _;
        let parent = tempfile::tempdir().unwrap();
        let dir = parent.path().join(std::ffi::OsStr::from_bytes(b"t\xe9"));
        fs::create_dir(&dir).unwrap();
        let text = TemplateDir::open(&dir).unwrap_err().to_string();
        assert!(text.contains("is not UTF-8") && text.contains("Disk.img is missing"), "{text}");
    }

    #[test]
    fn the_disk_of_a_clone_is_never_smaller_than_asked_for() {
        let dir = template(&[
            ("Template.json", r#"{"os":"linux","name":"n","min_disk_bytes":5000}"#),
            ("Disk.img", &"x".repeat(512)),
            ("kernel", "k"),
            ("initrd", "i"),
        ]);
        let t = TemplateDir::open(dir.path()).unwrap();
        assert_eq!((t.disk_bytes, t.name.as_str()), (5120, "n"));
    }
}
