//! Failure codes and states, the same on both sides of the seam. A test asks Swift for its names.

use std::fmt;

macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $case:ident = $number:literal $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(i32)]
        pub enum $name { $($(#[$doc])* $case = $number,)* }

        impl $name {
            /// Every one, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$case),*];

            /// Its name on Swift's side.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$case => $text,)* }
            }

            fn known(number: i32) -> Option<Self> {
                match number { $($number => Some(Self::$case),)* _ => None }
            }
        }
    };
}

numbered! {
    /// Why something was not done: VZCore's `FailureCode`.
    Code {
        /// It was done.
        Ok = 0 "ok",
        /// The machine's settings are no valid JSON, or wrong.
        BadSpec = 1 "badSpec",
        /// The framework refuses the configuration.
        InvalidConfiguration = 2 "invalidConfiguration",
        /// Not in this state.
        InvalidState = 3 "invalidState",
        /// The host runs as many VMs as macOS allows (two with macOS guests).
        LimitExceeded = 4 "limitExceeded",
        /// The host's disk is full.
        DiskFull = 5 "diskFull",
        /// The disk image is damaged, in use, or no disk image.
        DiskImage = 6 "diskImage",
        /// This host or framework cannot do it.
        NotSupported = 7 "notSupported",
        /// The state could not be saved.
        SaveFailed = 8 "saveFailed",
        /// The saved state was refused.
        RestoreFailed = 9 "restoreFailed",
        /// The network.
        Network = 10 "network",
        /// A file operation failed.
        Io = 11 "io",
        /// A clone must be on its template's volume.
        DifferentVolume = 12 "differentVolume",
        /// What was to be made is there already.
        Exists = 13 "exists",
        /// Not within the deadline.
        TimedOut = 14 "timedOut",
        /// No machine of this number (any more).
        NoSuchMachine = 15 "noSuchMachine",
        /// Somebody cancelled it.
        Cancelled = 16 "cancelled",
        /// The installation of macOS failed.
        InstallFailed = 17 "installFailed",
        /// Nobody in the guest answers on that port.
        ConnectFailed = 18 "connectFailed",
        /// The framework's own error, or a code this version does not know.
        Internal = 19 "internalError",
    }
}

numbered! {
    /// A machine's state: `VZVirtualMachine.State`, with its numbers (SDK 26.5).
    State {
        /// Not started yet, or over.
        Stopped = 0 "stopped",
        /// The guest runs.
        Running = 1 "running",
        /// The guest's time stands still.
        Paused = 2 "paused",
        /// The framework gave up on it.
        Error = 3 "error",
        /// On its way to running.
        Starting = 4 "starting",
        /// On its way to paused.
        Pausing = 5 "pausing",
        /// On its way back to running.
        Resuming = 6 "resuming",
        /// On its way to stopped.
        Stopping = 7 "stopping",
        /// Its state is being written.
        Saving = 8 "saving",
        /// Its state is being read.
        Restoring = 9 "restoring",
    }
}

impl Code {
    pub(crate) fn from_number(number: i32) -> Self {
        Self::known(number).unwrap_or(Self::Internal)
    }
}

impl State {
    pub(crate) fn from_number(number: i32) -> Option<Self> {
        Self::known(number)
    }
}

/// What was not done, and why: one sentence for an operator, with the framework's own words and code in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// Which kind.
    pub code: Code,
    /// Worded.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_back_and_an_unknown_code_is_an_internal_error() {
        for code in Code::ALL {
            assert_eq!(Code::from_number(*code as i32), *code);
        }
        assert_eq!((Code::from_number(-1), Code::from_number(99)), (Code::Internal, Code::Internal));
        for state in State::ALL {
            assert_eq!(State::from_number(*state as i32), Some(*state));
        }
        assert_eq!(State::from_number(10), None);
    }
}
