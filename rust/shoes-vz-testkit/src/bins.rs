//! Where the built binaries and the guest template are.

use std::path::{Path, PathBuf};

/// The binaries of one build: those beside the running one, or one folder up for a test.
#[derive(Debug, Clone)]
pub struct Bins {
    dir: PathBuf,
}

impl Bins {
    /// Finds the folder the running binary was built into.
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

    /// Path of one of them.
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
/// When there is none: a test that silently did nothing would prove nothing.
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
