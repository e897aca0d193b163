//! A runner's life:
//!
//! ```text
//! CREATING ─▶ BOOTING ─▶ SSH_READY ─▶ RUNNING ─▶ TEARING_DOWN ─▶ gone
//!     └──────────┴───────────┴───────────┴─▶ ERROR ─▶ TEARING_DOWN
//! ```
//! States are the Go implementation's (pkg/model/runner.go); stages say where the time goes within them.

/// The runner states on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    /// Its bundle is being made.
    Creating,
    /// Its VM starts.
    Booting,
    /// SSH answers; the setup script may run.
    SshReady,
    /// The Actions runner listens or works.
    Running,
    /// Being removed; nothing follows but the end.
    TearingDown,
    /// Failed; removal follows.
    Error,
}

impl State {
    /// Every state.
    pub const ALL: [Self; 6] =
        [Self::Creating, Self::Booting, Self::SshReady, Self::Running, Self::TearingDown, Self::Error];

    /// Whether a runner in this state may go to `next`. Staying is always allowed (a report repeated).
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

    /// True from SSH_READY on, as long as the runner works: what AddInstance waits for.
    pub fn is_ready(self) -> bool {
        matches!(self, Self::SshReady | Self::Running)
    }

    /// The label value Prometheus gets, the Go implementation's full enum name.
    pub fn metric_label(self) -> &'static str {
        match self {
            Self::Creating => "RUNNER_STATE_CREATING",
            Self::Booting => "RUNNER_STATE_BOOTING",
            Self::SshReady => "RUNNER_STATE_SSH_READY",
            Self::Running => "RUNNER_STATE_RUNNING",
            Self::TearingDown => "RUNNER_STATE_TEARING_DOWN",
            Self::Error => "RUNNER_STATE_ERROR",
        }
    }
}

/// Where a runner's time goes. `Ord` follows the way of a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// In the server's queue.
    Queue,
    /// A VM that is ready already becomes the runner's.
    Claim,
    /// Bundle and copy-on-write disk.
    Clone,
    /// VM process and hypervisor.
    Start,
    /// Until the guest agent's hello.
    Guest,
    /// A restored guest is made unlike every other.
    Personalize,
    /// Until SSH answers.
    Ssh,
    /// Setup script, until the runner listens.
    Setup,
    /// The runner listens or works.
    Job,
    /// Stop and removal.
    Teardown,
}

impl Stage {
    /// Every stage, in order.
    pub const ALL: [Self; 10] = [
        Self::Queue,
        Self::Claim,
        Self::Clone,
        Self::Start,
        Self::Guest,
        Self::Personalize,
        Self::Ssh,
        Self::Setup,
        Self::Job,
        Self::Teardown,
    ];

    /// Its short name, as in reports and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Claim => "claim",
            Self::Clone => "clone",
            Self::Start => "start",
            Self::Guest => "guest",
            Self::Personalize => "personalize",
            Self::Ssh => "ssh",
            Self::Setup => "setup",
            Self::Job => "job",
            Self::Teardown => "teardown",
        }
    }
}

/// How a runner's VM came to be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartPath {
    /// Its guest booted.
    Cold,
    /// Its guest goes on from a saved state.
    Restored,
    /// It was ready already.
    Hot,
}

impl StartPath {
    /// Every path, the slowest first.
    pub const ALL: [Self; 3] = [Self::Cold, Self::Restored, Self::Hot];

    /// As in reports and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cold => "cold",
            Self::Restored => "restored",
            Self::Hot => "hot",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_14_a_state_told_twice_is_no_wrong_transition() {
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
