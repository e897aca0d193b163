//! Whether a program runs without shared libraries, which an initial RAM disk does not have.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
    path::Path,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Linkage {
    Static,
    /// It names a program interpreter (`PT_INTERP`), the dynamic linker.
    Dynamic,
    /// It is not a 64-bit little-endian ELF file.
    NotElf,
}

const PT_INTERP: u32 = 3;

/// Reads the program headers (elf(5)).
pub(super) fn linkage(path: &Path) -> io::Result<Linkage> {
    let mut file = File::open(path)?;
    let mut header = Vec::new();
    (&mut file).take(64).read_to_end(&mut header)?;
    if header.len() < 64 || !header.starts_with(b"\x7fELF\x02\x01") {
        return Ok(Linkage::NotElf);
    }
    let half = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
    let mut offset = [0; 8];
    offset.copy_from_slice(&header[32..40]);
    let (size, count) = (usize::from(half(54)), usize::from(half(56)));
    file.seek(SeekFrom::Start(u64::from_le_bytes(offset)))?;
    let mut table = Vec::new();
    // Both are 16-bit numbers.
    file.take((size * count) as u64).read_to_end(&mut table)?;
    let interpreted = table
        .chunks_exact(size.max(4))
        .any(|entry| entry.first_chunk().is_some_and(|kind| u32::from_le_bytes(*kind) == PT_INTERP));
    Ok(if interpreted { Linkage::Dynamic } else { Linkage::Static })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_dynamically_linked_program_is_distinguished_from_other_files() {
        assert_eq!(linkage(&std::env::current_exe().unwrap()).unwrap(), Linkage::Dynamic);
        assert_eq!(linkage(Path::new("/proc/version")).unwrap(), Linkage::NotElf);
        assert!(linkage(Path::new("/nowhere")).is_err());
    }

    #[test]
    fn a_program_without_an_interpreter_is_static() {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = vec![0; 64 + 56];
        bytes[..6].copy_from_slice(b"\x7fELF\x02\x01");
        bytes[32] = 64;
        bytes[54] = 56;
        bytes[56] = 1;
        bytes[64] = 1;
        let path = dir.path().join("static");
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(linkage(&path).unwrap(), Linkage::Static);
        bytes[64] = 3;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(linkage(&path).unwrap(), Linkage::Dynamic);
    }
}
