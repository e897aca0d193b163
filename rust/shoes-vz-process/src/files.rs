//! Whole files: replaced durably, and read up to a limit.

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

/// Suffix of a file that is being written. A clean-up after a crash removes files that have it.
pub const PART_SUFFIX: &str = ".new";

/// Who may read a file that [`replace`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readers {
    /// The owner alone (mode 0600).
    Owner,
    /// Everyone (mode 0644).
    Everyone,
    /// Everyone, and it is read-only even for its owner (mode 0444).
    EveryoneReadOnly,
}

/// Replaces the file at `path` by `bytes`. A reader sees either the whole old file or the whole new one, even after a loss
/// of power: file and directory are flushed (`fsync`) before this returns. On an error the old file stays.
pub fn replace(path: &Path, bytes: &[u8], readers: Readers) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(PART_SUFFIX);
    let part = PathBuf::from(name);
    let written = write_part(&part, bytes, readers).and_then(|()| fs::rename(&part, path));
    if let Err(e) = written {
        // On a full disk the part would occupy space that others need. The first error is the one to report.
        let _ = fs::remove_file(&part);
        return Err(e);
    }
    sync_dir(path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

fn write_part(part: &Path, bytes: &[u8], readers: Readers) -> io::Result<()> {
    let mode = match readers {
        Readers::Owner => 0o600,
        Readers::Everyone => 0o644,
        Readers::EveryoneReadOnly => 0o444,
    };
    // A part that a crash left behind may have another mode, or may be a link that another user created.
    if_any(fs::remove_file(part))?;
    let mut file = File::options().write(true).create_new(true).mode(mode).open(part)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// Makes renames, creations and removals in `dir` durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Reads a file of at most `limit` bytes. A longer one, or one without an end (`/dev/zero`), is an error
/// ([`io::ErrorKind::FileTooLarge`]) that names the limit. A directory, a socket or a FIFO is an error
/// ([`io::ErrorKind::InvalidInput`]): opening a FIFO waits for a writer that may never come. A pipe that this process
/// inherited as a descriptor (`/dev/stdin`, a shell's `<(…)`) has its writer, and is read.
pub fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    use std::os::unix::fs::FileTypeExt as _;
    let kind = fs::metadata(path)?.file_type();
    let inherited =
        path.starts_with("/dev/fd") || path.starts_with("/proc/self/fd") || path == Path::new("/dev/stdin");
    let what = match () {
        () if kind.is_dir() => Some("a directory"),
        () if kind.is_socket() => Some("a socket"),
        () if kind.is_fifo() && !inherited => Some("a FIFO"),
        () => None,
    };
    match what {
        Some(what) => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is {what}, not a file"))),
        None => read_up_to(File::open(path)?, limit),
    }
}

/// [`read_bounded`], as text.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    String::from_utf8(read_bounded(path, limit)?).map_err(|e| {
        io::Error::new(io::ErrorKind::InvalidData, format!("it is not UTF-8 ({})", e.utf8_error()))
    })
}

/// [`read_bounded`]; `None` when the file does not exist.
pub fn read_if_any(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    if_any(read_bounded(path, limit))
}

/// `None` when what `done` was about does not exist: for a file that is read, or removed, only if there is one.
pub fn if_any<T>(done: io::Result<T>) -> io::Result<Option<T>> {
    match done {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        done => done.map(Some),
    }
}

/// Reads all of `reader`, which must not hold more than `limit` bytes.
pub fn read_up_to(reader: impl io::Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        let text = format!("it is larger than {}", crate::units::show_size(limit));
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_file_is_replaced_whole_and_only_its_readers_can_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        assert_eq!(read_if_any(&path, 10).unwrap(), None);
        replace(&path, b"first, long", Readers::Owner).unwrap();
        replace(&path, b"second", Readers::Owner).unwrap();
        assert_eq!(read_if_any(&path, 10).unwrap().as_deref(), Some(&b"second"[..]));
        assert_eq!(mode(&path), 0o600);
        replace(&dir.path().join("g"), b"", Readers::Everyone).unwrap();
        assert_eq!(mode(&dir.path().join("g")) & 0o600, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no part stays behind");
    }

    #[test]
    fn a_replacement_that_fails_leaves_the_old_file_and_no_part() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d");
        fs::create_dir(&path).unwrap();
        fs::write(path.join("inside"), "x").unwrap();
        assert!(replace(&path, b"bytes", Readers::Owner).is_err(), "a directory is not replaced by a file");
        assert!(path.join("inside").exists());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_read_ends_at_its_limit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_bounded(&path, 5).unwrap(), b"12345");
        let long = read_bounded(&path, 4).unwrap_err();
        assert!(long.kind() == io::ErrorKind::FileTooLarge && long.to_string().contains("4 bytes"), "{long}");
        assert!(read_bounded(Path::new("/dev/zero"), 1 << 16).unwrap_err().to_string().contains("64.0 KiB"));
        assert_eq!(read_bounded(Path::new("/dev/null"), 5).unwrap(), b"");
        fs::write(&path, [0xff]).unwrap();
        assert!(read_text(&path, 5).unwrap_err().to_string().contains("UTF-8"));
    }

    #[test]
    fn what_is_not_a_file_is_refused_without_waiting_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let (fifo, socket) = (dir.path().join("fifo"), dir.path().join("socket"));
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let refusal = |path: &Path| read_bounded(path, 5).unwrap_err().to_string();
        assert_eq!(refusal(&fifo), "it is a FIFO, not a file");
        assert_eq!(refusal(&socket), "it is a socket, not a file");
        assert_eq!(refusal(dir.path()), "it is a directory, not a file");
        assert!(refusal(&dir.path().join("none")).contains("No such file"));
    }
}
