//! Words on the kernel's log, from which errors reach the console.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    sync::OnceLock,
};

use crate::cmdline::Trace;

static KMSG: OnceLock<File> = OnceLock::new();
static TRACE: OnceLock<Trace> = OnceLock::new();

/// To be called once `/dev` is there.
pub(super) fn open() {
    if let Ok(file) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // Set twice: the first file does as well.
        let _ = KMSG.set(file);
    }
}

/// Says where [`mark`]s go.
pub(super) fn set_trace(trace: Trace) {
    let _ = TRACE.set(trace);
}

/// Something an operator must know; goes to the console.
pub(super) fn fault(text: &str) {
    write(3, text);
}

/// A step of the boot; the kernel's log adds the time.
pub(super) fn mark(text: &str) {
    write(if TRACE.get() == Some(&Trace::Console) { 3 } else { 6 }, text);
}

fn write(level: u8, text: &str) {
    // Nowhere else to complain when even the kernel's log takes nothing.
    match KMSG.get() {
        Some(mut file) => drop(file.write_all(format!("<{level}>guest-init: {text}\n").as_bytes())),
        None => eprintln!("guest-init: {text}"),
    }
}
