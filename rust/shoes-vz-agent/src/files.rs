//! Reads of the agent's small files; `replace` writes them.

use std::{fs, io, path::Path};

pub(crate) use shoes_vz_process::files::{Readers, replace};

/// Bytes of the agent's largest file, a setup script.
const MAX_FILE: u64 = 64 << 20;

/// The content of the file; `None` if it does not exist.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    shoes_vz_process::files::read_if_any(path, MAX_FILE)
}

/// The file's last `max` bytes; none if it does not exist.
pub(crate) fn last_bytes(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    use io::{Read as _, Seek as _};
    let mut file = match fs::File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let len = file.metadata()?.len();
    file.seek(io::SeekFrom::Start(len.saturating_sub(max)))?;
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_wholly_or_from_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert_eq!(read(&path).unwrap(), None);
        replace(&path, b"second", Readers::Owner).unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some(&b"second"[..]));
        assert_eq!(last_bytes(&path, 3).unwrap(), b"ond");
        assert_eq!(last_bytes(&path, 100).unwrap(), b"second");
        assert_eq!(last_bytes(&dir.path().join("none"), 3).unwrap(), b"");
    }
}
