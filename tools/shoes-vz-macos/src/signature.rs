//! Checking a signed program or application bundle on a machine without macOS.
//!
//! ```text
//! ShoesVZAgent.app ─▶ [`bundle`]     Info.plist, the main program and what it seals
//!                      ├▶ [`launchd`]      the property lists for launchd that it brings along
//!                      ├▶ [`resources`]    CodeResources: every file sealed, every hash taken again, no file more
//!                      └▶ [`program`]      a Mach-O and its signature, for the main program and every nested one
//!                          ├▶ [`macho`]         header, load commands: arm64, minos, where the signature lies
//!                          ├▶ [`blob`]          the signature's parts
//!                          ├▶ [`directory`]     a CodeDirectory: hashes of pages and of special slots
//!                          └▶ [`entitlements`]  XML and DER, decoded and compared
//! ```
//!
//! Formats are Apple's, as published with `xnu` (`osfmk/kern/cs_blobs.h`), `Security` (`OSX/libsecurity_codesigning`) and
//! the SDK's `mach-o/loader.h`. What is not looked at: the CMS signature of an identity (its certificates are for
//! `codesign --verify` on macOS), and whether macOS grants the entitlements.
//!
//! All mistakes are told at once. Input may be anything: it is refused in words, never by a panic.

mod blob;
mod bundle;
mod directory;
mod entitlements;
mod launchd;
mod macho;
mod plists;
mod program;
mod resources;

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    str::FromStr,
};

use plist::Dictionary;

pub use program::Program;

/// What is expected of a program or bundle.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The oldest macOS it runs on (`LC_BUILD_VERSION`'s minos, Info.plist's `LSMinimumSystemVersion`).
    pub minos: Version,
    /// Who signed it, and how.
    pub signing: Signing,
}

/// Who signed, and how.
#[derive(Debug, Clone, PartialEq)]
pub enum Signing {
    /// The linker did, as it must for arm64: pages are hashed, nothing else is promised.
    Linker,
    /// `codesign` or `rcodesign` did, with the hardened runtime.
    Hardened {
        /// The signing identifier; `None`: any.
        identifier: Option<String>,
        /// The entitlements, exactly.
        entitlements: Dictionary,
    },
}

/// What was found when nothing was wrong.
#[derive(Debug)]
pub struct Report {
    /// Every program looked at, the main one first.
    pub programs: Vec<Program>,
    /// Files whose seal in CodeResources was checked; 0 for a program without a bundle.
    pub sealed: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, program) in self.programs.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            write!(f, "{program}")?;
        }
        if self.sealed > 0 {
            write!(f, "\n  every seal in CodeResources holds: {} files", self.sealed)?;
        }
        Ok(())
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistake {
    /// Where.
    pub file: PathBuf,
    /// What.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.file.display(), self.what, self.remedy)
    }
}

/// Everything that is wrong; never empty.
#[derive(Debug, thiserror::Error)]
#[error("{}", all(.0))]
pub struct Mistakes(pub Vec<Mistake>);

fn all(mistakes: &[Mistake]) -> String {
    match mistakes {
        [one] => one.to_string(),
        many => many
            .iter()
            .fold(format!("{} things are wrong:", many.len()), |text, m| format!("{text}\n  - {m}")),
    }
}

/// Checks the program or the `.app` directory at `path`.
///
/// # Errors
/// Everything that is wrong, each with its file and what to do.
pub fn check(path: &Path, wanted: &Wanted) -> Result<Report, Mistakes> {
    let mut found = Findings::default();
    let report = if path.is_dir() {
        bundle::check(path, wanted, &mut found)
    } else {
        let bytes = found.read(path, "name a program or an .app directory that is there");
        let program =
            bytes.and_then(|b| program::check(path, &b, &program::Outside::default(), wanted, &mut found));
        program.map(|p| Report { programs: vec![p], sealed: 0 })
    };
    match report {
        Some(report) if found.0.is_empty() => Ok(report),
        _ => Err(Mistakes(found.0)),
    }
}

/// The entitlements in the file at `path`, as [`Signing::Hardened`] wants them.
///
/// # Errors
/// Why it cannot be read or is no XML property list with a dictionary.
pub fn read_entitlements(path: &Path) -> Result<Dictionary, Mistakes> {
    let mut found = Findings::default();
    let remedy = "name the property list that was given to codesign or rcodesign";
    let read = found.read(path, remedy).and_then(|bytes| {
        plists::dictionary(&bytes).map_err(|e| found.add(path, format!("is unusable: {e}"), remedy)).ok()
    });
    read.ok_or(Mistakes(found.0))
}

/// A version as Mach-O has it: 26.0, 26.1.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u16,
    minor: u8,
    patch: u8,
}

impl Version {
    /// From the 32 bits of `LC_BUILD_VERSION` and of a CodeDirectory: xxxx.yy.zz.
    pub const fn of_bits(bits: u32) -> Self {
        let [high, low, minor, patch] = bits.to_be_bytes();
        Self { major: u16::from_be_bytes([high, low]), minor, patch }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.patch > 0 {
            write!(f, ".{}", self.patch)?;
        }
        Ok(())
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let told = || format!("{text:?} is no version like 26.0");
        let mut parts = text.split('.');
        let major = parts.next().and_then(|p| p.parse().ok()).ok_or_else(told)?;
        let mut small = || parts.next().map_or(Ok(0), |p| p.parse().map_err(|_| told()));
        let version = Self { major, minor: small()?, patch: small()? };
        if parts.next().is_some() { Err(told()) } else { Ok(version) }
    }
}

/// Collects what is wrong.
#[derive(Debug, Default)]
struct Findings(Vec<Mistake>);

impl Findings {
    fn add(&mut self, file: &Path, what: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Mistake { file: file.to_owned(), what: what.into(), remedy: remedy.into() });
    }

    fn read(&mut self, file: &Path, remedy: &str) -> Option<Vec<u8>> {
        fs::read(file).map_err(|e| self.add(file, format!("cannot be read ({e})"), remedy)).ok()
    }
}

/// For what no edit mends.
const SIGN_AGAIN: &str = "sign it again (make bundle) and change nothing afterwards";
const LINK_AGAIN: &str = "link it again for aarch64-apple-darwin with MACOSX_DEPLOYMENT_TARGET set";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_reads_as_it_is_written_and_as_macho_has_it() {
        for (text, bits) in [("26.0", 0x001a_0000), ("15.4.1", 0x000f_0401), ("300.2", 0x012c_0200)] {
            assert_eq!(text.parse::<Version>().unwrap(), Version::of_bits(bits));
            assert_eq!(Version::of_bits(bits).to_string(), text);
        }
        assert_eq!("26".parse::<Version>().unwrap(), "26.0".parse().unwrap());
        for wrong in ["", "x", "26.", "26.0.0.0", "26.256", "-1"] {
            assert!(wrong.parse::<Version>().is_err(), "{wrong}");
        }
    }
}
