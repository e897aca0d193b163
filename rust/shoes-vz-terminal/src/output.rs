//! Lines to stdout and stderr. `println!` and `eprintln!` panic when their reader has ended or their disk is full. These
//! functions return an error for stdout, which carries the program's result, and ignore errors of stderr.

use std::io::{self, Write};

use crate::live_line;

/// Writes one line to stdout.
///
/// # Errors
/// When it cannot be written: its reader has ended ([`is_reader_closed`]), or a disk is full.
pub fn print(line: &str) -> io::Result<()> {
    live_line::suspend(|| {
        let mut out = io::stdout().lock();
        out.write_all(line.as_bytes())?;
        out.write_all(b"\n")?;
        out.flush()
    })
}

/// Writes one line to stderr. A stderr that cannot be written changes nothing.
pub fn note(line: &str) {
    // There is no other place to report an error.
    let _ = Stderr.write_all(format!("{line}\n").as_bytes());
}

/// Whether writing failed because the reader has closed the pipe, as in `list | head`.
pub fn is_reader_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

/// stderr, whose lines appear above the live line. For logs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Stderr;

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        live_line::suspend(|| io::stderr().lock().write(bytes))
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        live_line::suspend(|| io::stderr().lock().write_all(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().lock().flush()
    }
}
