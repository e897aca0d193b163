//! VZCore's functions, made safe.

use std::{
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::sync::mpsc::UnboundedReceiver;

use crate::{
    Live,
    codes::{Code, Failure},
    events::{self, Event},
    ffi::ffi::{self, Outcome},
};

/// Never used twice in a process, so that a late call meets nobody else's machine.
static NEXT: AtomicU64 = AtomicU64::new(1);

/// Whether VZCore is in this build.
pub const fn available() -> bool {
    true
}

/// One VM of VZCore's. Dropping it ends the VM, without waiting for that.
#[derive(Debug)]
pub struct Machine {
    id: u64,
}

/// Its listener is forgotten when its machine could not be opened.
struct Listening(u64);

impl Drop for Listening {
    fn drop(&mut self) {
        events::forget(self.0);
    }
}

impl Machine {
    /// A VM of `spec` (VZCore's `MachineSpec`, as JSON), stopped; and what happens to it from now on.
    pub fn open(spec: &str) -> Result<(Self, UnboundedReceiver<Event>), Failure> {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let receiver = events::listen(id);
        let listening = Listening(id);
        done(ffi::vz_open(id, spec))?;
        std::mem::forget(listening);
        Ok((Self { id }, receiver))
    }

    /// Boots the guest; returns when it runs.
    pub fn start(&self, deadline: Duration) -> Result<(), Failure> {
        done(ffi::vz_start(self.id, ms(deadline)))
    }

    /// Stops the guest's time.
    pub fn pause(&self, deadline: Duration) -> Result<(), Failure> {
        done(ffi::vz_pause(self.id, ms(deadline)))
    }

    /// Lets it go on.
    pub fn resume(&self, deadline: Duration) -> Result<(), Failure> {
        done(ffi::vz_resume(self.id, ms(deadline)))
    }

    /// Writes the paused guest's state to `path`.
    pub fn save(&self, path: &Path, deadline: Duration) -> Result<(), Failure> {
        done(ffi::vz_save(self.id, &text(path)?, ms(deadline)))
    }

    /// Puts a stopped machine into the state saved in `path`; it is paused then.
    pub fn restore(&self, path: &Path, deadline: Duration) -> Result<(), Failure> {
        done(ffi::vz_restore(self.id, &text(path)?, ms(deadline)))
    }

    /// Presses the power button. A macOS guest only shows a dialog.
    pub fn request_stop(&self, deadline: Duration) -> Result<(), Failure> {
        done(ffi::vz_request_stop(self.id, ms(deadline)))
    }

    /// Ends the VM, whatever the guest does; returns when it is stopped.
    pub fn stop(&self, deadline: Duration) -> Result<(), Failure> {
        done(ffi::vz_stop(self.id, ms(deadline)))
    }

    /// A connection to the guest's vsock port.
    pub fn connect(&self, port: u32, deadline: Duration) -> Result<OwnedFd, Failure> {
        let fd = value(ffi::vz_connect(self.id, port, ms(deadline)))?;
        let fd = RawFd::try_from(fd).ok().filter(|fd| *fd >= 0).ok_or_else(|| Failure {
            code: Code::Internal,
            message: format!("VZCore gave {fd} for a connection's descriptor"),
        })?;
        // SAFETY: VZCore hands a descriptor of its own over with this answer, and never uses it again.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    /// Whether the configuration allows [`Machine::save`], in the framework's words where not.
    pub fn save_support(&self) -> Result<(), Failure> {
        done(ffi::vz_save_support(self.id))
    }

    /// Opens a window with the guest's screen. Needs [`run_main_loop`] on the main thread.
    pub fn show_window(&self, title: &str, deadline: Duration) -> Result<(), Failure> {
        done(ffi::vz_show_window(self.id, title, ms(deadline)))
    }

    /// Ends the VM and waits until nothing of it is left. Every other call fails from then on; closing twice is fine.
    pub fn close(&self, deadline: Duration) -> Result<(), Failure> {
        let closed = done(ffi::vz_close(self.id, ms(deadline).max(1)));
        events::forget(self.id);
        closed
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        events::forget(self.id);
        // Deadline 0: Swift closes it in its own time, if it is there still.
        drop(ffi::vz_close(self.id, 0));
    }
}

/// Clones the template's files into the bundle, a directory that is there (`clonefile(2)`: they must be on one volume).
/// `os` is "macos" or "linux"; a larger `disk_bytes` makes the clone's disk that large.
pub fn clone_bundle(template: &Path, bundle: &Path, os: &str, disk_bytes: u64) -> Result<(), Failure> {
    done(ffi::vz_clone(&text(template)?, &text(bundle)?, os, disk_bytes))
}

/// The host's limits (VZCore's `HostLimits`), as JSON.
pub fn host() -> Result<String, Failure> {
    words(ffi::vz_host())
}

/// What a restore image (IPSW) is, as JSON; "" asks Apple for the latest this host supports.
pub fn restore_image(path: &str, deadline: Duration) -> Result<String, Failure> {
    words(ffi::vz_restore_image(path, ms(deadline)))
}

/// Installs macOS from a restore image into a new template (VZCore's `InstallRequest`, as JSON), telling its progress
/// to `progress`. `started` gets the number [`cancel_install`] takes. Blocks for the whole installation.
pub fn install(
    request: &str,
    started: impl FnOnce(u64),
    mut progress: impl FnMut(f64) + Send + 'static,
) -> Result<String, Failure> {
    let job = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut events = events::listen(job);
    let listening = Listening(job);
    let teller = std::thread::spawn(move || {
        while let Some(event) = events.blocking_recv() {
            if let Event::Progress(done) = event {
                progress(done);
            }
        }
    });
    started(job);
    let outcome = words(ffi::vz_install(job, request));
    // No more events: the teller ends.
    drop(listening);
    drop(teller.join());
    outcome
}

/// Ends an installation; what it has made is removed.
pub fn cancel_install(job: u64) -> Result<(), Failure> {
    done(ffi::vz_cancel_install(job))
}

/// Runs the process' main loop, which windows need: on the main thread, for ever.
pub fn run_main_loop() {
    ffi::vz_run_main_loop();
}

/// What is alive.
pub fn live() -> Live {
    Live { machines: ffi::vz_machines(), listeners: events::listeners() }
}

fn value(outcome: Outcome) -> Result<i64, Failure> {
    match Code::from_number(outcome.code) {
        Code::Ok => Ok(outcome.value),
        code => Err(Failure { code, message: outcome.message }),
    }
}

fn done(outcome: Outcome) -> Result<(), Failure> {
    value(outcome).map(drop)
}

fn words(outcome: Outcome) -> Result<String, Failure> {
    match Code::from_number(outcome.code) {
        Code::Ok => Ok(outcome.message),
        code => Err(Failure { code, message: outcome.message }),
    }
}

fn ms(deadline: Duration) -> u64 {
    u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX)
}

fn text(path: &Path) -> Result<String, Failure> {
    path.to_str().map(str::to_owned).ok_or_else(|| Failure {
        code: Code::Io,
        message: format!("the path {path:?} is not UTF-8, which Virtualization.framework's URLs need"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::State;

    #[test]
    fn both_sides_number_codes_and_states_alike() {
        for code in Code::ALL {
            assert_eq!(ffi::vz_code_name(*code as i32), code.name(), "{code:?}");
        }
        assert_eq!(ffi::vz_code_name(Code::ALL.len() as i32), "", "Swift has a code Rust has not");
        for state in State::ALL {
            assert_eq!(ffi::vz_code_name(1000 + *state as i32), state.name(), "{state:?}");
        }
        assert_eq!(ffi::vz_code_name(1000 + State::ALL.len() as i32), "", "Swift has a state Rust has not");
    }
}
