//! Conversions between the model's values and their form on the wire.

use std::time::Duration;

use jiff::Timestamp;
use shoes_vz_model::{
    ResourceType,
    state::{Stage, StartPath, State},
};
use tonic::metadata::MetadataMap;

use crate::{agent as wire, myshoes};

pub fn time_to_wire(at: Timestamp) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

/// `None` when it is out of range.
pub fn time_from_wire(at: &prost_types::Timestamp) -> Option<Timestamp> {
    Timestamp::new(at.seconds, at.nanos).ok()
}

/// A value of the model becomes the one of the same name on the wire; the compiler checks that none is missing.
macro_rules! same_names {
    ($model:ident => $wire:path { $($case:ident),* $(,)? }) => {
        impl From<$model> for $wire {
            fn from(value: $model) -> Self {
                match value { $($model::$case => Self::$case,)* }
            }
        }
    };
}

same_names! { State => wire::RunnerState { Creating, Booting, SshReady, Running, TearingDown, Error } }
same_names! { Stage => wire::RunnerStage {
    Queue, Claim, Clone, Start, Guest, Personalize, Ssh, Setup, Job, Teardown,
} }
same_names! { StartPath => wire::StartPath { Cold, Restored, Hot } }
same_names! { ResourceType => myshoes::ResourceType {
    Nano, Micro, Small, Medium, Large, XLarge, XLarge2, XLarge3, XLarge4,
} }

/// `None` for UNSPECIFIED, or for a state this version does not know.
pub fn state_from_wire(number: i32) -> Option<State> {
    State::ALL.into_iter().find(|s| wire::RunnerState::from(*s) as i32 == number)
}

/// `None` for UNSPECIFIED, or for a path this version does not know.
pub fn start_path_from_wire(number: i32) -> Option<StartPath> {
    StartPath::ALL.into_iter().find(|p| wire::StartPath::from(*p) as i32 == number)
}

/// `None` for UNSPECIFIED (a Go agent), or for a stage this version does not know.
pub fn stage_from_wire(number: i32) -> Option<Stage> {
    Stage::ALL.into_iter().find(|s| wire::RunnerStage::from(*s) as i32 == number)
}

/// A caller's `grpc-timeout`: at most eight digits and a unit (gRPC over HTTP/2). `None` without one, or if it is not valid.
pub fn grpc_timeout(metadata: &MetadataMap) -> Option<Duration> {
    let text = metadata.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
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

    fn parse(text: &str) -> Option<Duration> {
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", text.parse().ok()?);
        grpc_timeout(&metadata)
    }

    #[test]
    fn every_unit_of_a_grpc_timeout_is_accepted() {
        for (text, nanos) in [
            ("2H", 7_200_000_000_000),
            ("3M", 180_000_000_000),
            ("4S", 4_000_000_000),
            ("5m", 5_000_000),
            ("6u", 6_000),
            ("7n", 7),
            ("99999999H", 359_999_996_400_000_000_000),
        ] {
            assert_eq!(parse(text).map(|d| d.as_nanos()), Some(nanos), "{text}");
        }
        for bad in ["", "S", "1", "1s", "123456789S", "+1S", "-1S", "1.5S"] {
            assert_eq!(parse(bad), None, "{bad:?}");
        }
    }
}
