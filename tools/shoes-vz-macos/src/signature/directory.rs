//! A CodeDirectory: the hashes of a program's pages and of its related data, and the flags it runs with. The hash of
//! the directory identifies the program on macOS (cdhash).

use sha1::Sha1;
use sha2::{Digest as _, Sha256, Sha384};

use super::{blob::be32, wanted::Version};

/// `CS_ADHOC`: signed without an identity; there is no CMS signature.
pub(super) const ADHOC: u32 = 0x2;
/// `CS_RUNTIME`: the hardened runtime.
pub(super) const RUNTIME: u32 = 0x1_0000;
/// `CS_LINKER_SIGNED`: signed by a linker; `codesign` and `rcodesign` replace it.
pub(super) const LINKER_SIGNED: u32 = 0x2_0000;

/// From here on the directory says which bytes are executable (`CS_SUPPORTSEXECSEG`).
const WITH_EXEC_SEGMENT: u32 = 0x2_0400;
/// From here on it says which version of the hardened runtime is meant (`CS_SUPPORTSRUNTIME`).
const WITH_RUNTIME: u32 = 0x2_0500;

/// A CodeDirectory, whose offsets have been checked.
#[derive(Debug)]
pub(super) struct CodeDirectory<'a> {
    bytes: &'a [u8],
    /// `CS_…`
    pub(super) flags: u32,
    pub(super) hash: HashKind,
    pub(super) identifier: &'a str,
    /// How much of the file it covers, from the begin.
    pub(super) limit: u64,
    /// How many bytes a page hash covers; the last one covers what is left.
    pub(super) page_size: u64,
    pub(super) pages: u32,
    pub(super) specials: u32,
    /// Where `__TEXT` begins and ends in the file, and what the code is.
    pub(super) executable: Option<ExecSegment>,
    /// Version of the hardened runtime.
    pub(super) runtime: Option<Version>,
    hashes: usize,
}

/// The segment that is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ExecSegment {
    pub(super) base: u64,
    pub(super) size: u64,
    /// `CS_EXECSEG_…`; 1: a main program.
    pub(super) flags: u64,
}

impl<'a> CodeDirectory<'a> {
    /// # Errors
    /// The reason, as the rest of a sentence that starts with the file's name.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, String> {
        let u32_at = |at| be32(bytes, at).ok_or_else(|| "its CodeDirectory is cut off".to_owned());
        let u64_at = |at| Ok::<u64, String>(u64::from(u32_at(at)?) << 32 | u64::from(u32_at(at + 4)?));
        let version = u32_at(8)?;
        if version < WITH_EXEC_SEGMENT {
            return Err(format!("its CodeDirectory is of version {version:#x}, too old for macOS 26"));
        }
        let [hash_size, hash_type, _platform, page_shift] = u32_at(36)?.to_be_bytes();
        let hash = HashKind::of(hash_type).filter(|kind| kind.size() == usize::from(hash_size)).ok_or_else(
            || format!("its CodeDirectory has hashes of type {hash_type} with {hash_size} bytes"),
        )?;
        if !(12..=16).contains(&page_shift) {
            return Err(format!("its CodeDirectory has pages of 2^{page_shift} bytes"));
        }
        if u32_at(44)? != 0 {
            return Err("its CodeDirectory scatters its pages".into());
        }
        let limit = match (u64_at(56)?, u32_at(32)?) {
            (0, limit) => u64::from(limit),
            (limit, _) => limit,
        };
        let (specials, pages) = (u32_at(24)?, u32_at(28)?);
        let page_size = 1u64 << page_shift;
        if u64::from(pages) != limit.div_ceil(page_size) {
            return Err(format!("its CodeDirectory has {pages} page hashes for {limit} bytes"));
        }
        let hashes = u32_at(16)? as usize;
        let before = (specials as usize).checked_mul(hash.size()).and_then(|size| hashes.checked_sub(size));
        let after = (pages as usize).checked_mul(hash.size()).and_then(|size| hashes.checked_add(size));
        let header = if version < WITH_RUNTIME { 88 } else { 96 };
        if before.is_none_or(|begin| begin < header) || after.is_none_or(|end| end > bytes.len()) {
            return Err("its CodeDirectory's hashes lie outside of it".into());
        }
        let runtime = if version < WITH_RUNTIME { 0 } else { u32_at(88)? };
        Ok(Self {
            bytes,
            flags: u32_at(12)?,
            hash,
            identifier: text(bytes, u32_at(20)? as usize)
                .ok_or("its CodeDirectory's identifier is not a NUL-terminated UTF-8 text")?,
            limit,
            page_size,
            pages,
            specials,
            executable: Some(ExecSegment { base: u64_at(64)?, size: u64_at(72)?, flags: u64_at(80)? })
                .filter(|exec| exec.size > 0),
            runtime: Some(runtime).filter(|bits| *bits > 0).map(Version::of_bits),
            hashes,
        })
    }

    /// The expected hash of a page.
    pub(super) fn page(&self, page: u32) -> Option<&'a [u8]> {
        let begin = self.hashes + page as usize * self.hash.size();
        self.bytes.get(begin..begin + self.hash.size()).filter(|_| page < self.pages)
    }

    /// The expected hash of special slot -`slot`; `None`: the slot is empty.
    pub(super) fn special(&self, slot: u32) -> Option<&'a [u8]> {
        if slot == 0 || slot > self.specials {
            return None;
        }
        let begin = self.hashes - slot as usize * self.hash.size();
        let hash = self.bytes.get(begin..begin + self.hash.size())?;
        hash.iter().any(|byte| *byte != 0).then_some(hash)
    }

    /// The name of this code on macOS: the directory's hash, cut to 20 bytes.
    pub(super) fn cdhash(&self) -> Vec<u8> {
        let mut hash = self.hash.hash(self.bytes);
        hash.truncate(20);
        hash
    }
}

fn text(bytes: &[u8], at: usize) -> Option<&str> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    std::str::from_utf8(&rest[..end]).ok().filter(|text| !text.is_empty())
}

/// How hashes are made (`CS_HASHTYPE_…`), the weakest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum HashKind {
    Sha1,
    /// SHA-256 cut to 20 bytes
    Sha256Truncated,
    Sha256,
    Sha384,
}

impl HashKind {
    fn of(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Sha1),
            2 => Some(Self::Sha256),
            3 => Some(Self::Sha256Truncated),
            4 => Some(Self::Sha384),
            _ => None,
        }
    }

    fn size(self) -> usize {
        match self {
            Self::Sha1 | Self::Sha256Truncated => 20,
            Self::Sha256 => 32,
            Self::Sha384 => 48,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "SHA-1",
            Self::Sha256Truncated => "SHA-256/160",
            Self::Sha256 => "SHA-256",
            Self::Sha384 => "SHA-384",
        }
    }

    pub(super) fn hash(self, bytes: &[u8]) -> Vec<u8> {
        let mut hash = match self {
            Self::Sha1 => Sha1::digest(bytes).to_vec(),
            Self::Sha256 | Self::Sha256Truncated => Sha256::digest(bytes).to_vec(),
            Self::Sha384 => Sha384::digest(bytes).to_vec(),
        };
        hash.truncate(self.size());
        hash
    }
}
