//! What the fleet reports to the metrics.

use std::time::Duration;

use shoes_vz_model::{Stage, StartPath};
use shoes_vz_proto::agent as wire;

/// One event that is counted or measured.
#[derive(Debug, Clone, PartialEq)]
pub enum Observation {
    /// A stage has ended.
    Stage(Stage, Duration),
    /// Time from the request to SSH.
    Startup(Duration),
    /// The same time, by the path on which the VM became ready.
    Started(StartPath, Duration),
    /// A job has ended.
    Job(Duration),
    /// A runner has ended.
    Ended(wire::EndKind),
    /// A command that was sent on an earlier stream is sent again.
    Resent,
    /// An agent refused a create command for good.
    CreateRefused,
    /// An agent could not take a runner, which is queued again.
    Requeued,
}
