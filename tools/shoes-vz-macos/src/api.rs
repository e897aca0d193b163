//! Comparing the symbols used with the SDK's.
//!
//! ```text
//! VZCore/Sources/{Virtualization,vmnet,AppKit,Darwin}  ─▶ [`lexer`] ─▶ [`parser`] ─▶ [`declaration`]s ─┐
//! facts/*.tsv  ─▶ [`facts`] ───────────────────────────────────────────────────────────────────────────┤
//!                 what PyObjC, objc2 and other packages read out of the SDK, and what was looked up    ▼
//! [`names`], [`types`]: Swift's importer, as far as the stand-ins need it ────────────────────▶ [`compare`]
//! VZCore/Sources/VZCore ─▶ [`usage`]: which of them it uses; what it must not use
//! the compiler's own lists ─▶ [`compiler`]: that nothing was overlooked (where a Swift toolchain is)
//! ```
//! A declaration of a stand-in that other modules can see is right when the symbol its annotation names is in the
//! SDK's tables with the same owner, kind and macOS version, when Swift's importer would give it that name and those
//! types, and when it is documented so. Everything else is a [`Finding`].

pub mod compare;
pub mod compiler;
pub mod declaration;
pub mod facts;
pub mod lexer;
pub mod names;
pub mod parser;
pub mod swift_type;
pub mod types;
pub mod usage;

use std::fmt;
use std::path::{Path, PathBuf};

use compare::Counts;
use declaration::{Declaration, Place};
use facts::{Facts, FactsError};
use usage::Usage;

/// The stand-ins: modules of macOS' that have their name on Linux.
pub const STAND_INS: [&str; 4] = ["Virtualization", "vmnet", "AppKit", "Darwin"];

/// Where Swift's modules are, from the repository's root.
const SOURCES: &str = "VZCore/Sources";

/// Modules a stand-in may pass on to those that import it, because macOS' own does.
const PASSED_ON: [&str; 3] = ["Foundation", "Glibc", "Dispatch"];

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Finding {
    /// Where.
    pub place: Place,
    /// What, in words.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// What a check found.
#[derive(Debug)]
pub struct Report {
    /// Everything wrong, in order of place. Empty: the check passes.
    pub findings: Vec<Finding>,
    /// What is not wrong, but should be known.
    pub warnings: Vec<Finding>,
    /// How much of the stand-ins was compared.
    pub counts: Counts,
    /// What VZCore uses of them.
    pub usage: Usage,
    /// The declarations compared, for listing.
    pub declarations: Vec<Declaration>,
}

/// The check cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    /// A file or directory cannot be read.
    #[error("reading {path}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// There is nothing to check: no Swift file below the directory.
    #[error("{0} has no Swift files")]
    Empty(PathBuf),
    /// A table cannot be read.
    #[error(transparent)]
    Facts(#[from] FactsError),
    /// A symbol graph cannot be read.
    #[error("{path} is no symbol graph")]
    Graph {
        /// Which.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// A syntax tree refers to nothing: it is none, or is written in a way not known here.
    #[error("{0} is no syntax tree as Swift 6.0 writes it")]
    Tree(PathBuf),
}

/// Compares the stand-ins below `root` with the facts, and looks at what VZCore uses.
///
/// # Errors
/// Sources or tables cannot be read. What is wrong in them is in the report.
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
            let passed_on = source.exports.into_iter().filter(|(_, module)| {
                !PASSED_ON.contains(&module.as_str()) && !STAND_INS.contains(&module.as_str())
            });
            findings.extend(passed_on.map(|(place, module)| Finding {
                place,
                message: format!("passes on the module `{module}`, which macOS has not"),
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
