//! What a VM process writes besides its sockets: the line on its stdout, and its log.

use std::{
    fs,
    io::{self, Read as _, Seek as _},
    path::Path,
};

use shoes_vz_model::{bundle::file, text};

/// What a VM process prints once `vm.sock` is served; anything else is the reason why it never will be.
pub(crate) const READY: &str = "ready";
/// Of the end of a VM process' log, in bytes.
const MAX_TAIL: u64 = 16 << 10;

/// The end of a VM process' log, quoted: the log itself is removed with the bundle.
pub(crate) fn log_tail(bundle: &Path) -> String {
    match last_bytes(&bundle.join(file::VM_LOG)) {
        Ok(log) if log.is_empty() => "its log is empty".into(),
        Ok(log) => format!("the end of its log: {}", text::plain(&text::tail(&log, 10, 2048))),
        Err(e) => format!("its log cannot be read ({e})"),
    }
}

fn last_bytes(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = fs::File::open(path)?;
    let start = file.metadata()?.len().saturating_sub(MAX_TAIL);
    file.seek(io::SeekFrom::Start(start))?;
    let mut bytes = Vec::new();
    file.take(MAX_TAIL).read_to_end(&mut bytes)?;
    Ok(bytes)
}
