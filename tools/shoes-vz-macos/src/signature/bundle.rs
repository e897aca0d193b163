//! An application bundle: Info.plist, launchd's property lists, the main program, and all that CodeResources seals.

use std::{fmt, fs, os::unix::fs::PermissionsExt as _, path::Path};

use plist::{Dictionary, Value};

use super::{
    launchd,
    mistakes::{Findings, SIGN_AGAIN},
    plists,
    program::{self, Program, SealedFiles},
    resources::{self, Contents},
    wanted::{Signing, Version, Wanted},
};

const FIX_INFO: &str = "fix packaging/macos/Info.plist, then make bundle";

/// The result of a check without mistakes.
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

/// Checks one and adds mistakes to `found`.
pub(super) fn check(bundle: &Path, wanted: &Wanted, found: &mut Findings) -> Option<Report> {
    let contents = bundle.join("Contents");
    let info_file = contents.join("Info.plist");
    let info_bytes = found.read(&info_file, "name an .app directory that has one")?;
    let info = dictionary(&info_file, &info_bytes, FIX_INFO, found)?;
    judge_info(&info_file, &info, wanted, found);
    nothing_beside(bundle, found);

    let name = info.get("CFBundleExecutable").and_then(Value::as_string);
    let Some(name) = name.filter(|name| !name.is_empty() && !name.contains('/')) else {
        found.add(&info_file, "names no program (CFBundleExecutable)", FIX_INFO);
        return None;
    };
    let main_file = contents.join("MacOS").join(name);
    let main_bytes = found.read(&main_file, "put the program that Info.plist names there, then sign")?;
    runnable(&main_file, found);

    let sealed_file = contents.join("_CodeSignature/CodeResources");
    let sealed_bytes = found.read(&sealed_file, "sign the bundle, not only its program")?;
    let sealed_files = SealedFiles { info_plist: Some(&info_bytes), code_resources: Some(&sealed_bytes) };
    let main = program::check(&main_file, &main_bytes, &sealed_files, wanted, found);

    let sealed_otherwise = ["Info.plist", &format!("MacOS/{name}"), "_CodeSignature/CodeResources"];
    let files = Contents::read(&contents, &sealed_otherwise, found);
    let mut sealed = 0;
    let mut programs = Vec::from_iter(main);
    if let Some(list) = dictionary(&sealed_file, &sealed_bytes, SIGN_AGAIN, found) {
        let helper = of_a_helper(wanted);
        let nested = |file: &Path, found: &mut Findings| {
            runnable(file, found);
            let bytes = found.read(file, "make it readable")?;
            program::check(file, &bytes, &SealedFiles::default(), &helper, found)
        };
        let (count, helpers) = resources::check(&sealed_file, &list, &files, nested, found);
        sealed = count;
        programs.extend(helpers);
    }
    launchd::check(bundle, found);
    Some(Report { programs, sealed })
}

fn dictionary(file: &Path, bytes: &[u8], remedy: &str, found: &mut Findings) -> Option<Dictionary> {
    plists::dictionary(bytes).map_err(|e| found.add(file, format!("is unusable: {e}"), remedy)).ok()
}

/// Helpers are signed as the main program is, without entitlements.
fn of_a_helper(wanted: &Wanted) -> Wanted {
    let signing = match &wanted.signing {
        Signing::Linker => Signing::Linker,
        Signing::Hardened { .. } => {
            Signing::Hardened { identifier: None, entitlements: Dictionary::default() }
        }
    };
    Wanted { minos: wanted.minos, signing }
}

fn judge_info(file: &Path, info: &Dictionary, wanted: &Wanted, found: &mut Findings) {
    let text = |key: &str| info.get(key).and_then(Value::as_string).unwrap_or_default();
    let mut wrong = |what: String| found.add(file, what, FIX_INFO);
    if let Signing::Hardened { identifier: Some(identifier), .. } = &wanted.signing
        && text("CFBundleIdentifier") != identifier
    {
        wrong(format!("has CFBundleIdentifier {:?}, not {identifier:?}", text("CFBundleIdentifier")));
    }
    if text("CFBundlePackageType") != "APPL" {
        wrong("is not that of an application (CFBundlePackageType is not APPL)".into());
    }
    if text("LSMinimumSystemVersion").parse() != Ok(wanted.minos) {
        let have = text("LSMinimumSystemVersion");
        wrong(format!("has LSMinimumSystemVersion {have:?}, not {}", wanted.minos));
    }
    for key in ["CFBundleShortVersionString", "CFBundleVersion"] {
        if text(key).parse::<Version>().is_err() {
            wrong(format!("has {key} {:?}, which is not a version", text(key)));
        }
    }
}

/// What stands beside `Contents` is sealed by nothing, and codesign refuses it.
fn nothing_beside(bundle: &Path, found: &mut Findings) {
    for entry in fs::read_dir(bundle).into_iter().flatten().flatten() {
        if entry.file_name() != "Contents" {
            found.add(&entry.path(), "stands beside Contents, where nothing is sealed", "remove it");
        }
    }
}

fn runnable(file: &Path, found: &mut Findings) {
    let mode = fs::symlink_metadata(file).map(|meta| meta.permissions().mode());
    if mode.is_ok_and(|mode| mode & 0o111 == 0) {
        found.add(file, "is not executable", "chmod 755 it");
    }
}
