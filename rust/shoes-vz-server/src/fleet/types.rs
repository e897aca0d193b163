//! What goes into and comes out of the fleet's core.

use std::{fmt, sync::Arc, time::Duration};

use jiff::Timestamp;
use shoes_vz_model::{AgentId, Ambient, CloudId, ResourceType, RunnerId, RunnerName, Stage, StartPath};
use shoes_vz_proto::{agent as wire, fleet::AgentView};

use super::{agent::Agent, runner::Runner};

/// The moment an event is handled at: deadlines are measured by `mono` (never set back), records by `wall`.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// Time since the core began.
    pub mono: Duration,
    /// Calendar time.
    pub wall: Timestamp,
}

/// One call that waits for an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WaiterId(pub u64);

/// One Sync stream; a later stream has a greater id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub u64);

/// A setup script. It holds secrets, so it shows only its length.
#[derive(Clone, PartialEq, Eq)]
pub struct Script(Arc<str>);

impl Script {
    /// Takes the text over.
    pub fn new(text: impl Into<Arc<str>>) -> Self {
        Self(text.into())
    }

    /// The text itself: for the agent and the store only.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Script({} bytes)", self.0.len())
    }
}

/// CPUs, memory and disk a resource type stands for; 0 = the agent's default, for each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Shape {
    /// Virtual CPUs.
    pub cpus: u32,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Bytes of disk.
    pub disk_bytes: u64,
}

impl Shape {
    /// Of each size the larger one.
    pub fn at_least(self, other: Self) -> Self {
        Self {
            cpus: self.cpus.max(other.cpus),
            memory_bytes: self.memory_bytes.max(other.memory_bytes),
            disk_bytes: self.disk_bytes.max(other.disk_bytes),
        }
    }
}

/// AddInstance, parsed.
#[derive(Debug, Clone)]
pub struct AddRequest {
    /// Unique among the living.
    pub name: RunnerName,
    /// What runs in the guest.
    pub script: Script,
    /// Its size.
    pub resource_type: ResourceType,
    /// As asked for.
    pub labels: Vec<String>,
    /// For the logs, end to end.
    pub request_id: String,
}

/// Ids for a runner that may come to be; drawn outside, so that the core stays a function.
#[derive(Debug, Clone, Copy)]
pub struct Fresh {
    /// For the runner.
    pub runner: RunnerId,
    /// For myshoes.
    pub cloud: CloudId,
}

impl Fresh {
    /// Random ones.
    pub fn draw(ambient: &Ambient) -> Self {
        Self { runner: ambient.uuid().into(), cloud: ambient.uuid().into() }
    }
}

/// RegisterAgent, parsed.
#[derive(Debug, Clone)]
pub struct Registration {
    /// The agent's own id; a Go agent has none.
    pub agent_id: Option<AgentId>,
    /// For an agent without one.
    pub fresh: AgentId,
    /// For people.
    pub hostname: String,
    /// What it can hold.
    pub capacity: wire::AgentCapacity,
    /// Absent from a Go agent.
    pub info: Option<wire::AgentInfo>,
}

/// What an operator decides about an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    /// It gets no new runners. The reason is for people; "" keeps the one there is.
    Cordon(String),
    /// It gets runners again.
    Uncordon,
}

/// What happens to the fleet.
#[derive(Debug)]
pub enum Event {
    /// AddInstance.
    Add {
        /// Who waits.
        waiter: WaiterId,
        /// What for.
        request: AddRequest,
        /// How long the caller waits in all.
        patience: Duration,
        /// Ids, should a new runner be needed.
        fresh: Fresh,
    },
    /// DeleteInstance.
    Delete {
        /// Who waits.
        waiter: WaiterId,
        /// Which one.
        cloud_id: CloudId,
        /// How long the caller waits in all.
        patience: Duration,
    },
    /// A caller went away before it was answered.
    CallerGone {
        /// Which one.
        waiter: WaiterId,
    },
    /// An answer "here is your runner" did not reach its caller.
    Undelivered {
        /// The runner told of.
        runner: RunnerId,
    },
    /// RegisterAgent.
    Register {
        /// Who waits.
        waiter: WaiterId,
        /// What it says of itself.
        registration: Box<Registration>,
    },
    /// CordonAgent, UncordonAgent, or the first half of DrainAgent.
    Order {
        /// Who waits.
        waiter: WaiterId,
        /// An agent's id or hostname, as given.
        agent: String,
        /// What is to be done.
        order: Order,
    },
    /// A message on a Sync stream; the first one opens the session.
    Synced {
        /// The stream.
        session: SessionId,
        /// The agent it says it is.
        agent: AgentId,
        /// Everything it has.
        request: Box<wire::SyncRequest>,
    },
    /// A Sync stream ended.
    SessionLost {
        /// The stream.
        session: SessionId,
        /// In words.
        why: String,
    },
}

/// What the outside has to do, in this order and after [`Turn::writes`] are durable.
#[derive(Debug)]
pub enum Effect {
    /// Answer a caller of AddInstance.
    Added(WaiterId, Result<Added, Refusal>),
    /// Answer a caller of DeleteInstance: the runner is gone.
    Deleted(WaiterId, Result<RunnerId, Refusal>),
    /// Answer a caller of RegisterAgent.
    Registered(WaiterId, AgentId),
    /// Answer an operator's order.
    Ordered(WaiterId, Result<Box<AgentView>, Refusal>),
    /// Send on a Sync stream.
    Send(SessionId, Box<wire::SyncResponse>),
    /// End a Sync stream.
    Close(SessionId, Closed),
    /// Count something.
    Observe(Observation),
}

/// Why the server ends a Sync stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Closed {
    /// The agent must register first.
    Unregistered,
    /// The agent has opened another one.
    Replaced,
    /// It takes nothing any more.
    Stuck,
    /// The server ends.
    Stopping,
}

/// A runner as AddInstance answers it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Added {
    /// Its id inside shoes-vz.
    pub runner_id: RunnerId,
    /// Its id for myshoes.
    pub cloud_id: CloudId,
    /// May be empty.
    pub ip_address: String,
    /// What it got.
    pub resource_type: ResourceType,
}

/// Why a call failed, in words for an operator. gRPC codes are chosen at the edge.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Can never work.
    #[error("{0}")]
    Invalid(String),
    /// No slot until the caller's deadline.
    #[error("{0}")]
    Exhausted(String),
    /// The runner failed.
    #[error("{0}")]
    Failed(String),
    /// Somebody deleted it meanwhile.
    #[error("{0}")]
    Aborted(String),
    /// Not done before the caller's deadline.
    #[error("{0}")]
    Deadline(String),
    /// The agent is away.
    #[error("{0}")]
    Unavailable(String),
    /// The server cannot write its state for now, and what was asked for needs that.
    #[error("{0}")]
    Unwritable(String),
    /// Never known.
    #[error("{0}")]
    NotFound(String),
    /// Several things are meant by it.
    #[error("{0}")]
    Ambiguous(String),
    /// The server ends.
    #[error("the server is stopping; try again")]
    Stopping,
}

/// What a turn is to be remembered by, before anything of it is told to anyone.
#[derive(Debug, Clone)]
pub enum Write {
    /// Insert or replace a runner's row; its script is apart.
    Runner(Box<Runner>),
    /// Keep a script until it is delivered.
    Script(RunnerId, Script),
    /// Blank a script.
    ForgetScript(RunnerId),
    /// A tombstone is over.
    RemoveRunner(RunnerId),
    /// Insert or replace an agent's row.
    Agent(Box<Agent>),
    /// An agent is forgotten.
    RemoveAgent(AgentId),
}

/// Everything one event leads to.
#[derive(Debug, Default)]
pub struct Turn {
    /// To be made durable first.
    pub writes: Vec<Write>,
    /// Then to be done, in order.
    pub effects: Vec<Effect>,
    /// Runners whose view changed.
    pub changed: Vec<RunnerId>,
    /// Agents whose view changed, or that are there no more.
    pub agents: Vec<AgentId>,
    /// Whether why queued runners wait may have changed.
    pub waits: Waits,
}

/// Whether why queued runners wait may have changed for all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Waits {
    /// It did not.
    #[default]
    AsBefore,
    /// An agent came, went, or takes runners otherwise than before.
    Otherwise,
}

/// What metrics are fed with.
#[derive(Debug, Clone, PartialEq)]
pub enum Observation {
    /// A stage is over.
    Stage(Stage, Duration),
    /// From the request to SSH.
    Startup(Duration),
    /// The same, by how the VM came to be ready.
    Started(StartPath, Duration),
    /// A job is over.
    Job(Duration),
    /// A runner ended.
    Ended(wire::EndKind),
    /// A command had been sent on an earlier stream already.
    Resent,
    /// An agent refused a create command.
    CreateRefused,
    /// An agent refused a create command for its own sake: the runner is queued again.
    TriedElsewhere,
}
