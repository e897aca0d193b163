//! Sizes as operators write them: `10GiB`, `512MiB`, `8G`; a bare number is bytes. Powers of 1024 throughout.

/// Reads one; the error says what is expected.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size; write for example 10GiB, 512MiB, or bytes");
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, unit) = text.split_at(at);
    let factor: u64 = match unit.to_ascii_uppercase().as_str() {
        "" => 1,
        "K" | "KIB" => 1 << 10,
        "M" | "MIB" => 1 << 20,
        "G" | "GIB" => 1 << 30,
        "T" | "TIB" => 1 << 40,
        _ => return Err(wrong()),
    };
    digits.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).ok_or_else(wrong)
}

/// For a person: `512 bytes`, `1.5 KiB`, `9.8 GiB`. Rounded down, so that what is too little never looks enough.
pub(crate) fn words(bytes: u64) -> String {
    let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match units.into_iter().find(|(_, shift)| bytes >> shift > 0) {
        Some((unit, shift)) => {
            let tenths = (u128::from(bytes) * 10) >> shift;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None => format!("{bytes} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_operators_write_them() {
        for (text, bytes) in [
            ("10GiB", 10 << 30),
            ("512MiB", 512 << 20),
            ("8G", 8 << 30),
            ("2k", 2048),
            ("1T", 1 << 40),
            ("0", 0),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for bad in ["", "G", "8GB", "-1", "1.5G", "99999999999TiB"] {
            assert!(parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_size_is_told_in_its_unit_and_never_rounded_up() {
        assert_eq!(words(0), "0 bytes");
        assert_eq!(words(1536), "1.5 KiB");
        assert_eq!(words((10 << 30) - 1), "9.9 GiB");
        assert_eq!(words(10 << 30), "10.0 GiB");
        assert_eq!(words(u64::MAX), "16777215.9 TiB");
    }
}
