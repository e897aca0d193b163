//! What is required of a program or bundle.

use std::{fmt, str::FromStr};

use plist::Dictionary;

/// The requirements for a program or bundle.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// The oldest macOS it runs on (`LC_BUILD_VERSION`'s minos, Info.plist's `LSMinimumSystemVersion`).
    pub minos: Version,
    /// Who signed it, and how.
    pub signing: Signing,
}

/// Who signed, and how.
#[derive(Debug, Clone, PartialEq)]
pub enum Signing {
    /// The linker did, as it must for arm64: pages are hashed, nothing else is promised.
    Linker,
    /// `codesign` or `rcodesign` did, with the hardened runtime.
    Hardened {
        /// The signing identifier; `None`: any.
        identifier: Option<String>,
        /// The entitlements, exactly.
        entitlements: Dictionary,
    },
}

/// A version as Mach-O has it: 26.0, 26.1.2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    major: u16,
    minor: u8,
    patch: u8,
}

impl Version {
    /// From the 32 bits of `LC_BUILD_VERSION` and of a CodeDirectory: xxxx.yy.zz.
    pub const fn of_bits(bits: u32) -> Self {
        let [high, low, minor, patch] = bits.to_be_bytes();
        Self { major: u16::from_be_bytes([high, low]), minor, patch }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)?;
        if self.patch > 0 {
            write!(f, ".{}", self.patch)?;
        }
        Ok(())
    }
}

impl FromStr for Version {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let invalid = || format!("{text:?} is not a version like 26.0");
        let mut parts = text.split('.');
        let major = parts.next().and_then(|p| p.parse().ok()).ok_or_else(invalid)?;
        let mut small = || parts.next().map_or(Ok(0), |p| p.parse().map_err(|_| invalid()));
        let version = Self { major, minor: small()?, patch: small()? };
        if parts.next().is_some() { Err(invalid()) } else { Ok(version) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_reads_as_it_is_written_and_as_macho_has_it() {
        for (text, bits) in [("26.0", 0x001a_0000), ("15.4.1", 0x000f_0401), ("300.2", 0x012c_0200)] {
            assert_eq!(text.parse::<Version>().unwrap(), Version::of_bits(bits));
            assert_eq!(Version::of_bits(bits).to_string(), text);
        }
        assert_eq!("26".parse::<Version>().unwrap(), "26.0".parse().unwrap());
        for wrong in ["", "x", "26.", "26.0.0.0", "26.256", "-1"] {
            assert!(wrong.parse::<Version>().is_err(), "{wrong}");
        }
    }
}
