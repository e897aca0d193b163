//! What goes into the fleet's core ([`Event`]), and what comes out of it ([`Decision`]).

use std::time::Duration;

use shoes_vz_model::{AgentId, CloudId, ResourceType, RunnerId, RunnerName};
use shoes_vz_proto::{agent as wire, fleet::AgentView};

use super::{
    agent::Agent,
    observation::Observation,
    runner::{Added, Runner},
    values::{NewIds, Script, SessionId, WaiterId},
};

/// AddInstance, parsed.
#[derive(Debug, Clone)]
pub struct AddRequest {
    /// Unique among living runners.
    pub name: RunnerName,
    pub script: Script,
    pub resource_type: ResourceType,
    pub labels: Vec<String>,
    /// For the logs, end to end.
    pub request_id: String,
}

/// RegisterAgent, parsed.
#[derive(Debug, Clone)]
pub struct Registration {
    /// The agent's persistent id; a Go agent has none.
    pub agent_id: Option<AgentId>,
    /// The id for an agent without one.
    pub new_id: AgentId,
    pub hostname: String,
    pub capacity: wire::AgentCapacity,
    /// A Go agent sends none.
    pub info: Option<wire::AgentInfo>,
}

/// An operator's decision about an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CordonOrder {
    /// Schedule no new runners on it, for this reason; "" keeps the reason that it has.
    Cordon(String),
    Uncordon,
}

/// What happens to the fleet. `timeout` is how long the caller waits in all.
#[derive(Debug)]
pub enum Event {
    /// AddInstance. The ids are for a new runner, if one is needed.
    Add { waiter: WaiterId, request: AddRequest, timeout: Duration, new_ids: NewIds },
    /// DeleteInstance.
    Delete { waiter: WaiterId, cloud_id: CloudId, timeout: Duration },
    /// A caller disconnected before it was answered.
    CallerDisconnected { waiter: WaiterId },
    /// The answer that a runner is ready did not reach its caller.
    Undelivered { runner: RunnerId },
    /// RegisterAgent.
    Register { waiter: WaiterId, registration: Box<Registration> },
    /// CordonAgent, UncordonAgent, or the first half of DrainAgent. `agent` is an id or a hostname, as given.
    Cordon { waiter: WaiterId, agent: String, order: CordonOrder },
    /// A message on a Sync stream with the agent's whole state; the first message opens the session.
    Synced { session: SessionId, agent: AgentId, request: Box<wire::SyncRequest> },
    /// A Sync stream ended.
    SessionLost { session: SessionId, reason: String },
}

/// What the owner does, in this order, once [`Decision::writes`] are durable.
#[derive(Debug)]
pub enum Effect {
    /// Answer an AddInstance call.
    Added(WaiterId, Result<Added, Refusal>),
    /// Answer a DeleteInstance call: the runner has ended.
    Deleted(WaiterId, Result<RunnerId, Refusal>),
    /// Answer a RegisterAgent call.
    Registered(WaiterId, AgentId),
    /// Answer an operator's order.
    Cordoned(WaiterId, Result<Box<AgentView>, Refusal>),
    /// Send a command on a Sync stream.
    Send(SessionId, Box<wire::SyncResponse>),
    /// Close a Sync stream.
    Close(SessionId, Closed),
    Observe(Observation),
}

/// Why the server closes a Sync stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// The agent must register first.
    Unregistered,
    /// The agent has opened a newer stream.
    Replaced,
    /// Too many commands wait for the agent.
    Backlogged,
    Stopping,
}

/// Why a call failed, as an operator reads it. The edge chooses the gRPC codes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The request can never succeed.
    #[error("{0}")]
    Invalid(String),
    /// No slot was free before the caller's deadline.
    #[error("{0}")]
    Exhausted(String),
    /// The runner failed.
    #[error("{0}")]
    Failed(String),
    /// The runner was deleted meanwhile.
    #[error("{0}")]
    Aborted(String),
    /// Not done before the caller's deadline.
    #[error("{0}")]
    Deadline(String),
    /// The agent is offline.
    #[error("{0}")]
    Unavailable(String),
    /// The request needs a write, and the server cannot write its state for now.
    #[error("{0}")]
    Unwritable(String),
    #[error("{0}")]
    NotFound(String),
    /// Several agents match.
    #[error("{0}")]
    Ambiguous(String),
    #[error("the server is stopping; try again")]
    Stopping,
}

/// One row to make durable before any effect of the same decision is performed.
#[derive(Debug, Clone)]
pub enum Write {
    /// Insert or replace a runner's row; its script is stored separately.
    Runner(Box<Runner>),
    /// Keep a script until it is delivered.
    Script(RunnerId, Script),
    /// Erase a script.
    ForgetScript(RunnerId),
    /// Remove a tombstone.
    RemoveRunner(RunnerId),
    /// Insert or replace an agent's row.
    Agent(Box<Agent>),
    RemoveAgent(AgentId),
}

/// Everything that follows from one event.
#[derive(Debug, Default)]
pub struct Decision {
    /// To be made durable first.
    pub writes: Vec<Write>,
    /// To be performed afterwards, in order.
    pub effects: Vec<Effect>,
    /// Runners whose view changed.
    pub changed: Vec<RunnerId>,
    /// Agents whose view changed, or that were forgotten.
    pub agents: Vec<AgentId>,
    pub queue_reasons: QueueReasons,
}

/// Whether the reasons why runners are queued may have changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum QueueReasons {
    #[default]
    Unchanged,
    /// An agent came, left, or accepts runners on other terms.
    Changed,
}
