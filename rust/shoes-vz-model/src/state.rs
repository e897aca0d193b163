//! A runner's life:
//!
//! ```text
//! CREATING ─▶ BOOTING ─▶ SSH_READY ─▶ RUNNING ─▶ TEARING_DOWN ─▶ removed
//!     └──────────┴───────────┴───────────┴─▶ ERROR ─▶ TEARING_DOWN
//! ```
//! The states are the Go implementation's (pkg/model/runner.go). The stages divide a runner's time more finely.

use crate::named_enum;

named_enum! {
    /// The names are those of the Go implementation's enum, for metric labels.
    pub enum State {
        Creating = "RUNNER_STATE_CREATING",
        Booting = "RUNNER_STATE_BOOTING",
        /// SSH answers; the setup script may run.
        SshReady = "RUNNER_STATE_SSH_READY",
        /// The Actions runner listens or works.
        Running = "RUNNER_STATE_RUNNING",
        /// VM and bundle are being removed. No other state follows.
        TearingDown = "RUNNER_STATE_TEARING_DOWN",
        /// The runner failed. Only TEARING_DOWN follows.
        Error = "RUNNER_STATE_ERROR",
    }
}

impl State {
    /// Whether a runner in this state may go to `next`. Staying is always allowed: a report may be repeated.
    pub fn may_become(self, next: Self) -> bool {
        use State::{Booting, Creating, Error, Running, SshReady, TearingDown};
        match (self, next) {
            (a, b) if a == b => true,
            (TearingDown, _) => false,
            (_, TearingDown) => true,
            (Error, _) => false,
            (_, Error) => true,
            // A fast guest passes states between two reports, so forward jumps are allowed; never backward.
            (Creating, Booting | SshReady | Running)
            | (Booting, SshReady | Running)
            | (SshReady, Running) => true,
            _ => false,
        }
    }

    /// Whether SSH is ready and the runner has not failed: AddInstance waits for this.
    pub fn is_ready(self) -> bool {
        matches!(self, Self::SshReady | Self::Running)
    }
}

named_enum! {
    /// The parts of a runner's time, in the order of a runner's life, with their names in reports and metric labels.
    #[derive(serde::Serialize)]
    #[serde(rename_all = "lowercase")]
    pub enum Stage {
        /// In the server's queue.
        Queue = "queue",
        /// The runner takes over a hot VM.
        Claim = "claim",
        /// The bundle and its copy-on-write disk are created.
        Clone = "clone",
        /// VM process and hypervisor start.
        Start = "start",
        /// Until the guest agent's hello.
        Guest = "guest",
        /// A restored guest gets its own identity.
        Personalize = "personalize",
        /// Until SSH answers.
        Ssh = "ssh",
        /// From the setup script's start until the Actions runner listens.
        Setup = "setup",
        /// The Actions runner listens or works.
        Job = "job",
        Teardown = "teardown",
    }
}

named_enum! {
    /// How a runner's VM became ready, the slowest first, with the names in reports and metric labels.
    #[derive(serde::Serialize, serde::Deserialize)]
    #[serde(rename_all = "lowercase")]
    pub enum StartPath {
        Cold = "cold",
        /// The guest was restored from a saved state.
        Restored = "restored",
        /// The runner took over a hot VM.
        Hot = "hot",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_14_a_state_reported_twice_is_a_valid_transition() {
        for s in State::ALL {
            assert!(s.may_become(s), "{s:?}");
        }
    }

    #[test]
    fn nothing_leaves_teardown_and_an_error_only_tears_down() {
        for s in State::ALL {
            assert_eq!(State::TearingDown.may_become(s), s == State::TearingDown);
            assert_eq!(State::Error.may_become(s), matches!(s, State::Error | State::TearingDown));
        }
    }

    #[test]
    fn a_runner_never_goes_backward() {
        assert!(!State::Running.may_become(State::SshReady));
        assert!(!State::SshReady.may_become(State::Booting));
        assert!(State::Creating.may_become(State::Running));
    }
}
