//! The signature's container: an index of typed blobs, each with its own magic and length (big-endian on every CPU).

/// `CSMAGIC_EMBEDDED_SIGNATURE`
const SUPER_BLOB: u32 = 0xfade_0cc0;
/// `CSSLOT_CODEDIRECTORY`
pub(super) const CODE_DIRECTORY: u32 = 0;
/// `CSSLOT_ALTERNATE_CODEDIRECTORIES`: the same code, hashed in other ways.
pub(super) const ALTERNATES: std::ops::Range<u32> = 0x1000..0x1005;
/// `CSSLOT_SIGNATURESLOT`: CMS.
pub(super) const CMS: u32 = 0x1_0000;

/// One part of a signature.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blob<'a> {
    /// What it is (`CSSLOT_…`).
    pub(super) slot: u32,
    /// All of it, its header included: this is what is hashed.
    pub(super) bytes: &'a [u8],
}

impl<'a> Blob<'a> {
    /// Behind magic and length.
    pub(super) fn payload(&self) -> &'a [u8] {
        self.bytes.get(8..).unwrap_or_default()
    }
}

/// Every blob of the signature that starts at `data`'s begin, and how long the signature is.
///
/// # Errors
/// The reason, as the rest of a sentence that starts with the file's name.
pub(super) fn read(data: &[u8]) -> Result<(Vec<Blob<'_>>, usize), String> {
    let cut = || "its signature is cut off".to_owned();
    let magic = be32(data, 0).ok_or_else(cut)?;
    if magic != SUPER_BLOB {
        return Err(format!("its signature begins with {magic:#010x}, not with {SUPER_BLOB:#010x}"));
    }
    let length = be32(data, 4).ok_or_else(cut)? as usize;
    let whole = data.get(..length).ok_or_else(cut)?;
    let count = be32(whole, 8).ok_or_else(cut)? as usize;
    let index = count.checked_mul(8).and_then(|size| whole.get(12..size.checked_add(12)?)).ok_or_else(cut)?;

    let mut blobs = Vec::new();
    for entry in index.chunks_exact(8) {
        let (slot, at) = (be32(entry, 0).ok_or_else(cut)?, be32(entry, 4).ok_or_else(cut)? as usize);
        let outside = || format!("its signature's part {slot:#x} lies outside of the signature");
        let size = be32(whole, at.saturating_add(4)).ok_or_else(outside)? as usize;
        let end = at.checked_add(size).filter(|_| size >= 8).ok_or_else(outside)?;
        let bytes = whole.get(at..end).filter(|_| at >= 12 + index.len()).ok_or_else(outside)?;
        let wanted = magic_of(slot).ok_or_else(|| format!("its signature has an unknown part {slot:#x}"))?;
        let have = be32(bytes, 0).ok_or_else(outside)?;
        if have != wanted {
            return Err(format!(
                "its signature's part {slot:#x} begins with {have:#010x}, not {wanted:#010x}"
            ));
        }
        if blobs.iter().any(|b: &(usize, Blob<'_>)| b.1.slot == slot) {
            return Err(format!("its signature has two parts {slot:#x}"));
        }
        blobs.push((at, Blob { slot, bytes }));
    }
    blobs.sort_by_key(|(at, _)| *at);
    // Bytes between the parts would be sealed by nothing.
    let mut next = 12 + index.len();
    for (at, blob) in &blobs {
        if *at != next {
            return Err(format!("its signature's part {:#x} does not follow the one before it", blob.slot));
        }
        next = at + blob.bytes.len();
    }
    if next != length {
        return Err("its signature has bytes that belong to no part".into());
    }
    Ok((blobs.into_iter().map(|(_, blob)| blob).collect(), length))
}

/// The magic of each part there may be (`CSMAGIC_…`).
fn magic_of(slot: u32) -> Option<u32> {
    match slot {
        CODE_DIRECTORY => Some(0xfade_0c02),
        slot if ALTERNATES.contains(&slot) => Some(0xfade_0c02),
        2 => Some(0xfade_0c01),
        5 => Some(0xfade_7171),
        7 => Some(0xfade_7172),
        8..=11 => Some(0xfade_8181),
        CMS => Some(0xfade_0b01),
        _ => None,
    }
}

/// Big-endian 32 bits at a place.
pub(super) fn be32(bytes: &[u8], at: usize) -> Option<u32> {
    let four = bytes.get(at..at.checked_add(4)?)?;
    four.try_into().ok().map(u32::from_be_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob(magic: u32, payload: &[u8]) -> Vec<u8> {
        let mut bytes = magic.to_be_bytes().to_vec();
        bytes.extend((8 + payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
        bytes
    }

    fn container(parts: &[(u32, Vec<u8>)], gap: usize) -> Vec<u8> {
        let mut index = Vec::new();
        let mut data = Vec::new();
        for (slot, bytes) in parts {
            data.extend(vec![0; gap]);
            index.extend(slot.to_be_bytes());
            index.extend((12 + 8 * parts.len() as u32 + data.len() as u32).to_be_bytes());
            data.extend(bytes);
        }
        let mut out = SUPER_BLOB.to_be_bytes().to_vec();
        out.extend((12 + index.len() as u32 + data.len() as u32).to_be_bytes());
        out.extend((parts.len() as u32).to_be_bytes());
        out.extend(index);
        out.extend(data);
        out
    }

    #[test]
    fn parts_are_found_by_their_slots() {
        let bytes = container(&[(0, blob(0xfade_0c02, b"cd")), (2, blob(0xfade_0c01, b"req"))], 0);
        let (blobs, length) = read(&bytes).unwrap();
        assert_eq!(length, bytes.len());
        assert_eq!(
            blobs.iter().map(|b| (b.slot, b.payload())).collect::<Vec<_>>(),
            [(0, &b"cd"[..]), (2, &b"req"[..])]
        );
    }

    #[test]
    fn an_invalid_container_is_refused_with_a_reason() {
        let good = blob(0xfade_0c02, b"cd");
        for (bytes, expected) in [
            (container(&[(0, blob(0xfade_0c01, b"cd"))], 0), "begins with 0xfade0c01"),
            (container(&[(3, good.clone())], 0), "unknown part 0x3"),
            (container(&[(0, good.clone()), (0, good.clone())], 0), "two parts 0x0"),
            (container(&[(0, good.clone())], 4), "does not follow"),
            (blob(0xfade_0b01, b""), "begins with 0xfade0b01"),
            (container(&[(0, good)], 0)[..20].to_vec(), "cut off"),
            (Vec::new(), "cut off"),
        ] {
            let error = read(&bytes).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
