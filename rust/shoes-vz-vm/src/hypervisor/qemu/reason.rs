//! From what was seen of a QEMU process to why the VM ended: a pure table.

use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

use nix::sys::signal::Signal;

use crate::end::{End, EndKind};

/// Everything seen of one QEMU.
#[derive(Debug, Clone, Default)]
pub(super) struct Seen {
    /// QMP answered: the command line was good and the machine was built.
    pub(super) up: bool,
    /// We were asked to kill it.
    pub(super) kill_asked: bool,
    /// QMP's SHUTDOWN.
    pub(super) shutdown: Option<Shutdown>,
    /// QMP's GUEST_PANICKED, with what it told.
    pub(super) panic: Option<String>,
    /// QMP's BLOCK_IO_ERROR that stopped the VM.
    pub(super) disk: Option<DiskError>,
}

/// QMP's SHUTDOWN reasons, as far as they make a difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shutdown {
    Guest,
    GuestReset,
    GuestPanic,
    HostSignal,
    Host,
}

/// QMP's BLOCK_IO_ERROR.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct DiskError {
    pub(super) full: bool,
    pub(super) words: String,
}

/// Why it ended. `stderr` holds the last lines QEMU wrote.
pub(super) fn classify(seen: &Seen, exit: ExitStatus, stderr: &str) -> End {
    // The first cause wins: what came after it (a kill, an exit code) only followed from it.
    if let Some(disk) = &seen.disk {
        let what = if disk.full {
            "the host's disk is full: free space where the runners' bundles are"
        } else {
            "the host's disk failed below the VM: look at the host's kernel log"
        };
        return End::new(EndKind::DiskError, format!("{what} ({})", disk.words));
    }
    if seen.panic.is_some() || seen.shutdown == Some(Shutdown::GuestPanic) {
        let told =
            seen.panic.as_deref().filter(|t| !t.is_empty()).map(|t| format!(" ({t})")).unwrap_or_default();
        return End::new(EndKind::GuestPanic, format!("the guest's kernel panicked{told}"));
    }
    if seen.kill_asked {
        return End::new(EndKind::Requested, "the VM was ended as asked");
    }
    match (seen.shutdown, exit.signal()) {
        (Some(Shutdown::Guest), _) => End::new(EndKind::GuestPoweroff, "the guest powered itself off"),
        (Some(Shutdown::GuestReset), _) => End::new(
            EndKind::GuestReset,
            "the guest rebooted, which ends a VM (or its kernel panicked before it could tell)",
        ),
        (Some(Shutdown::HostSignal), _) => End::new(
            EndKind::HypervisorKilled,
            "somebody sent QEMU a signal that ends it politely (SIGTERM, SIGINT or SIGHUP)",
        ),
        (_, Some(signal)) => killed(signal, stderr),
        (shutdown, None) => failed(seen.up, shutdown, exit.code().unwrap_or_default(), stderr),
    }
}

fn killed(signal: i32, stderr: &str) -> End {
    let name = Signal::try_from(signal).map_or("unknown", Signal::as_str);
    let hint = match Signal::try_from(signal) {
        Ok(Signal::SIGKILL) => {
            "; if nobody did that by hand, the host ran out of memory: see the host's kernel log"
        }
        Ok(Signal::SIGSEGV | Signal::SIGABRT | Signal::SIGBUS | Signal::SIGILL) => "; it crashed",
        Ok(Signal::SIGSYS) => "; its sandbox stopped a forbidden system call",
        _ => "",
    };
    End::new(
        EndKind::HypervisorKilled,
        format!("QEMU was killed by signal {signal} ({name}){hint}{}", said(stderr)),
    )
}

fn failed(up: bool, shutdown: Option<Shutdown>, code: i32, stderr: &str) -> End {
    let what = if up { "QEMU exited by itself" } else { "QEMU did not start: it ended" };
    let asked = if shutdown.is_some() { ", told to over QMP by somebody else" } else { "" };
    End::new(EndKind::HypervisorFailed, format!("{what} with exit code {code}{asked}{}", said(stderr)))
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("; its last words: {stderr}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGKILLED: i32 = 9;
    const SIGSEGV_CORE: i32 = 11 | 0x80;
    const fn code(n: i32) -> i32 {
        n << 8
    }

    fn end(seen: Seen, wait_status: i32) -> End {
        classify(&seen, ExitStatus::from_raw(wait_status), "")
    }

    #[test]
    fn every_end_has_its_kind() {
        let up = || Seen { up: true, ..Seen::default() };
        let shut = |s| Seen { shutdown: Some(s), ..up() };
        let disk = Some(DiskError { full: true, words: "No space left".into() });
        for (seen, status, kind) in [
            (shut(Shutdown::Guest), code(0), EndKind::GuestPoweroff),
            (shut(Shutdown::GuestReset), code(0), EndKind::GuestReset),
            (shut(Shutdown::GuestPanic), code(1), EndKind::GuestPanic),
            (Seen { panic: Some(String::new()), ..up() }, code(1), EndKind::GuestPanic),
            (shut(Shutdown::HostSignal), code(0), EndKind::HypervisorKilled),
            (up(), SIGKILLED, EndKind::HypervisorKilled),
            (up(), SIGSEGV_CORE, EndKind::HypervisorKilled),
            (up(), code(1), EndKind::HypervisorFailed),
            (shut(Shutdown::Host), code(0), EndKind::HypervisorFailed),
            (Seen::default(), code(1), EndKind::HypervisorFailed),
            (Seen { kill_asked: true, ..up() }, SIGKILLED, EndKind::Requested),
            // We kill a VM whose disk failed, and one that panics while it is being killed has panicked.
            (Seen { kill_asked: true, disk, ..up() }, SIGKILLED, EndKind::DiskError),
            (Seen { kill_asked: true, ..shut(Shutdown::GuestPanic) }, SIGKILLED, EndKind::GuestPanic),
        ] {
            assert_eq!(end(seen.clone(), status).kind, kind, "{seen:?} {status}");
        }
    }

    #[test]
    fn the_words_name_signal_code_and_what_qemu_said() {
        let up = Seen { up: true, ..Seen::default() };
        assert!(end(up.clone(), SIGKILLED).reason.contains("signal 9 (SIGKILL)"));
        assert!(end(up, SIGSEGV_CORE).reason.contains("signal 11 (SIGSEGV); it crashed"));
        let end = classify(&Seen::default(), ExitStatus::from_raw(code(1)), "Could not open 'x'");
        assert_eq!(
            end.reason,
            "QEMU did not start: it ended with exit code 1; its last words: Could not open 'x'"
        );
    }
}
