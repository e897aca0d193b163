//! From what was observed of a QEMU process to the reason why the VM ended: a pure table.

use std::{os::unix::process::ExitStatusExt as _, process::ExitStatus};

use nix::sys::signal::Signal;

use crate::end::{End, EndKind, signal_name};

/// Of one QEMU process.
#[derive(Debug, Clone, Default)]
pub(super) struct Observations {
    /// QMP answered: the command line was valid and the machine was built.
    pub(super) up: bool,
    pub(super) kill_asked: bool,
    /// QMP's SHUTDOWN.
    pub(super) shutdown: Option<Shutdown>,
    /// QMP's GUEST_PANICKED, with its information.
    pub(super) panic: Option<String>,
    /// QMP's BLOCK_IO_ERROR that stopped the VM.
    pub(super) disk: Option<DiskError>,
}

/// Those of QMP's SHUTDOWN reasons that make a difference.
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
    pub(super) reason: String,
}

/// `stderr` has the last lines that QEMU wrote.
pub(super) fn classify(seen: &Observations, exit: ExitStatus, stderr: &str) -> End {
    // The first cause counts: what came after it (a kill, an exit code) only followed from it.
    if let Some(disk) = &seen.disk {
        let what = if disk.full {
            "the host's disk is full: free space where the runners' bundles are"
        } else {
            "the host's disk failed below the VM: look at the host's kernel log"
        };
        return End::new(EndKind::DiskError, format!("{what} ({})", disk.reason));
    }
    if seen.panic.is_some() || seen.shutdown == Some(Shutdown::GuestPanic) {
        let info =
            seen.panic.as_deref().filter(|t| !t.is_empty()).map(|t| format!(" ({t})")).unwrap_or_default();
        return End::new(EndKind::GuestPanic, format!("the guest's kernel panicked{info}"));
    }
    if seen.kill_asked {
        return End::as_asked();
    }
    match (seen.shutdown, exit.signal()) {
        (Some(Shutdown::Guest), _) => End::new(EndKind::GuestPoweroff, "the guest powered itself off"),
        (Some(Shutdown::GuestReset), _) => End::new(
            EndKind::GuestReset,
            "the guest rebooted, which ends a VM (or its kernel panicked before it could report that)",
        ),
        (Some(Shutdown::HostSignal), _) => End::new(
            EndKind::HypervisorKilled,
            "another process sent QEMU a signal that ends it in order (SIGTERM, SIGINT or SIGHUP)",
        ),
        (_, Some(signal)) => killed(signal, stderr),
        (shutdown, None) => failed(seen.up, shutdown, exit.code().unwrap_or_default(), stderr),
    }
}

fn killed(signal: i32, stderr: &str) -> End {
    let name = signal_name(signal);
    let hint = match Signal::try_from(signal) {
        Ok(Signal::SIGKILL) => {
            "; unless a person did that, the host ran out of memory: see the host's kernel log"
        }
        Ok(Signal::SIGSEGV | Signal::SIGABRT | Signal::SIGBUS | Signal::SIGILL) => "; it crashed",
        Ok(Signal::SIGSYS) => "; it made a system call that its sandbox forbids",
        _ => "",
    };
    End::new(
        EndKind::HypervisorKilled,
        format!("QEMU was killed by signal {signal} ({name}){hint}{}", quoted(stderr)),
    )
}

fn failed(up: bool, shutdown: Option<Shutdown>, code: i32, stderr: &str) -> End {
    let what = if up { "QEMU exited by itself" } else { "QEMU did not start: it ended" };
    let asked = if shutdown.is_some() { ", as another client of its QMP asked" } else { "" };
    End::new(EndKind::HypervisorFailed, format!("{what} with exit code {code}{asked}{}", quoted(stderr)))
}

fn quoted(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!("; the end of its stderr: {stderr}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIGKILLED: i32 = 9;
    const SIGSEGV_CORE: i32 = 11 | 0x80;
    const fn code(n: i32) -> i32 {
        n << 8
    }

    fn end(seen: Observations, wait_status: i32) -> End {
        classify(&seen, ExitStatus::from_raw(wait_status), "")
    }

    #[test]
    fn every_end_has_its_kind() {
        let up = || Observations { up: true, ..Observations::default() };
        let shut = |s| Observations { shutdown: Some(s), ..up() };
        let disk = Some(DiskError { full: true, reason: "No space left".into() });
        for (seen, status, kind) in [
            (shut(Shutdown::Guest), code(0), EndKind::GuestPoweroff),
            (shut(Shutdown::GuestReset), code(0), EndKind::GuestReset),
            (shut(Shutdown::GuestPanic), code(1), EndKind::GuestPanic),
            (Observations { panic: Some(String::new()), ..up() }, code(1), EndKind::GuestPanic),
            (shut(Shutdown::HostSignal), code(0), EndKind::HypervisorKilled),
            (up(), SIGKILLED, EndKind::HypervisorKilled),
            (up(), SIGSEGV_CORE, EndKind::HypervisorKilled),
            (up(), code(1), EndKind::HypervisorFailed),
            (shut(Shutdown::Host), code(0), EndKind::HypervisorFailed),
            (Observations::default(), code(1), EndKind::HypervisorFailed),
            (Observations { kill_asked: true, ..up() }, SIGKILLED, EndKind::Requested),
            // We kill a VM whose disk failed, and one that panics while it is being killed has panicked.
            (Observations { kill_asked: true, disk, ..up() }, SIGKILLED, EndKind::DiskError),
            (Observations { kill_asked: true, ..shut(Shutdown::GuestPanic) }, SIGKILLED, EndKind::GuestPanic),
        ] {
            assert_eq!(end(seen.clone(), status).kind, kind, "{seen:?} {status}");
        }
    }

    #[test]
    fn the_reason_names_signal_code_and_the_end_of_qemus_stderr() {
        let up = Observations { up: true, ..Observations::default() };
        assert!(end(up.clone(), SIGKILLED).reason.contains("signal 9 (SIGKILL)"));
        assert!(end(up, SIGSEGV_CORE).reason.contains("signal 11 (SIGSEGV); it crashed"));
        let end = classify(&Observations::default(), ExitStatus::from_raw(code(1)), "Could not open 'x'");
        assert_eq!(
            end.reason,
            "QEMU did not start: it ended with exit code 1; the end of its stderr: Could not open 'x'"
        );
    }
}
