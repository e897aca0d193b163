//! Conversions between the model's values and their form on the wire.

use jiff::Timestamp;
use shoes_vz_model::{
    ResourceType,
    state::{Stage, StartPath, State},
};

use crate::{agent as wire, myshoes};

pub fn time_to_wire(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

/// `None` when it is out of range.
pub fn time_from_wire(at: &prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(at.seconds, at.nanos).ok()
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

impl From<Stage> for wire::RunnerStage {
    fn from(stage: Stage) -> Self {
        match stage {
            Stage::Queue => Self::Queue,
            Stage::Claim => Self::Claim,
            Stage::Clone => Self::Clone,
            Stage::Start => Self::Start,
            Stage::Guest => Self::Guest,
            Stage::Personalize => Self::Personalize,
            Stage::Ssh => Self::Ssh,
            Stage::Setup => Self::Setup,
            Stage::Job => Self::Job,
            Stage::Teardown => Self::Teardown,
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

impl From<ResourceType> for myshoes::ResourceType {
    fn from(value: ResourceType) -> Self {
        match value {
            ResourceType::Nano => Self::Nano,
            ResourceType::Micro => Self::Micro,
            ResourceType::Small => Self::Small,
            ResourceType::Medium => Self::Medium,
            ResourceType::Large => Self::Large,
            ResourceType::XLarge => Self::XLarge,
            ResourceType::XLarge2 => Self::XLarge2,
            ResourceType::XLarge3 => Self::XLarge3,
            ResourceType::XLarge4 => Self::XLarge4,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_and_stages_read_back_from_the_wire() {
        for s in State::ALL {
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
    fn resource_types_read_back_from_the_wire() {
        for t in ResourceType::ALL {
            assert_eq!(ResourceType::try_from(myshoes::ResourceType::from(t) as i32), Ok(t));
        }
    }

    #[test]
    fn metric_labels_are_the_go_implementations() {
        for s in State::ALL {
            assert_eq!(s.as_str(), wire::RunnerState::from(s).as_str_name());
        }
    }
}
