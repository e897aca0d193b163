//! The operator's settings for the fleet.

use std::time::Duration;

use super::{
    labels::{Accepted, UnknownLabels},
    requirements::RequirementTables,
};

#[derive(Debug, Clone)]
pub struct Policy {
    /// Templates and sizes by resource type and by label; what they leave open is the agent's default.
    pub requirement_tables: RequirementTables,
    /// Labels that no template has to offer.
    pub accepted_labels: Accepted,
    /// What to do about other labels that no agent offers.
    pub unknown_labels: UnknownLabels,
    /// How long a runner without a caller is kept.
    pub grace: Duration,
    /// How long an ended runner is remembered.
    pub tombstones: Duration,
    /// How long an agent may be offline before its runners are recorded as lost.
    pub agent_forget: Duration,
    /// Maximum lifetime of a VM; 0 leaves it to the agent.
    pub max_lifetime: Duration,
    /// Time allowed until SSH answers; 0 leaves it to the agent.
    pub start_deadline: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self {
            requirement_tables: RequirementTables::default(),
            accepted_labels: Accepted::default(),
            unknown_labels: UnknownLabels::Wait,
            grace: Duration::from_secs(30),
            tombstones: 7 * DAY,
            agent_forget: 7 * DAY,
            max_lifetime: Duration::ZERO,
            start_deadline: Duration::ZERO,
        }
    }
}
