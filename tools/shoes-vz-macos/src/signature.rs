//! Checking a signed program or application bundle on a machine without macOS.
//!
//! ```text
//! ShoesVZAgent.app ─▶ [`bundle`]     Info.plist, the main program and what it seals
//!                      ├▶ [`launchd`]      the property lists for launchd in the bundle
//!                      ├▶ [`resources`]    CodeResources: every file is sealed, and every hash correct
//!                      └▶ [`program`]      a Mach-O and its signature, for the main program and every nested one
//!                          ├▶ [`macho`]         header, load commands: arm64, minos, where the signature lies
//!                          ├▶ [`blob`]          the signature's parts
//!                          ├▶ [`directory`]     a CodeDirectory: hashes of pages and of special slots
//!                          └▶ [`entitlements`]  XML and DER, decoded and compared
//! ```
//!
//! Formats are Apple's, as published with `xnu` (`osfmk/kern/cs_blobs.h`), `Security` (`OSX/libsecurity_codesigning`) and
//! the SDK's `mach-o/loader.h`. Not checked: the CMS signature of an identity (its certificates are for
//! `codesign --verify` on macOS), and whether macOS grants the entitlements.
//!
//! All mistakes are reported at once. Any input is accepted or refused with a reason; none panics.

mod blob;
mod bundle;
mod directory;
mod entitlements;
mod launchd;
mod macho;
mod mistakes;
mod plists;
mod program;
mod resources;
mod wanted;

use std::path::Path;

use mistakes::Findings;
use plist::Dictionary;

pub use bundle::Report;
pub use mistakes::{Mistake, Mistakes};
pub use program::Program;
pub use wanted::{Signing, Version, Wanted};

/// Checks the program or the `.app` directory at `path`.
///
/// # Errors
/// Everything that is wrong, each with its file and what to do.
pub fn check(path: &Path, wanted: &Wanted) -> Result<Report, Mistakes> {
    let mut found = Findings::default();
    let report = if path.is_dir() {
        bundle::check(path, wanted, &mut found)
    } else {
        let bytes = found.read(path, "name an existing program or .app directory");
        let program = bytes
            .and_then(|b| program::check(path, &b, &program::SealedFiles::default(), wanted, &mut found));
        program.map(|p| Report { programs: vec![p], sealed: 0 })
    };
    match report {
        Some(report) if found.0.is_empty() => Ok(report),
        _ => Err(Mistakes(found.0)),
    }
}

/// The entitlements in the file at `path`, for [`Signing::Hardened`].
///
/// # Errors
/// It cannot be read, or is not an XML property list with a dictionary.
pub fn read_entitlements(path: &Path) -> Result<Dictionary, Mistakes> {
    let mut found = Findings::default();
    let remedy = "name the property list that was given to codesign or rcodesign";
    let read = found.read(path, remedy).and_then(|bytes| {
        plists::dictionary(&bytes).map_err(|e| found.add(path, format!("is unusable: {e}"), remedy)).ok()
    });
    read.ok_or(Mistakes(found.0))
}
