//! The calendar clock and the random source. They are injected, so that a simulation can set the clock and repeat the
//! random values.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use uuid::Uuid;

/// Cheap to clone.
#[derive(Clone)]
pub struct Ambient {
    now: Arc<dyn Fn() -> Timestamp + Send + Sync>,
    uuid: Arc<dyn Fn() -> Uuid + Send + Sync>,
}

impl fmt::Debug for Ambient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ambient")
    }
}

impl Ambient {
    /// The system's clock and random source.
    pub fn real() -> Self {
        Self::new(Timestamp::now, Uuid::new_v4)
    }

    /// For simulations.
    pub fn new(
        now: impl Fn() -> Timestamp + Send + Sync + 'static,
        uuid: impl Fn() -> Uuid + Send + Sync + 'static,
    ) -> Self {
        Self { now: Arc::new(now), uuid: Arc::new(uuid) }
    }

    /// Calendar time. It may be set back or forward at any moment: use it for records, never for deadlines.
    pub fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// A new random UUID (version 4).
    pub fn uuid(&self) -> Uuid {
        (self.uuid)()
    }

    pub fn byte(&self) -> u8 {
        self.uuid().as_bytes()[0]
    }
}
