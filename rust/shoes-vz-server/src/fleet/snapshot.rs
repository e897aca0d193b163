//! The fleet at one moment, for operators and metrics.

use shoes_vz_proto::fleet::{AgentView, RunnerView};

#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Living runners, and ended ones when asked for; oldest request first.
    pub runners: Vec<RunnerView>,
    pub agents: Vec<AgentView>,
    /// How many requests wait for a slot.
    pub queued: usize,
    /// Set while the server cannot write its state: the reason, and what to do.
    pub unwritable: Option<String>,
}
