//! Replaces `machine` in builds without VZCore: every call fails with the reason.

use std::{convert::Infallible, os::fd::OwnedFd, path::Path, time::Duration};

use tokio::sync::mpsc::UnboundedReceiver;

use crate::{
    codes::{Code, Failure},
    events::{self, Event, Live},
};

pub const fn available() -> bool {
    false
}

/// Cannot exist in this build.
#[derive(Debug)]
pub struct Machine(Infallible);

fn unsupported<T>() -> Result<T, Failure> {
    Err(Failure {
        code: Code::NotSupported,
        reason:
            "this build has no VZCore (Virtualization.framework's part); on Linux build with the feature \
                  \"swift\" (`make setup-swift`), or use --hypervisor qemu"
                .into(),
    })
}

impl Machine {
    pub fn open(_: &str) -> Result<(Self, UnboundedReceiver<Event>), Failure> {
        unsupported()
    }
}

/// No machine exists, so these are never called.
macro_rules! never_called {
    ($($name:ident($($argument:ty),*) -> $output:ty;)*) => {
        impl Machine {
            $(pub fn $name(&self, $(_: $argument),*) -> Result<$output, Failure> {
                match self.0 {}
            })*
        }
    };
}

never_called! {
    start(Duration) -> ();
    pause(Duration) -> ();
    resume(Duration) -> ();
    save(&Path, Duration) -> ();
    restore(&Path, Duration) -> ();
    request_stop(Duration) -> ();
    stop(Duration) -> ();
    connect(u32, Duration) -> OwnedFd;
    save_support() -> ();
    show_window(&str, Duration) -> ();
    close(Duration) -> ();
}

pub fn clone_bundle(_: &Path, _: &Path, _: &str, _: u64) -> Result<(), Failure> {
    unsupported()
}

pub fn host() -> Result<String, Failure> {
    unsupported()
}

pub fn restore_image(_: &str, _: Duration) -> Result<String, Failure> {
    unsupported()
}

pub fn install(_: &str, _: impl FnOnce(u64), _: impl FnMut(f64) + Send + 'static) -> Result<String, Failure> {
    unsupported()
}

pub fn cancel_install(_: u64) -> Result<(), Failure> {
    unsupported()
}

/// Windows need VZCore: there is nothing to run.
pub fn run_main_loop() {}

pub fn live() -> Live {
    Live { machines: 0, listeners: events::listeners() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_swift_says_so_and_what_to_do() {
        let failure = Machine::open("{}").unwrap_err();
        assert_eq!(failure.code, Code::NotSupported);
        for word in ["VZCore", "make setup-swift", "--hypervisor qemu"] {
            assert!(failure.reason.contains(word), "{failure}");
        }
        assert!(!available());
        assert_eq!(
            clone_bundle(Path::new("a"), Path::new("b"), "macos", 0).unwrap_err().code,
            Code::NotSupported
        );
    }
}
