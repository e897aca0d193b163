//! Messages to the kernel's log, from which errors reach the console.

use std::{
    fs::{File, OpenOptions},
    io::Write,
    sync::OnceLock,
};

use crate::cmdline::Trace;

static KMSG: OnceLock<File> = OnceLock::new();
static TRACE: OnceLock<Trace> = OnceLock::new();

/// To be called once `/dev` is mounted.
pub(super) fn open() {
    if let Ok(file) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // Fails when it is set already: then the first file stays.
        let _ = KMSG.set(file);
    }
}

pub(super) fn set_trace(trace: Trace) {
    let _ = TRACE.set(trace);
}

/// Something an operator must know. Goes to the console.
pub(super) fn error(text: &str) {
    write(3, text);
}

/// A step of the boot. The kernel's log adds the time.
pub(super) fn step(text: &str) {
    write(if TRACE.get() == Some(&Trace::Console) { 3 } else { 6 }, text);
}

fn write(level: u8, text: &str) {
    // When writing to the kernel's log fails there is no other place to report it.
    match KMSG.get() {
        Some(mut file) => drop(file.write_all(format!("<{level}>guest-init: {text}\n").as_bytes())),
        None => eprintln!("guest-init: {text}"),
    }
}
