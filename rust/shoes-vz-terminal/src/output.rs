//! Lines to stdout and stderr. `println!` and `eprintln!` panic when their reader is gone or their disk is full; these
//! give an error for stdout, which is what the program was asked for, and let stderr be.

use std::io::{self, Write};

use crate::progress;

/// Writes one line to stdout.
///
/// # Errors
/// When it cannot be written: nobody reads it any more ([`is_read_enough`]), or a disk is full.
pub fn print(line: &str) -> io::Result<()> {
    progress::aside(|| {
        let mut out = io::stdout().lock();
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")?;
        out.flush()
    })
}

/// Writes one line to stderr. A stderr that cannot be written changes nothing.
pub fn note(line: &str) {
    // There is nowhere left to say that it failed.
    let _ = Stderr.write_all(format!("{line}\n").as_bytes());
}

/// Whether writing failed because the reader has had enough, as in `list | head`.
pub fn is_read_enough(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// stderr beside a live line: what is written stands above it. For logs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        progress::aside(|| io::stderr().lock().write(bytes))
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        progress::aside(|| io::stderr().lock().write_all(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}
