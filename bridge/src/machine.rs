//! Safe wrappers of VZCore's functions.

use std::{
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::sync::mpsc::UnboundedReceiver;

use crate::{
    codes::{Code, Failure},
    events::{self, Event, Live},
    ffi::ffi::{self, Outcome},
};

/// Numbers are not reused in a process, so that a late call cannot reach another machine.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Whether this build contains VZCore.
pub const fn available() -> bool {
    true
}

/// A VM of VZCore. Dropping it ends the VM in the background.
#[derive(Debug)]
pub struct Machine {
    id: u64,
}

/// Removes the receiver on drop, unless its machine was opened.
struct Listening(u64);

impl Drop for Listening {
    fn drop(&mut self) {
        events::forget(self.0);
    }
}

impl Machine {
    /// Creates a stopped VM from `spec` (VZCore's `MachineSpec`, as JSON), and the receiver of its events.
    pub fn open(spec: &str) -> Result<(Self, UnboundedReceiver<Event>), Failure> {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let receiver = events::listen(id);
        let listening = Listening(id);
        done(ffi::vz_open(id, spec))?;
        std::mem::forget(listening);
        Ok((Self { id }, receiver))
    }

    /// Boots the guest; returns when it is running.
    pub fn start(&self, deadline: Duration) -> Result<(), Failure> {
        done(ffi::vz_start(self.id, ms(deadline)))
    }

    pub fn pause(&self, deadline: Duration) -> Result<(), Failure> {
        done(ffi::vz_pause(self.id, ms(deadline)))
    }

    pub fn resume(&self, deadline: Duration) -> Result<(), Failure> {
        done(ffi::vz_resume(self.id, ms(deadline)))
    }

    /// Writes the paused guest's state to `path`.
    pub fn save(&self, path: &Path, deadline: Duration) -> Result<(), Failure> {
        done(ffi::vz_save(self.id, &text(path)?, ms(deadline)))
    }

    /// Restores a stopped machine to the state saved in `path`; it is paused then.
    pub fn restore(&self, path: &Path, deadline: Duration) -> Result<(), Failure> {
        done(ffi::vz_restore(self.id, &text(path)?, ms(deadline)))
    }

    /// Presses the power button. A macOS guest only shows a dialog.
    pub fn request_stop(&self, deadline: Duration) -> Result<(), Failure> {
        done(ffi::vz_request_stop(self.id, ms(deadline)))
    }

    /// Ends the VM without asking the guest; returns when it is stopped.
    pub fn stop(&self, deadline: Duration) -> Result<(), Failure> {
        done(ffi::vz_stop(self.id, ms(deadline)))
    }

    /// Connects to the guest's vsock port.
    pub fn connect(&self, port: u32, deadline: Duration) -> Result<OwnedFd, Failure> {
        let fd = checked(ffi::vz_connect(self.id, port, ms(deadline)))?.value;
        let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(|| Failure {
            code: Code::Internal,
            reason: format!("VZCore returned {fd} as a connection's descriptor"),
        })?;
        // SAFETY: this outcome transfers ownership of the descriptor: VZCore does not use it again.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Whether the configuration allows [`Machine::save`], with the framework's reason if it does not.
    pub fn save_support(&self) -> Result<(), Failure> {
        done(ffi::vz_save_support(self.id))
    }

    /// Opens a window with the guest's screen. Needs [`run_main_loop`] on the main thread.
    pub fn show_window(&self, title: &str, deadline: Duration) -> Result<(), Failure> {
        done(ffi::vz_show_window(self.id, title, ms(deadline)))
    }

    /// Ends the VM and waits until everything is released. Every other call fails then; closing twice is allowed.
    pub fn close(&self, deadline: Duration) -> Result<(), Failure> {
        let closed = done(ffi::vz_close(self.id, ms(deadline).max(1)));
        events::forget(self.id);
        closed
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        events::forget(self.id);
        // Deadline 0: Swift closes it in the background, unless it is closed already.
        drop(ffi::vz_close(self.id, 0));
    }
}

/// Clones the template's files into the bundle, an existing directory (`clonefile(2)`: they must be on one volume).
/// `os` is "macos" or "linux"; a larger `disk_bytes` makes the clone's disk that large.
pub fn clone_bundle(template: &Path, bundle: &Path, os: &str, disk_bytes: u64) -> Result<(), Failure> {
    done(ffi::vz_clone(&text(template)?, &text(bundle)?, os, disk_bytes))
}

/// The host's limits (VZCore's `HostLimits`), as JSON.
pub fn host() -> Result<String, Failure> {
    text_result(ffi::vz_host())
}

/// Describes a restore image (IPSW), as JSON; "" asks Apple for the latest that this host supports.
pub fn restore_image(path: &str, deadline: Duration) -> Result<String, Failure> {
    text_result(ffi::vz_restore_image(path, ms(deadline)))
}

/// Installs macOS from a restore image into a new template (VZCore's `InstallRequest`, as JSON), reporting to
/// `progress`. `started` gets the number for [`cancel_install`]. Blocks for the whole installation.
pub fn install(
    request: &str,
    started: impl FnOnce(u64),
    mut progress: impl FnMut(f64) + Send + 'static,
) -> Result<String, Failure> {
    let job = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut events = events::listen(job);
    let listening = Listening(job);
    let reporter = std::thread::spawn(move || {
        while let Some(event) = events.blocking_recv() {
            if let Event::Progress(done) = event {
                progress(done);
            }
        }
    });
    started(job);
    let outcome = text_result(ffi::vz_install(job, request));
    // Closes the channel, which ends the reporter.
    drop(listening);
    drop(reporter.join());
    outcome
}

/// Cancels an installation and removes what it created.
pub fn cancel_install(job: u64) -> Result<(), Failure> {
    done(ffi::vz_cancel_install(job))
}

/// Runs the process's main loop, which windows need, on the main thread. Does not return.
pub fn run_main_loop() {
    ffi::vz_run_main_loop();
}

pub fn live() -> Live {
    Live { machines: ffi::vz_machines(), listeners: events::listeners() }
}

fn checked(outcome: Outcome) -> Result<Outcome, Failure> {
    match Code::from_number(outcome.code) {
        Code::Ok => Ok(outcome),
        code => Err(Failure { code, reason: outcome.text }),
    }
}

fn done(outcome: Outcome) -> Result<(), Failure> {
    checked(outcome).map(drop)
}

fn text_result(outcome: Outcome) -> Result<String, Failure> {
    checked(outcome).map(|outcome| outcome.text)
}

fn ms(deadline: Duration) -> u64 {
    u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX)
}

fn text(path: &Path) -> Result<String, Failure> {
    path.to_str().map(str::to_owned).ok_or_else(|| Failure {
        code: Code::Io,
        reason: format!("the path {path:?} is not UTF-8, which Virtualization.framework's URLs need"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codes::State;

    #[test]
    fn both_sides_number_codes_and_states_alike() {
        for code in Code::ALL {
            assert_eq!(ffi::vz_code_name(*code as i32), code.name(), "{code:?}");
        }
        assert_eq!(ffi::vz_code_name(Code::ALL.len() as i32), "", "Swift has a code that Rust does not have");
        for state in State::ALL {
            assert_eq!(ffi::vz_code_name(1000 + *state as i32), state.name(), "{state:?}");
        }
        assert_eq!(
            ffi::vz_code_name(1000 + State::ALL.len() as i32),
            "",
            "Swift has a state that Rust does not have"
        );
    }
}
