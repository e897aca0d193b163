//! Small files that are there either wholly or not at all, readable by nobody else.

use std::{fs, io, path::Path};

use shoes_vz_process::files::{self, Readers};

/// Longest of the agent's own files, in bytes: a setup script is the largest.
const LONGEST: u64 = 64 << 20;

/// Puts `bytes` in the place of whatever was at `path`, mode 0600, durably.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    files::replace(path, bytes, Readers::Owner)
}

/// The file's bytes; `None` when there is none.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    files::read_if_any(path, LONGEST)
}

/// The file's last `max` bytes; none at all when it is not there.
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
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_wholly_and_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert_eq!(read(&path).unwrap(), None);
        write(&path, b"first, long").unwrap();
        write(&path, b"second").unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some(&b"second"[..]));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(last_bytes(&path, 3).unwrap(), b"ond");
        assert_eq!(last_bytes(&path, 100).unwrap(), b"second");
        assert_eq!(last_bytes(&dir.path().join("none"), 3).unwrap(), b"");
    }
}
