//! Durations and sizes as operators write and read them, with one grammar for flags, environment and files.

use std::time::Duration;

/// A hundred years: a longer one is a typing mistake, and sums of valid durations do not overflow.
const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);

/// An exbibyte: a larger one is a typing mistake.
const LARGEST: u64 = 1 << 60;

/// Reads `500ms`, `90s`, `5m`, `1h30m`, `7d`, or `0` (crate `humantime`'s grammar). A number needs its unit.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = |reason: &str| {
        Err(format!("{text:?} is not a valid duration{reason}; write 500ms, 90s, 5m, 1h30m or 7d"))
    };
    if text != "0" && !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return wrong(": it has no unit");
    }
    match humantime::parse_duration(text) {
        Ok(duration) if duration <= LONGEST => Ok(duration),
        Ok(_) => wrong(": it is longer than 100 years"),
        Err(_) => wrong(""),
    }
}

/// Reads `10GiB`, `512MiB`, `20GB`, or a number of bytes (crate `bytesize`'s grammar: `GiB` is 2³⁰, `GB` is 10⁹). A `G`
/// alone is refused, because it may mean either, and a VM's memory must be whole MiB.
pub fn size(text: &str) -> Result<u64, String> {
    let wrong = |reason: &str| {
        format!("{text:?} is not a valid size{reason}; write 10GiB, 512MiB or a number of bytes")
    };
    // `bytesize` reads "-1" as 0.
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(wrong(""));
    }
    let unit = text.trim_start_matches(|c: char| !c.is_ascii_alphabetic());
    if unit.len() == 1 && !unit.eq_ignore_ascii_case("b") {
        return Err(wrong(&format!(": {unit:?} may mean {0}iB or {0}B", unit.to_ascii_uppercase())));
    }
    let size: bytesize::ByteSize = text.parse().map_err(|_| wrong(""))?;
    if size.as_u64() > LARGEST { Err(wrong(": it is larger than 1 EiB")) } else { Ok(size.as_u64()) }
}

/// For a person: `450 ms`, `12.3 s`, `4 min 50 s`, `2 h 5 min`, `3 d 4 h`.
pub fn show_duration(d: Duration) -> String {
    match d.as_secs() {
        0 => format!("{} ms", d.as_millis()),
        1..=59 => format!("{:.1} s", d.as_secs_f64()),
        s @ 60..=3599 => format!("{} min {} s", s / 60, s % 60),
        s @ 3600..=86_399 => format!("{} h {} min", s / 3600, s % 3600 / 60),
        s => format!("{} d {} h", s / 86_400, s % 86_400 / 3600),
    }
}

/// For a person: `512 bytes`, `1.5 KiB`, `9.8 GiB`. Rounded down, so that a size that is too small never looks sufficient.
pub fn show_size(bytes: u64) -> String {
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
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_with_their_units() {
        for (text, millis) in [
            ("500ms", 500),
            ("90s", 90_000),
            ("5m", 300_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("7d", 7 * 86_400_000),
            ("0", 0),
            ("0s", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert!(duration("90").unwrap_err().contains("no unit"));
        assert!(duration("101y").unwrap_err().contains("100 years"));
        for bad in ["", "m", "5x", "-1s", "5m3", "soon", "99999999999999999999s", "18446744073709551615h"] {
            assert!(
                duration(bad).unwrap_err().contains(&format!("{bad:?} is not a valid duration")),
                "{bad:?}"
            );
        }
    }

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("10GiB", 10 << 30),
            ("512MiB", 512 << 20),
            ("2KiB", 2048),
            ("1TiB", 1 << 40),
            ("8GB", 8_000_000_000),
            ("4096", 4096),
            ("0", 0),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        assert!(size("8G").unwrap_err().contains("may mean GiB or GB"));
        for bad in ["", "GiB", "8k", "-1", "-1GiB", "plenty", "1GiBs", "99999999999TiB"] {
            assert!(size(bad).unwrap_err().contains("is not a valid size"), "{bad:?}");
        }
    }

    #[test]
    fn both_are_shown_in_the_unit_of_their_magnitude_and_sizes_never_rounded_up() {
        assert_eq!(show_duration(Duration::from_millis(450)), "450 ms");
        assert_eq!(show_duration(Duration::from_millis(12_340)), "12.3 s");
        assert_eq!(show_duration(Duration::from_secs(290)), "4 min 50 s");
        assert_eq!(show_duration(Duration::from_secs(7500)), "2 h 5 min");
        assert_eq!(show_duration(Duration::from_secs(7 * 86_400)), "7 d 0 h");
        assert_eq!(show_size(0), "0 bytes");
        assert_eq!(show_size(1536), "1.5 KiB");
        assert_eq!(show_size((10 << 30) - 1), "9.9 GiB");
        assert_eq!(show_size(u64::MAX), "16777215.9 TiB");
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parsers_panic(text in "\\PC{0,24}") {
            let _ = (duration(&text), size(&text));
        }

        #[test]
        fn whole_bytes_and_milliseconds_read_back(n in 0u64..1 << 53) {
            prop_assert_eq!(size(&n.to_string()), Ok(n));
            let millis = n % 3_000_000_000_000;
            prop_assert_eq!(duration(&format!("{millis}ms")), Ok(Duration::from_millis(millis)));
        }
    }
}
