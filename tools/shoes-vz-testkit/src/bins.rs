//! Paths of the built binaries and the guest templates.

use std::path::{Path, PathBuf};

/// The binaries of one build: beside the running binary, or one directory above it for a test.
#[derive(Debug, Clone)]
pub struct Bins {
    dir: PathBuf,
}

impl Bins {
    /// Finds the directory that contains the running binary.
    ///
    /// # Panics
    /// When the running binary has no path, or `shoes-vz-agent` was not built beside it.
    pub fn find() -> Self {
        let exe = std::env::current_exe().expect("the running binary has a path");
        let dir =
            exe.ancestors().skip(1).take(2).find(|dir| dir.join("shoes-vz-agent").is_file()).unwrap_or_else(
                || panic!("no shoes-vz-agent beside {}: run `make build` first", exe.display()),
            );
        Self { dir: dir.to_owned() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// The repository's root.
pub fn repository() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The guest template of the whole-system tests.
///
/// # Panics
/// When it is missing, because a test that silently does nothing proves nothing.
pub fn test_template() -> PathBuf {
    template("SHOESVZ_TEST_TEMPLATE", "template")
}

/// The template of the whole-system tests with `--hypervisor vz`.
///
/// # Panics
/// As [`test_template`].
pub fn vz_template() -> PathBuf {
    template("SHOESVZ_TEST_VZ_TEMPLATE", "vz-template")
}

fn template(variable: &str, name: &str) -> PathBuf {
    let path =
        std::env::var_os(variable).map_or_else(|| repository().join("target").join(name), PathBuf::from);
    assert!(
        path.join("Disk.img").is_file(),
        "no guest template at {}: run `make {name}`, or set {variable}",
        path.display()
    );
    path.canonicalize().expect("the template's path resolves")
}
