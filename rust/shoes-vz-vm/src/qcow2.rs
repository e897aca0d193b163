//! Writes an empty qcow2 overlay: some hundred bytes in a sparse file, no process started, no data read.
//!
//! Format: QEMU's docs/interop/qcow2.txt, version 3. Clusters of 64 KiB, in this order:
//! header | refcount table | one refcount block | L1 table (all zero: everything is the backing file's).

use std::{
    fs, io,
    os::unix::{ffi::OsStrExt as _, fs::FileExt as _, fs::OpenOptionsExt as _},
    path::Path,
};

const CLUSTER_BITS: u32 = 16;
const CLUSTER: u64 = 1 << CLUSTER_BITS;
/// Bytes of disk one L1 entry stands for: a cluster full of 8-byte L2 entries.
const L1_SPAN: u64 = CLUSTER / 8 * CLUSTER;
/// Refcounts are 16 bits wide (order 4), so one block of them counts this many clusters.
const REFCOUNTS: u64 = CLUSTER / 2;
const HEADER_BYTES: u32 = 104;
const BACKING_FORMAT_EXTENSION: u32 = 0xE279_2ACA;
const MAX_BACKING_NAME: usize = 1023;
/// The largest disk for which the L1 table is within QEMU's limit (32 MiB).
const MAX_BYTES: u64 = (32 << 20) / 8 * L1_SPAN;

/// Of the image below an overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Raw,
    Qcow2,
}

impl Format {
    fn as_str(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

/// Creates `path` (mode 0600; it must not exist), a disk of `bytes` bytes over the image `backing`.
pub(crate) fn create_overlay(path: &Path, backing: &Path, format: Format, bytes: u64) -> io::Result<()> {
    let name = backing.as_os_str().as_bytes();
    let refuse = |reason: String| Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
    if !backing.is_absolute() || name.len() > MAX_BACKING_NAME {
        return refuse(format!(
            "backing file {backing:?} must be absolute and at most {MAX_BACKING_NAME} bytes"
        ));
    }
    if bytes == 0 || !bytes.is_multiple_of(512) || bytes > MAX_BYTES {
        return refuse(format!(
            "a disk of {bytes} bytes is not possible: 512 to {MAX_BYTES}, in whole sectors"
        ));
    }
    let l1_entries = bytes.div_ceil(L1_SPAN);
    let clusters = 3 + (l1_entries * 8).div_ceil(CLUSTER);
    // REFCOUNTS clusters hold far more than MAX_BYTES' L1 table, so one block is always enough.
    debug_assert!(clusters <= REFCOUNTS);

    let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.set_len(clusters * CLUSTER)?;
    file.write_all_at(&header(name, format, bytes, l1_entries), 0)?;
    // Refcount table: one block, which is cluster 2. Each cluster in use is counted once.
    file.write_all_at(&(2 * CLUSTER).to_be_bytes(), CLUSTER)?;
    let counts: Vec<u8> = (0..clusters).flat_map(|_| 1u16.to_be_bytes()).collect();
    file.write_all_at(&counts, 2 * CLUSTER)
}

fn header(backing: &[u8], format: Format, bytes: u64, l1_entries: u64) -> Vec<u8> {
    let format = format.as_str().as_bytes();
    // Two extensions follow the header: the backing format, padded to 8 bytes, and the end mark.
    let backing_at = u64::from(HEADER_BYTES) + (8 + 8) + 8;
    let mut out = Vec::with_capacity(1200);
    let u32s = |out: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|v| out.extend(v.to_be_bytes()));
    let u64s = |out: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|v| out.extend(v.to_be_bytes()));
    out.extend(b"QFI\xfb");
    u32s(&mut out, &[3]);
    u64s(&mut out, &[backing_at]);
    u32s(&mut out, &[backing.len() as u32, CLUSTER_BITS]);
    u64s(&mut out, &[bytes]);
    u32s(&mut out, &[0, l1_entries as u32]); // no encryption
    u64s(&mut out, &[3 * CLUSTER, CLUSTER]); // L1 table, refcount table
    u32s(&mut out, &[1, 0]); // clusters of refcount table, snapshots
    u64s(&mut out, &[0, 0, 0, 0]); // snapshots' place; incompatible, compatible, autoclear features: none
    u32s(&mut out, &[4, HEADER_BYTES]);
    debug_assert_eq!(out.len(), HEADER_BYTES as usize);
    u32s(&mut out, &[BACKING_FORMAT_EXTENSION, format.len() as u32]);
    out.extend(format);
    out.resize(out.len().next_multiple_of(8), 0);
    u32s(&mut out, &[0, 0]);
    debug_assert_eq!(out.len() as u64, backing_at);
    out.extend(backing);
    out
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::MetadataExt as _, process::Command};

    use proptest::prelude::*;

    use super::*;

    fn qemu_img(args: &[&str]) -> Option<serde_json::Value> {
        let out = match Command::new("qemu-img").args(args).output() {
            Ok(out) => out,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
            Err(e) => panic!("{e}"),
        };
        assert!(out.status.success(), "qemu-img {args:?}: {}", String::from_utf8_lossy(&out.stderr));
        Some(serde_json::from_slice(&out.stdout).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn qemu_img_finds_every_overlay_sound(
            sectors in prop_oneof![1u64..100_000, 1u64..(1 << 33), Just((64u64 << 40) / 512)],
            name in "[a-z]{1,60}( [a-z]{1,60})?",
        ) {
            let dir = tempfile::tempdir().unwrap();
            let (backing, overlay) = (dir.path().join(name), dir.path().join("o"));
            fs::write(&backing, "x".repeat(512)).unwrap();
            create_overlay(&overlay, &backing, Format::Raw, sectors * 512).unwrap();
            let path = overlay.to_str().unwrap();
            if let Some(info) = qemu_img(&["info", "--output=json", path]) {
                prop_assert_eq!(info["virtual-size"].as_u64(), Some(sectors * 512));
                prop_assert_eq!(info["backing-filename"].as_str(), backing.to_str());
                prop_assert_eq!(info["backing-filename-format"].as_str(), Some("raw"));
                let check = qemu_img(&["check", "--output=json", path]).unwrap();
                prop_assert_eq!(check["check-errors"].as_u64(), Some(0));
                prop_assert!(check["leaks"].is_null() && check["corruptions"].is_null(), "{}", check);
            }
            prop_assert!(fs::metadata(&overlay).unwrap().blocks() * 512 <= 4 * CLUSTER);
        }
    }

    #[test]
    fn what_cannot_be_a_disk_is_refused_and_leaves_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("o");
        for bytes in [0, 511, MAX_BYTES + 512] {
            assert!(create_overlay(&path, Path::new("/b"), Format::Raw, bytes).is_err(), "{bytes}");
        }
        assert!(create_overlay(&path, Path::new("relative"), Format::Raw, 512).is_err());
        assert!(
            create_overlay(&path, Path::new(&format!("/{}", "b".repeat(1023))), Format::Raw, 512).is_err()
        );
        assert!(!path.exists());
    }

    #[test]
    fn an_overlay_never_replaces_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("o");
        fs::write(&path, "mine").unwrap();
        create_overlay(&path, Path::new("/b"), Format::Raw, 512).unwrap_err();
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }
}
