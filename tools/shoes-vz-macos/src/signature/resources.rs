//! `_CodeSignature/CodeResources`: what is sealed in a bundle besides its main program and Info.plist. `files2` is what
//! macOS reads; `files` is the older list beside it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use plist::{Dictionary, Value};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use walkdir::WalkDir;

use super::{
    mistakes::{Findings, SIGN_AGAIN},
    plists,
    program::{Program, hex},
};

/// What the rules may leave unsealed: no file of ours is one of these but Info.plist, which the program seals.
const OMITTED: [&str; 4] =
    [r"^Info\.plist$", r"^PkgInfo$", r"^(.*/)?\.DS_Store$", r"^Resources/.*\.lproj/locversion.plist$"];

/// What is in a bundle's `Contents` and must be sealed here.
#[derive(Debug)]
pub(super) struct Contents {
    /// By its path below `Contents`, with slashes.
    files: BTreeMap<String, PathBuf>,
}

impl Contents {
    /// Lists `contents`, except the files in `sealed_otherwise`.
    pub(super) fn read(contents: &Path, sealed_otherwise: &[&str], found: &mut Findings) -> Self {
        let mut files = BTreeMap::new();
        for entry in WalkDir::new(contents).sort_by_file_name() {
            let entry = match entry {
                Ok(entry) if entry.file_type().is_dir() => continue,
                Ok(entry) => entry.into_path(),
                Err(e) => {
                    found.add(contents, format!("cannot be listed ({e})"), "make it readable");
                    continue;
                }
            };
            match entry.strip_prefix(contents).ok().and_then(Path::to_str) {
                Some(name) if sealed_otherwise.contains(&name) => {}
                Some(name) => drop(files.insert(name.to_owned(), entry)),
                None => found.add(&entry, "has a name that is not UTF-8", "rename it"),
            }
        }
        Self { files }
    }
}

/// Checks every seal, calling `nested` for each nested program; returns the number of seals and the programs.
pub(super) fn check(
    file: &Path,
    sealed: &Dictionary,
    contents: &Contents,
    mut nested: impl FnMut(&Path, &mut Findings) -> Option<Program>,
    found: &mut Findings,
) -> (usize, Vec<Program>) {
    let list = |name: &str| sealed.get(name).and_then(Value::as_dictionary);
    let (Some(files2), Some(rules2)) = (list("files2"), list("rules2")) else {
        found.add(file, "has no files2 and rules2, which macOS reads", SIGN_AGAIN);
        return (0, Vec::new());
    };
    rules(file, rules2, found);
    let mut programs = Vec::new();
    let mut seen = BTreeSet::new();
    for (name, path) in &contents.files {
        seen.insert(name.as_str());
        match files2.get(name) {
            None => found.add(path, "is not sealed: it was added after signing", SIGN_AGAIN),
            Some(Value::Dictionary(seal)) if seal.contains_key("cdhash") => {
                if let Some(program) = nested(path, found) {
                    nested_seal(path, seal, &program, found);
                    programs.push(program);
                }
            }
            Some(Value::Dictionary(seal)) => file_seal(path, seal, found),
            Some(other) => {
                found.add(path, format!("is sealed by {}, not by SHA-256", plists::kind(other)), SIGN_AGAIN);
            }
        }
    }
    let older = list("files");
    for (name, seal) in older.into_iter().flatten() {
        let hash = seal.as_data().or_else(|| seal.as_dictionary()?.get("hash")?.as_data());
        let path = contents.files.get(name);
        let Some((path, hash)) = path.zip(hash) else {
            if path.is_some() {
                found.add(file, format!("seals {name} by no hash in its older list"), SIGN_AGAIN);
            }
            continue;
        };
        hashed(path, hash, "SHA-1", |bytes| Sha1::digest(bytes).to_vec(), found);
    }
    let names = files2.keys().chain(older.into_iter().flat_map(|list| list.keys()));
    for name in names.map(String::as_str).filter(|name| !seen.contains(name)).collect::<BTreeSet<_>>() {
        found.add(file, format!("seals {name}, which does not exist"), SIGN_AGAIN);
    }
    (files2.len(), programs)
}

/// Checks that the rules leave nothing unsealed.
fn rules(file: &Path, rules2: &Dictionary, found: &mut Findings) {
    for (pattern, rule) in rules2 {
        let omits = rule.as_dictionary().and_then(|rule| rule.get("omit")).and_then(Value::as_boolean);
        if omits == Some(true) && !OMITTED.contains(&pattern.as_str()) {
            found.add(
                file,
                format!("leaves files like {pattern} unsealed"),
                "sign it again without that rule",
            );
        }
    }
}

fn file_seal(path: &Path, seal: &Dictionary, found: &mut Findings) {
    let target = fs::read_link(path).ok();
    let symlink = seal.get("symlink").and_then(Value::as_string);
    match (target, symlink) {
        (Some(target), Some(sealed)) if target == Path::new(sealed) => {
            if target.is_absolute() || target.components().any(|c| c.as_os_str() == "..") {
                found.add(
                    path,
                    "is a symbolic link that leads out of its directory",
                    "link within its own directory",
                );
            }
        }
        (Some(_), _) => found.add(path, "is a symbolic link to another place than was sealed", SIGN_AGAIN),
        (None, Some(_)) => found.add(path, "is not a symbolic link any more", SIGN_AGAIN),
        (None, None) => {
            match seal.get("hash2").and_then(Value::as_data) {
                Some(hash) => hashed(path, hash, "SHA-256", |bytes| Sha256::digest(bytes).to_vec(), found),
                None => found.add(path, "is sealed without a SHA-256", SIGN_AGAIN),
            }
            if let Some(hash) = seal.get("hash").and_then(Value::as_data) {
                hashed(path, hash, "SHA-1", |bytes| Sha1::digest(bytes).to_vec(), found);
            }
        }
    }
}

fn hashed(path: &Path, wanted: &[u8], name: &str, hash: impl Fn(&[u8]) -> Vec<u8>, found: &mut Findings) {
    if let Some(bytes) = found.read(path, "make it readable")
        && hash(&bytes) != wanted
    {
        let what = format!("was changed after it was sealed: its {name} is another");
        found.add(path, what, SIGN_AGAIN);
    }
}

/// Checks that the bundle seals this program.
fn nested_seal(path: &Path, seal: &Dictionary, program: &Program, found: &mut Findings) {
    let Some((_, cdhash)) = program.cdhashes.first() else { return };
    if seal.get("cdhash").and_then(Value::as_data) != Some(&cdhash[..]) {
        found.add(path, "is another program than the one the bundle seals (its cdhash differs)", SIGN_AGAIN);
    }
    let requirement = seal.get("requirement").and_then(Value::as_string).unwrap_or_default();
    if requirement.is_empty() {
        found.add(path, "is sealed without a requirement", SIGN_AGAIN);
    } else if program.ad_hoc {
        let meant = program.cdhashes.iter().any(|(_, h)| requirement.contains(&format!("H\"{}\"", hex(h))));
        if !meant {
            found.add(path, format!("does not meet the bundle's requirement {requirement}"), SIGN_AGAIN);
        }
    }
}
