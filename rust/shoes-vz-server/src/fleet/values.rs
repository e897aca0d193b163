//! Small values that the whole fleet shares: ids, moments, sizes and scripts.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use shoes_vz_model::{Ambient, CloudId, RunnerId};

/// The moment at which an event is handled. Deadlines are measured by `mono`, which is never set back; records by `wall`.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Time since the core was restored.
    pub mono: Duration,
    pub wall: Timestamp,
}

/// One call that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaiterId(pub u64);

/// One Sync stream; a later stream has a greater id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// Ids for a runner that may be created. They are drawn outside the core, which stays a function.
#[derive(Debug, Clone, Copy)]
pub struct NewIds {
    pub runner: RunnerId,
    pub cloud: CloudId,
}

impl NewIds {
    /// Random ids.
    pub fn draw(ambient: &Ambient) -> Self {
        Self { runner: ambient.uuid().into(), cloud: ambient.uuid().into() }
    }
}

/// A setup script. It holds secrets, so `Debug` shows only its length.
#[derive(Clone, PartialEq, Eq)]
pub struct Script(Arc<str>);

impl Script {
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the agent and the store only.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Script({} bytes)", self.0.len())
    }
}

/// The size of a VM; 0 stands for the agent's default, in each field.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct VmSize {
    pub cpus: u32,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

impl VmSize {
    /// The larger value of each field.
    pub fn at_least(self, other: Self) -> Self {
        Self {
            cpus: self.cpus.max(other.cpus),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
            disk_bytes: self.disk_bytes.max(other.disk_bytes),
        }
    }
}
