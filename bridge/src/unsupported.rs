//! Replaces `machine` in builds without VZCore: every call fails with the reason.

use std::{os::fd::OwnedFd, path::Path, time::Duration};

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
pub struct Machine(Never);

#[derive(Debug, Clone, Copy)]
enum Never {}

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

    pub fn start(&self, _: Duration) -> Result<(), Failure> {
        match self.0 {}
    }

    pub fn pause(&self, _: Duration) -> Result<(), Failure> {
        match self.0 {}
    }

    pub fn resume(&self, _: Duration) -> Result<(), Failure> {
        match self.0 {}
    }

    pub fn save(&self, _: &Path, _: Duration) -> Result<(), Failure> {
        match self.0 {}
    }

    pub fn restore(&self, _: &Path, _: Duration) -> Result<(), Failure> {
        match self.0 {}
    }

    pub fn request_stop(&self, _: Duration) -> Result<(), Failure> {
        match self.0 {}
    }

    pub fn stop(&self, _: Duration) -> Result<(), Failure> {
        match self.0 {}
    }

    pub fn connect(&self, _: u32, _: Duration) -> Result<OwnedFd, Failure> {
        match self.0 {}
    }

    pub fn save_support(&self) -> Result<(), Failure> {
        match self.0 {}
    }

    pub fn show_window(&self, _: &str, _: Duration) -> Result<(), Failure> {
        match self.0 {}
    }

    pub fn close(&self, _: Duration) -> Result<(), Failure> {
        match self.0 {}
    }
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
