//! A runner's life:
//!
//! ```text
//! CREATING ─▶ BOOTING ─▶ SSH_READY ─▶ RUNNING ─▶ TEARING_DOWN ─▶ gone
//!     └──────────┴───────────┴───────────┴─▶ ERROR ─▶ TEARING_DOWN
//! ```
//! States are the Go implementation's (pkg/model/runner.go); stages say where the time goes within them.

use shoes_vz_proto::agent as wire;

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
        wire::RunnerState::from(self).as_str_name()
    }
}

impl From<State> for wire::RunnerState {
    fn from(state: State) -> Self {
        match state {
            State::Creating => Self::Creating,
            State::Booting => Self::Booting,
            State::SshReady => Self::SshReady,
            State::Running => Self::Running,
            State::TearingDown => Self::TearingDown,
            State::Error => Self::Error,
        }
    }
}

/// `None` for UNSPECIFIED, or for a state this version does not know.
pub fn state_from_wire(number: i32) -> Option<State> {
    Some(match wire::RunnerState::try_from(number).ok()? {
        wire::RunnerState::Unspecified => return None,
        wire::RunnerState::Creating => State::Creating,
        wire::RunnerState::Booting => State::Booting,
        wire::RunnerState::SshReady => State::SshReady,
        wire::RunnerState::Running => State::Running,
        wire::RunnerState::TearingDown => State::TearingDown,
        wire::RunnerState::Error => State::Error,
    })
}

/// Where a runner's time goes. `Ord` follows the way of a runner.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
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
    Renew,
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
        Self::Renew,
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
            Self::Renew => "renew",
            Self::Ssh => "ssh",
            Self::Setup => "setup",
            Self::Job => "job",
            Self::Teardown => "teardown",
        }
    }
}

impl From<Stage> for wire::RunnerStage {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Queue => Self::Queue,
            Stage::Claim => Self::Claim,
            Stage::Clone => Self::Clone,
            Stage::Start => Self::Start,
            Stage::Guest => Self::Guest,
            Stage::Renew => Self::Renew,
            Stage::Ssh => Self::Ssh,
            Stage::Setup => Self::Setup,
            Stage::Job => Self::Job,
            Stage::Teardown => Self::Teardown,
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

impl From<StartPath> for wire::StartPath {
    fn from(path: StartPath) -> Self {
        match path {
            StartPath::Cold => Self::Cold,
            StartPath::Restored => Self::Restored,
            StartPath::Hot => Self::Hot,
        }
    }
}

/// `None` for UNSPECIFIED, or for a path this version does not know.
pub fn start_path_from_wire(number: i32) -> Option<StartPath> {
    StartPath::ALL.into_iter().find(|p| wire::StartPath::from(*p) as i32 == number)
}

/// `None` for UNSPECIFIED (a Go agent), or for a stage this version does not know.
pub fn stage_from_wire(number: i32) -> Option<Stage> {
    Stage::ALL.into_iter().find(|s| wire::RunnerStage::from(*s) as i32 == number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [State; 6] =
        [State::Creating, State::Booting, State::SshReady, State::Running, State::TearingDown, State::Error];

    #[test]
    fn states_and_stages_read_back_from_the_wire() {
        for s in ALL {
            assert_eq!(state_from_wire(wire::RunnerState::from(s) as i32), Some(s));
        }
        for s in Stage::ALL {
            assert_eq!(stage_from_wire(wire::RunnerStage::from(s) as i32), Some(s));
        }
        for p in StartPath::ALL {
            assert_eq!(start_path_from_wire(wire::StartPath::from(p) as i32), Some(p));
        }
        assert_eq!(start_path_from_wire(0), None);
        assert_eq!((state_from_wire(0), state_from_wire(99), stage_from_wire(0)), (None, None, None));
    }

    #[test]
    fn fault_14_a_state_told_twice_is_no_wrong_transition() {
        for s in ALL {
            assert!(s.may_become(s), "{s:?}");
        }
    }

    #[test]
    fn nothing_leaves_teardown_and_an_error_only_tears_down() {
        for s in ALL {
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

    #[test]
    fn metric_labels_are_the_go_implementations() {
        assert_eq!(State::Booting.metric_label(), "RUNNER_STATE_BOOTING");
    }
}
