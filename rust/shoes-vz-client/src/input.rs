//! Files that a person names: read up to a bound, never longer than that and never for ever.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::FileTypeExt as _,
    path::Path,
};

/// The largest token file and configuration file.
pub const SMALL: u64 = 64 << 10;

/// Why a file was not read.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// A directory, a socket, a FIFO.
    #[error("it is {0}, not a file")]
    NotAFile(&'static str),
    /// More than the bound.
    #[error("it is larger than {0} bytes")]
    TooLarge(u64),
    /// Not text.
    #[error("it is not UTF-8")]
    NotText,
    /// The system's word.
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads all of a file of at most `limit` bytes. One without an end (`/dev/zero`) is refused at the limit. A FIFO is
/// refused, since opening it waits for a writer that may never come; a pipe that this process was given as a descriptor
/// (`/dev/stdin`, a shell's `<(…)`) has its writer.
pub fn read(path: &Path, limit: u64) -> Result<Vec<u8>, InputError> {
    let meta = fs::metadata(path)?;
    let kind = meta.file_type();
    let given = path.starts_with("/dev/fd") || path == Path::new("/dev/stdin");
    if kind.is_dir() {
        return Err(InputError::NotAFile("a directory"));
    }
    if kind.is_socket() {
        return Err(InputError::NotAFile("a socket"));
    }
    if kind.is_fifo() && !given {
        return Err(InputError::NotAFile("a FIFO"));
    }
    if kind.is_file() && meta.len() > limit {
        return Err(InputError::TooLarge(limit));
    }
    read_up_to(File::open(path)?, limit)
}

/// All of `reader`, which must not have more than `limit` bytes.
pub fn read_up_to(reader: impl Read, limit: u64) -> Result<Vec<u8>, InputError> {
    let mut bytes = Vec::new();
    reader.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit { Err(InputError::TooLarge(limit)) } else { Ok(bytes) }
}

/// [`read`], as text.
pub fn read_text(path: &Path, limit: u64) -> Result<String, InputError> {
    String::from_utf8(read(path, limit)?).map_err(|_| InputError::NotText)
}

#[cfg(test)]
mod tests {
    use nix::{sys::stat::Mode, unistd::mkfifo};

    use super::*;

    fn refusal(path: &Path, limit: u64) -> String {
        read(path, limit).unwrap_err().to_string()
    }

    #[test]
    fn a_read_ends_at_its_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        assert!(refusal(&path, 4).contains("larger than 4 bytes"));
        assert!(refusal(Path::new("/dev/zero"), 1 << 20).contains("larger than 1048576 bytes"));
        assert_eq!(read(Path::new("/dev/null"), 5).unwrap(), b"");
    }

    #[test]
    fn what_is_not_a_file_is_named_and_never_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, socket) = (dir.path().join("fifo"), dir.path().join("socket"));
        mkfifo(&fifo, Mode::S_IRWXU).unwrap();
        let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(refusal(&fifo, 5).contains("a FIFO, not a file"));
        assert!(refusal(&socket, 5).contains("a socket, not a file"));
        assert!(refusal(dir.path(), 5).contains("a directory, not a file"));
        assert!(refusal(&dir.path().join("none"), 5).contains("No such file"));
    }

    #[test]
    fn bytes_that_are_not_text_are_refused_as_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, [0xff]).unwrap();
        assert!(read_text(&path, 5).unwrap_err().to_string().contains("UTF-8"));
    }
}
