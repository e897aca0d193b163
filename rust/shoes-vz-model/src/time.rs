//! Between `jiff::Timestamp` (in files and code) and protobuf's.

use jiff::Timestamp;
use prost_types::Timestamp as Wire;

/// To protobuf.
pub fn to_wire(at: Timestamp) -> Wire {
    Wire { seconds: at.as_second(), nanos: at.subsec_nanosecond() }
}

/// From protobuf; `None` when it is outside the calendar.
pub fn from_wire(at: &Wire) -> Option<Timestamp> {
    Timestamp::new(at.seconds, at.nanos).ok()
}
