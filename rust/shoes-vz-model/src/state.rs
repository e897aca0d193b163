//! A runner's life:
//!
//! ```text
//! CREATING ─▶ BOOTING ─▶ SSH_READY ─▶ RUNNING ─▶ TEARING_DOWN ─▶ removed
//!     └──────────┴───────────┴───────────┴─▶ ERROR ─▶ TEARING_DOWN
//! ```
//! The states are the Go implementation's (pkg/model/runner.go). The stages divide a runner's time more finely.

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    Creating,
    Booting,
    /// SSH answers; the setup script may run.
    SshReady,
    /// The Actions runner listens or works.
    Running,
    /// VM and bundle are being removed. No other state follows.
    TearingDown,
    /// The runner failed. Only TEARING_DOWN follows.
    Error,
}

impl State {
    pub const ALL: [Self; 6] =
        [Self::Creating, Self::Booting, Self::SshReady, Self::Running, Self::TearingDown, Self::Error];

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

    /// The value of the metric label: the name in the Go implementation's enum.
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

/// The parts of a runner's time. `Ord` is their order in a runner's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Stage {
    /// In the server's queue.
    Queue,
    /// The runner takes over a hot VM.
    Claim,
    /// The bundle and its copy-on-write disk are created.
    Clone,
    /// VM process and hypervisor start.
    Start,
    /// Until the guest agent's hello.
    Guest,
    /// A restored guest gets its own identity.
    Personalize,
    /// Until SSH answers.
    Ssh,
    /// From the setup script's start until the Actions runner listens.
    Setup,
    /// The Actions runner listens or works.
    Job,
    Teardown,
}

impl Stage {
    /// In their order.
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

    /// The name in reports and metric labels.
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

/// How a runner's VM became ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartPath {
    Cold,
    /// The guest was restored from a saved state.
    Restored,
    /// The runner took over a hot VM.
    Hot,
}

impl StartPath {
    /// The slowest first.
    pub const ALL: [Self; 3] = [Self::Cold, Self::Restored, Self::Hot];

    /// The name in reports and metric labels.
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
