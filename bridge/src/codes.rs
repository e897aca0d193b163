//! Failure codes and states, the same on both sides of the seam. A test compares them with Swift's.

macro_rules! numbered {
    ($(#[$meta:meta])* $name:ident { $($case:ident = $number:literal $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        #[repr(i32)]
        pub enum $name { $($case = $number,)* }

        impl $name {
            /// All, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$case),*];

            /// Its name in Swift.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$case => $text,)* }
            }

            pub(crate) fn known(number: i32) -> Option<Self> {
                match number { $($number => Some(Self::$case),)* _ => None }
            }
        }
    };
}

numbered! {
    /// The kind of a failure: VZCore's `FailureCode`, where each is described.
    Code {
        Ok = 0 "ok",
        BadSpec = 1 "badSpec",
        InvalidConfiguration = 2 "invalidConfiguration",
        InvalidState = 3 "invalidState",
        LimitExceeded = 4 "limitExceeded",
        DiskFull = 5 "diskFull",
        DiskImage = 6 "diskImage",
        NotSupported = 7 "notSupported",
        SaveFailed = 8 "saveFailed",
        RestoreFailed = 9 "restoreFailed",
        Network = 10 "network",
        Io = 11 "io",
        DifferentVolume = 12 "differentVolume",
        Exists = 13 "exists",
        TimedOut = 14 "timedOut",
        NoSuchMachine = 15 "noSuchMachine",
        Cancelled = 16 "cancelled",
        InstallFailed = 17 "installFailed",
        ConnectFailed = 18 "connectFailed",
        Internal = 19 "internalError",
    }
}

numbered! {
    /// A machine's state: `VZVirtualMachine.State`, with its numbers (SDK 26.5).
    State {
        Stopped = 0 "stopped",
        Running = 1 "running",
        Paused = 2 "paused",
        Error = 3 "error",
        Starting = 4 "starting",
        Pausing = 5 "pausing",
        Resuming = 6 "resuming",
        Stopping = 7 "stopping",
        Saving = 8 "saving",
        Restoring = 9 "restoring",
    }
}

impl Code {
    pub(crate) fn from_number(number: i32) -> Self {
        Self::known(number).unwrap_or(Self::Internal)
    }
}

/// A failed call: one sentence for an operator, with the framework's description and code in it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Failure {
    pub code: Code,
    pub reason: String,
}

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
            assert_eq!(State::known(*state as i32), Some(*state));
        }
        assert_eq!(State::known(10), None);
    }
}
