//! The calendar and chance: what a process takes from outside without asking anyone. Both are handed in, so that a
//! simulation can set one back and replay the other.

use std::{fmt, sync::Arc};

use jiff::Timestamp;
use uuid::Uuid;

/// See the module. Cheap to clone.
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
    /// The system's clock, and its source of randomness.
    pub fn real() -> Self {
        Self::new(Timestamp::now, Uuid::new_v4)
    }

    /// Others, for simulations.
    pub fn new(
        now: impl Fn() -> Timestamp + Send + Sync + 'static,
        uuid: impl Fn() -> Uuid + Send + Sync + 'static,
    ) -> Self {
        Self { now: Arc::new(now), uuid: Arc::new(uuid) }
    }

    /// Calendar time. It may be set back or forward at any moment: records, never deadlines, are kept by it.
    pub fn now(&self) -> Timestamp {
        (self.now)()
    }

    /// A fresh random UUID (version 4).
    pub fn uuid(&self) -> Uuid {
        (self.uuid)()
    }

    /// A fresh random byte.
    pub fn byte(&self) -> u8 {
        self.uuid().as_bytes()[0]
    }
}
