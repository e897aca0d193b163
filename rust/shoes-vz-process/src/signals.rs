//! Which signals stop a program, and which are ignored.
//!
//! | signal | what it does |
//! |---|---|
//! | SIGTERM, SIGINT | stop the program, after it has drained |
//! | SIGHUP | the same, unless it was ignored when the program started (`nohup`); then it stays ignored |
//! | SIGUSR1, SIGUSR2 | nothing; they are logged. By default they would end the process without a drain |

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals of this process, caught from now on.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
    user1: Signal,
    user2: Signal,
}

impl Signals {
    /// Installs the handlers. Needs a Tokio runtime.
    pub fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: if hangup_is_ignored() { None } else { Some(signal(SignalKind::hangup())?) },
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    /// Waits for a signal that stops the program, and returns its name. The future may be dropped and this called again.
    pub async fn stop(&mut self) -> &'static str {
        loop {
            let ignored = tokio::select! {
                _ = self.terminate.recv() => return "SIGTERM",
                _ = self.interrupt.recv() => return "SIGINT",
                () = received(&mut self.hangup) => return "SIGHUP",
                _ = self.user1.recv() => "SIGUSR1",
                _ = self.user2.recv() => "SIGUSR2",
            };
            tracing::info!(signal = ignored, "signal ignored; SIGTERM stops this program");
        }
    }
}

async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => {
            signal.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Whether SIGHUP was ignored when this process started, as under `nohup`. Linux reports it in proc_pid_status(5). macOS
/// has no such file, and asking its kernel needs `unsafe`, so on macOS SIGHUP always stops the program.
fn hangup_is_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    ignores(&status, SignalKind::hangup().as_raw_value())
}

/// Whether the mask `SigIgn` of a `/proc/PID/status` has a signal.
fn ignores(status: &str, signal: i32) -> bool {
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    mask >> (signal - 1) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_read_from_the_kernels_mask() {
        let status = "Name:\tx\nSigIgn:\t0000000000001001\nSigCgt:\t0000000000000000\n";
        assert!(ignores(status, 1) && ignores(status, 13));
        assert!(!ignores(status, 2) && !ignores("", 1) && !ignores("SigIgn:\tnonsense\n", 1));
    }
}
