//! A signed program: every page and special slot hashed again, in every CodeDirectory it has.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use plist::Dictionary;

use super::{
    blob::{self, Blob},
    directory::{ADHOC, CodeDirectory, ExecSegment, HashKind, LINKER_SIGNED, RUNTIME},
    entitlements,
    macho::{self, MachO},
    mistakes::{Findings, LINK_AGAIN, SIGN_AGAIN},
    plists,
    wanted::{Signing, Version, Wanted},
};

/// `CS_EXECSEG_MAIN_BINARY`
const MAIN_BINARY: u64 = 1;

const INFO_PLIST: u32 = 1;
const RESOURCES: u32 = 3;
const ENTITLEMENTS: u32 = 5;
const ENTITLEMENTS_DER: u32 = 7;

/// What a special slot seals (`CSSLOT_…`).
const SPECIAL: [&str; 11] = [
    "Info.plist",
    "requirements",
    "CodeResources",
    "top directory",
    "XML entitlements",
    "disk image header",
    "DER entitlements",
    "launch constraint on itself",
    "launch constraint on its parent",
    "launch constraint on its responsible process",
    "library constraint",
];

/// Files outside of the program that its signature seals, in a bundle.
#[derive(Debug, Default)]
pub(super) struct SealedFiles<'a> {
    pub(super) info_plist: Option<&'a [u8]>,
    pub(super) code_resources: Option<&'a [u8]>,
}

/// A signed program.
#[derive(Debug)]
pub struct Program {
    pub file: PathBuf,
    pub identifier: String,
    /// One for each CodeDirectory, the strongest hash first, with the hash's name.
    pub cdhashes: Vec<(&'static str, Vec<u8>)>,
    /// The oldest macOS it runs on.
    pub minos: Version,
    /// The SDK it was linked with.
    pub sdk: Version,
    pub pages: u32,
    /// The names of the special slots that were hashed.
    pub specials: Vec<&'static str>,
    /// Signed without an identity.
    pub ad_hoc: bool,
    /// Version of the hardened runtime.
    pub runtime: Option<Version>,
    pub entitlements: Dictionary,
    pub libraries: Vec<String>,
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { file, identifier, minos, sdk, pages, .. } = self;
        write!(f, "{}: {identifier}, thin arm64, macOS {minos} or newer (SDK {sdk})", file.display())?;
        for (hash, cdhash) in &self.cdhashes {
            write!(f, "\n  {pages} pages hashed again by {hash}, cdhash {}", hex(cdhash))?;
        }
        if !self.specials.is_empty() {
            write!(f, "\n  hashed again: {}", self.specials.join(", "))?;
        }
        write!(f, "\n  {}", if self.ad_hoc { "ad hoc" } else { "by an identity (its CMS was not checked)" })?;
        match self.runtime {
            Some(version) => write!(f, ", hardened runtime {version}")?,
            None => write!(f, ", no hardened runtime")?,
        }
        for (key, value) in &self.entitlements {
            write!(f, "\n  entitlement {key} = {} (XML and DER)", entitlements::shown(value))?;
        }
        write!(f, "\n  links {}", self.libraries.join(", "))
    }
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Checks one and adds mistakes to `found`. Returns the program if enough of it could be read.
pub(super) fn check(
    file: &Path,
    bytes: &[u8],
    sealed: &SealedFiles<'_>,
    wanted: &Wanted,
    found: &mut Findings,
) -> Option<Program> {
    let macho = macho::read(file, bytes, wanted.minos, found)?;
    let read = blob::read(macho.signature);
    let (blobs, length) = read.map_err(|what| found.add(file, what, SIGN_AGAIN)).ok()?;
    if macho.signature[length..].iter().any(|byte| *byte != 0) {
        found.add(file, "has bytes behind its signature that nothing seals", SIGN_AGAIN);
    }
    let mut directories = Vec::new();
    for blob in &blobs {
        if blob.slot == blob::CODE_DIRECTORY || blob::ALTERNATES.contains(&blob.slot) {
            match CodeDirectory::read(blob.bytes) {
                Ok(directory) => directories.push(directory),
                Err(what) => found.add(file, what, SIGN_AGAIN),
            }
        }
    }
    let subject = Subject { file, bytes, macho: &macho, blobs: &blobs, sealed };
    subject.agree(&directories, found);
    let mut specials = Vec::new();
    for directory in &directories {
        subject.pages(directory, found);
        specials = subject.specials(directory, found);
    }
    directories.sort_by_key(|d| std::cmp::Reverse(d.hash));
    let strongest = directories.first()?;
    let entitlements = subject.entitlements(found);
    subject.signing(strongest, &wanted.signing, &entitlements, found);

    Some(Program {
        file: file.to_owned(),
        identifier: strongest.identifier.to_owned(),
        cdhashes: directories.iter().map(|d| (d.hash.name(), d.cdhash())).collect(),
        minos: macho.minos,
        sdk: macho.sdk,
        pages: strongest.pages,
        specials,
        ad_hoc: strongest.flags & ADHOC != 0,
        runtime: strongest.runtime.filter(|_| strongest.flags & RUNTIME != 0),
        entitlements,
        libraries: macho.libraries,
    })
}

struct Subject<'a> {
    file: &'a Path,
    bytes: &'a [u8],
    macho: &'a MachO<'a>,
    blobs: &'a [Blob<'a>],
    sealed: &'a SealedFiles<'a>,
}

impl<'a> Subject<'a> {
    fn blob(&self, slot: u32) -> Option<&'a Blob<'a>> {
        self.blobs.iter().find(|blob| blob.slot == slot)
    }

    /// Checks that the CodeDirectories agree, and that one of them has a strong hash.
    fn agree(&self, directories: &[CodeDirectory<'_>], found: &mut Findings) {
        let Some(first) = directories.first() else {
            return found.add(self.file, "has no CodeDirectory in its signature", SIGN_AGAIN);
        };
        if !directories.iter().any(|d| matches!(d.hash, HashKind::Sha256 | HashKind::Sha384)) {
            found.add(self.file, "is hashed with SHA-1 only", "sign it again with SHA-256");
        }
        for (i, d) in directories.iter().enumerate() {
            if directories[..i].iter().any(|other| other.hash == d.hash) {
                found.add(self.file, format!("has two {} CodeDirectories", d.hash.name()), SIGN_AGAIN);
            }
            let fields = (d.identifier, d.flags, d.limit, d.executable, d.runtime);
            if fields != (first.identifier, first.flags, first.limit, first.executable, first.runtime) {
                found.add(self.file, "has CodeDirectories that differ", SIGN_AGAIN);
            }
        }
        if first.limit != self.macho.signature_at {
            found.add(
                self.file,
                format!(
                    "is signed up to {:#x}, but its signature begins at {:#x}",
                    first.limit, self.macho.signature_at
                ),
                SIGN_AGAIN,
            );
        }
        let text = ExecSegment {
            base: self.macho.text.start,
            size: self.macho.text.end - self.macho.text.start,
            flags: MAIN_BINARY,
        };
        if first.executable != Some(text) {
            found.add(self.file, "has another executable segment in its signature than __TEXT", SIGN_AGAIN);
        }
    }

    fn pages(&self, directory: &CodeDirectory<'_>, found: &mut Findings) {
        let mut changed = (0..directory.pages).filter_map(|page| {
            let begin = u64::from(page) * directory.page_size;
            let end = (begin + directory.page_size).min(directory.limit);
            let bytes = self.bytes.get(begin as usize..end as usize)?;
            (Some(&directory.hash.hash(bytes)[..]) != directory.page(page)).then_some((page, begin..end))
        });
        if let Some((page, range)) = changed.next() {
            let more = match changed.count() {
                0 => String::new(),
                count => format!(" and {count} more"),
            };
            let (name, all) = (directory.hash.name(), directory.pages);
            found.add(
                self.file,
                format!(
                    "was changed after it was signed: page {page} of {all} (bytes {:#x}..{:#x}){more} does not have \
                     the {name} in the signature",
                    range.start, range.end
                ),
                SIGN_AGAIN,
            );
        }
        if directory.limit > self.bytes.len() as u64 {
            found.add(self.file, "is shorter than what was signed", SIGN_AGAIN);
        }
    }

    /// Checks the special slots; returns the names of the filled ones.
    fn specials(&self, directory: &CodeDirectory<'_>, found: &mut Findings) -> Vec<&'static str> {
        let mut good = Vec::new();
        for (slot, name) in (1u32..).zip(SPECIAL) {
            let data = match slot {
                INFO_PLIST => self.sealed.info_plist.or(self.macho.info_plist),
                RESOURCES => self.sealed.code_resources,
                _ => self.blob(slot).map(|blob| blob.bytes),
            };
            match (data, directory.special(slot)) {
                (None, None) => {}
                (Some(data), Some(hash)) if directory.hash.hash(data) == hash => good.push(name),
                (Some(_), Some(_)) => found.add(
                    self.file,
                    format!("has another {name} than the one that was signed ({})", directory.hash.name()),
                    format!("put the {name} back, or {SIGN_AGAIN}"),
                ),
                (Some(_), None) => {
                    found.add(
                        self.file,
                        format!("has {name}, which its signature does not seal"),
                        SIGN_AGAIN,
                    );
                }
                (None, Some(_)) => {
                    found.add(self.file, format!("was signed with {name}, which does not exist"), SIGN_AGAIN);
                }
            }
        }
        for slot in SPECIAL.len() as u32 + 1..=directory.specials.min(64) {
            if directory.special(slot).is_some() {
                found.add(self.file, format!("seals something in special slot -{slot}"), SIGN_AGAIN);
            }
        }
        if directory.specials > 64 {
            found.add(self.file, format!("has {} special slots", directory.specials), SIGN_AGAIN);
        }
        good
    }

    /// The entitlements; XML and DER must agree.
    fn entitlements(&self, found: &mut Findings) -> Dictionary {
        let mut decode = |slot, name, read: fn(&[u8]) -> Result<Dictionary, String>| {
            let payload = self.blob(slot)?.payload();
            read(payload).map_err(|e| found.add(self.file, format!("its {name} {e}"), SIGN_AGAIN)).ok()
        };
        let xml = decode(ENTITLEMENTS, "XML entitlements are unusable:", plists::dictionary);
        let der = decode(ENTITLEMENTS_DER, "DER entitlements", entitlements::from_der);
        if self.blob(ENTITLEMENTS).is_some() != self.blob(ENTITLEMENTS_DER).is_some() {
            found.add(
                self.file,
                "has entitlements in one form only, not as XML and DER",
                "sign it again with a newer codesign or rcodesign",
            );
        }
        if let (Some(xml), Some(der)) = (&xml, &der) {
            for difference in entitlements::differences(der, xml) {
                found.add(
                    self.file,
                    format!("its DER entitlements differ from the XML ones: {difference}"),
                    SIGN_AGAIN,
                );
            }
        }
        xml.unwrap_or_default()
    }

    fn signing(
        &self,
        directory: &CodeDirectory<'_>,
        wanted: &Signing,
        entitlements: &Dictionary,
        found: &mut Findings,
    ) {
        let Signing::Hardened { identifier, entitlements: asked } = wanted else { return };
        let mut wrong = |what: String, remedy: &str| found.add(self.file, what, remedy);
        if directory.flags & RUNTIME == 0 || directory.runtime.is_none() {
            wrong("has no hardened runtime".into(), "sign it with the runtime flag (codesign -o runtime)");
        }
        if directory.flags & LINKER_SIGNED != 0 {
            wrong("is signed by its linker only".into(), SIGN_AGAIN);
        }
        let cms = self.blob(blob::CMS).is_some_and(|cms| !cms.payload().is_empty());
        match (directory.flags & ADHOC != 0, cms) {
            (true, true) => wrong("is signed ad hoc and by an identity at once".into(), SIGN_AGAIN),
            (false, false) => wrong("is neither ad hoc nor signed by an identity".into(), SIGN_AGAIN),
            _ => {}
        }
        if let Some(identifier) = identifier.as_ref().filter(|id| *id != directory.identifier) {
            wrong(
                format!("is signed as {:?}, not as {identifier:?}", directory.identifier),
                "sign it again with that identifier",
            );
        }
        for difference in entitlements::differences(entitlements, asked) {
            wrong(
                format!("has other entitlements than required: {difference}"),
                "sign it again with the required file, or require what it has",
            );
        }
        if self.macho.libraries.is_empty() {
            wrong("links no library, not even libSystem".into(), LINK_AGAIN);
        }
    }
}
