//! Files whose content somebody else decides, never read beyond what such a file may hold.

use std::{
    fs,
    io::{self, Read as _},
    path::Path,
};

/// The bytes of the file at `path`, of which there may be `limit` at most.
///
/// # Errors
/// Whatever opening and reading says; [`io::ErrorKind::FileTooLarge`], with the limit in its text, for a file (or a device:
/// `/dev/zero` has no end) that holds more.
pub fn bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    fs::File::open(path)?.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let text = format!("it holds more than the {limit} bytes such a file may have");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

/// As [`bounded`], for text.
///
/// # Errors
/// As [`bounded`]; [`io::ErrorKind::InvalidData`] for what is not UTF-8.
pub fn bounded_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(bounded(path, limit)?)
        .map_err(|e| io::Error::new(io::ErrorKind::InvalidData, e.utf8_error()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_up_to_its_limit_and_refused_beyond_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "12345").unwrap();
        assert_eq!(bounded(&path, 5).unwrap(), b"12345");
        assert_eq!(bounded_text(&path, 5).unwrap(), "12345");
        let error = bounded(&path, 4).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
        assert!(error.to_string().contains("4 bytes"), "{error}");
        fs::write(&path, b"\xff").unwrap();
        assert_eq!(bounded_text(&path, 5).unwrap_err().kind(), io::ErrorKind::InvalidData);
        assert_eq!(bounded(&dir.path().join("none"), 5).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_device_without_an_end_is_refused_at_once() {
        assert_eq!(bounded(Path::new("/dev/zero"), 1 << 20).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }
}
