//! The fixture, and a writer that knows where a signature's parts are without the code under test. The fixture is real:
//! linked by zig, signed by rcodesign (`fixtures/make.sh`).

use std::{
    fs,
    ops::Range,
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest as _, Sha256};
use shoes_vz_macos::signature::{self, Mistake, Signing, Wanted};
use tempfile::TempDir;

pub(crate) const XML: u32 = 5;
pub(crate) const DER: u32 = 7;

/// A copy of the fixture.
pub(crate) struct Tiny {
    dir: TempDir,
}

impl Tiny {
    pub(crate) fn unpacked() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/tiny.tar.gz");
        let tar = Command::new("tar").arg("-xzf").arg(&fixture).arg("-C").arg(dir.path()).status().unwrap();
        assert!(tar.success());
        Self { dir }
    }

    pub(crate) fn app(&self) -> PathBuf {
        self.dir.path().join("Tiny.app")
    }

    /// Something in the bundle's `Contents`.
    pub(crate) fn inside(&self, path: &str) -> PathBuf {
        self.app().join("Contents").join(path)
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.inside("MacOS/tiny")
    }

    /// A program as zig's linker left it.
    pub(crate) fn linked(&self) -> PathBuf {
        self.dir.path().join("main")
    }

    /// A program with a SHA-1 and a SHA-256 CodeDirectory.
    pub(crate) fn twice(&self) -> PathBuf {
        self.dir.path().join("twice")
    }

    /// What the bundle was signed for.
    pub(crate) fn wanted(&self) -> Wanted {
        let entitlements = signature::read_entitlements(&self.dir.path().join("entitlements.plist")).unwrap();
        let identifier = Some("com.example.tiny".to_owned());
        Wanted { minos: "26.0".parse().unwrap(), signing: Signing::Hardened { identifier, entitlements } }
    }

    /// All that is wrong with the bundle; nothing: it passes.
    pub(crate) fn mistakes(&self) -> Vec<Mistake> {
        mistakes(&self.app(), &self.wanted())
    }

    /// Asserts that the bundle is refused, with a mistake about that file that contains `expected`.
    #[track_caller]
    pub(crate) fn refused(&self, file: &Path, expected: &str) {
        assert_mistake(&self.mistakes(), file, expected);
    }
}

pub(crate) fn mistakes(path: &Path, wanted: &Wanted) -> Vec<Mistake> {
    signature::check(path, wanted).err().map(|mistakes| mistakes.0).unwrap_or_default()
}

/// Asserts that one of the mistakes is about that file and contains `expected`.
#[track_caller]
pub(crate) fn assert_mistake(mistakes: &[Mistake], file: &Path, expected: &str) {
    let found = mistakes.iter().any(|m| m.file == file && m.what.contains(expected) && !m.remedy.is_empty());
    assert!(found, "{expected:?} about {} is not in {mistakes:#?}", file.display());
}

/// The requirements for the linker's signature.
pub(crate) fn by_the_linker() -> Wanted {
    Wanted { minos: "26.0".parse().unwrap(), signing: Signing::Linker }
}

pub(crate) fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = fs::read(path).unwrap();
    change(&mut bytes);
    fs::write(path, bytes).unwrap();
}

/// Replaces a text by one of the same length.
pub(crate) fn replace(bytes: &mut [u8], old: &str, new: &str) {
    assert_eq!(old.len(), new.len());
    let at = bytes.windows(old.len()).position(|w| w == old.as_bytes()).unwrap();
    bytes[at..at + new.len()].copy_from_slice(new.as_bytes());
}

pub(crate) fn le32(bytes: &[u8], at: usize) -> usize {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

pub(crate) fn be32(bytes: &[u8], at: usize) -> usize {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap()) as usize
}

/// Where a load command is.
pub(crate) fn command(bytes: &[u8], number: u32) -> usize {
    let mut at = 32;
    for _ in 0..le32(bytes, 16) {
        if le32(bytes, at) == number as usize {
            return at;
        }
        at += le32(bytes, at + 4);
    }
    panic!("no load command {number:#x}");
}

/// Where the signature is (LC_CODE_SIGNATURE's dataoff).
pub(crate) fn signature(bytes: &[u8]) -> usize {
    le32(bytes, command(bytes, 0x1d) + 8)
}

/// Where a part of the signature is.
pub(crate) fn part(bytes: &[u8], slot: u32) -> Range<usize> {
    let at = signature(bytes);
    let index = (0..be32(bytes, at + 8)).map(|i| at + 12 + 8 * i);
    let entry = index.into_iter().find(|entry| be32(bytes, *entry) == slot as usize).unwrap();
    let begin = at + be32(bytes, entry + 4);
    begin..begin + be32(bytes, begin + 4)
}

/// Writes all hashes of the SHA-256 CodeDirectory again, so that only what was edited is wrong.
pub(crate) fn seal_again(bytes: &mut [u8]) {
    let directory = part(bytes, 0).start;
    let hashes = directory + be32(bytes, directory + 16);
    let limit = be32(bytes, directory + 32);
    let page = 1 << bytes[directory + 39];
    for i in 0..limit.div_ceil(page) {
        let hash = Sha256::digest(&bytes[i * page..(i * page + page).min(limit)]);
        bytes[hashes + 32 * i..][..32].copy_from_slice(&hash);
    }
    for slot in [XML, DER] {
        let hash = Sha256::digest(&bytes[part(bytes, slot)]);
        bytes[hashes - 32 * slot as usize..][..32].copy_from_slice(&hash);
    }
}
