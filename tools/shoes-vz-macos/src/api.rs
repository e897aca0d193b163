//! Compares the stand-ins' symbols with the SDK's.
//!
//! ```text
//! VZCore/Sources/{Virtualization,vmnet,AppKit,Darwin} ─▶ [`lexer`] ─▶ [`parser`] ─▶ [`declaration`]s ─┐
//! facts/*.tsv ─▶ [`facts`] ───────────────────────────────────────────────────────────────────────────┤
//!                what PyObjC, objc2 and other packages read from the SDK, and facts added by hand     ▼
//! [`names`], [`types`]: the rules of Swift's importer that the stand-ins need ─────────────────▶ [`compare`]
//! VZCore/Sources/VZCore ─▶ [`usage`]: which of these it uses, and what it must not use
//! the compiler's lists ─▶ [`compiler`]: that no symbol was overlooked (with a Swift toolchain)
//! ```
//! A declaration of a stand-in that other modules can see is right when the symbol its annotation names is in the
//! SDK's tables with the same owner, kind and macOS version, when Swift's importer would give it that name and those
//! types, and when its documented declaration is the same. Everything else is a [`Finding`].

pub mod compare;
pub mod compiler;
pub mod declaration;
pub mod error;
pub mod facts;
pub mod lexer;
pub mod names;
pub mod parser;
pub mod swift_type;
pub mod types;
pub mod usage;

use std::path::Path;

use compare::Counts;
use declaration::{Declaration, Finding};
use error::CheckError;
use facts::Facts;
use usage::Usage;

/// The stand-ins: on Linux they have the names of macOS modules.
pub const STAND_INS: [&str; 4] = ["Virtualization", "vmnet", "AppKit", "Darwin"];

/// Where Swift's modules are, from the repository's root.
const SOURCES: &str = "VZCore/Sources";

/// Modules that a stand-in may re-export, because the macOS module does.
const RE_EXPORTED: [&str; 3] = ["Foundation", "Glibc", "Dispatch"];

#[derive(Debug)]
pub struct Report {
    /// Sorted by place. Empty: the check passes.
    pub findings: Vec<Finding>,
    /// Not errors, for example deprecations.
    pub warnings: Vec<Finding>,
    pub counts: Counts,
    pub usage: Usage,
    /// The declarations compared, for listing.
    pub declarations: Vec<Declaration>,
}

/// Compares the stand-ins below `root` with the facts, and checks which symbols VZCore uses.
///
/// # Errors
/// Sources or tables cannot be read. Differences are in the report.
pub fn check(root: &Path) -> Result<Report, CheckError> {
    let facts = Facts::built_in()?;
    let mut declarations = Vec::new();
    let mut conformances = Vec::new();
    let mut findings = Vec::new();
    for module in STAND_INS {
        for (file, text) in swift_files(root, module)? {
            let source = parser::parse(&file, &text);
            declarations.extend(source.declarations);
            conformances.extend(source.conformances);
            findings.extend(source.findings);
            let re_exported = source.exports.into_iter().filter(|(_, module)| {
                !RE_EXPORTED.contains(&module.as_str()) && !STAND_INS.contains(&module.as_str())
            });
            findings.extend(re_exported.map(|(place, module)| Finding {
                place,
                message: format!("re-exports the module `{module}`, which does not exist on macOS"),
            }));
        }
    }
    let outcome = compare::compare(&facts, &declarations, &conformances);
    findings.extend(outcome.findings);

    let vzcore = swift_files(root, "VZCore")?;
    let (usage, refused) = usage::of(&vzcore, &declarations);
    findings.extend(refused);
    findings.sort();
    Ok(Report { findings, warnings: outcome.warnings, counts: outcome.counts, usage, declarations })
}

/// The Swift files of a module: their path from the root, and text.
fn swift_files(root: &Path, module: &str) -> Result<Vec<(String, String)>, CheckError> {
    let top = root.join(SOURCES).join(module);
    let mut files = Vec::new();
    let mut directories = vec![top.clone()];
    while let Some(directory) = directories.pop() {
        let read = |source| CheckError::Read { path: directory.clone(), source };
        for entry in std::fs::read_dir(&directory).map_err(read)? {
            let path = entry.map_err(read)?.path();
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|extension| extension == "swift") {
                let text = std::fs::read_to_string(&path)
                    .map_err(|source| CheckError::Read { path: path.clone(), source })?;
                let shown = path.strip_prefix(root).unwrap_or(&path).display().to_string();
                files.push((shown, text));
            }
        }
    }
    if files.is_empty() {
        return Err(CheckError::Empty(top));
    }
    files.sort();
    Ok(files)
}
