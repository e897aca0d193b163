//! An agent: what it reports about itself, and its Sync stream.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    time::Duration,
};

use jiff::Timestamp;
use shoes_vz_model::{AgentId, RunnerId};
use shoes_vz_proto::{
    agent as wire, convert,
    fleet::{self, AgentView},
};

use super::{
    hot::{Fallbacks, Hot},
    labels::Offers,
    values::SessionId,
};

/// An operator's decision that an agent gets no new runners. Those it has continue.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cordon {
    /// May be empty.
    pub reason: String,
    pub since: Timestamp,
}

/// One agent; everything but `session` and `fallbacks` is durable.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Kept on the agent's disk.
    pub id: AgentId,
    pub hostname: String,
    pub capacity: wire::AgentCapacity,
    /// `None`: a Go agent.
    pub info: Option<wire::AgentInfo>,
    pub last_seen: Timestamp,
    /// What jobs can ask it for; from `info`.
    pub offers: Offers,
    /// Set while it gets no new runners.
    pub cordon: Option<Cordon>,
    /// Its Sync stream; `None` while it is offline.
    pub session: Option<Session>,
    /// Saved states that it could not use, counted so far.
    pub fallbacks: Fallbacks,
}

/// Whether an agent has a Sync stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    Online,
    Offline,
}

/// How commands reach an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CommandMode {
    /// Pushed at once, with ids, acknowledged.
    Push,
    /// A Go agent: one command in reply to each of its messages.
    Poll,
}

/// What happened on one Sync stream.
#[derive(Debug, Clone, Default)]
pub struct Session {
    pub id: SessionId,
    /// Runners whose create was sent on it.
    pub creates: HashSet<RunnerId>,
    /// Command ids of the deletes sent on it.
    pub deletes: HashMap<RunnerId, String>,
    /// Runners that it lists and should not have.
    pub strays: BTreeSet<RunnerId>,
    /// Why the agent accepts no runners for now, as it reports; "" while it accepts them.
    pub unschedulable_reason: String,
    pub hot: Hot,
    /// The runners it lists that have not ended.
    present: BTreeSet<RunnerId>,
    /// How often its report about itself has changed.
    changes: u64,
    /// Deletes to repeat: the earliest time, and how often the agent refused.
    not_before: HashMap<RunnerId, (Duration, u32)>,
    sent: u64,
}

/// Version of an agent's report about itself: equal as long as the agent reports nothing new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentRevision {
    session: SessionId,
    changes: u64,
}

/// How a message changes what the server knows about the agent itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AgentChange {
    None,
    /// It has other runners, so it may accept what it refused before.
    Runners,
    /// It accepts runners again, accepts none from now on, or has another reason.
    Schedulability,
}

/// An agent's refusal of a runner that another agent may take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRefusal {
    /// The agent's revision at that time: once it changes, the agent may be asked again.
    pub revision: Option<AgentRevision>,
    pub reason: String,
}

/// A Go agent acknowledges no delete, so the delete is repeated after this time.
const REPEAT_DELETE_TO_GO: Duration = Duration::from_secs(60);

impl Session {
    /// A stream that was just opened.
    pub fn new(id: SessionId) -> Self {
        Self { id, ..Self::default() }
    }

    /// Stores what a message says about the agent itself. After a change the agent may accept what it refused before.
    pub fn update(&mut self, unschedulable_reason: String, present: BTreeSet<RunnerId>) -> AgentChange {
        let change = match (self.unschedulable_reason == unschedulable_reason, self.present == present) {
            (true, true) => AgentChange::None,
            (true, false) => AgentChange::Runners,
            (false, _) => AgentChange::Schedulability,
        };
        self.changes += u64::from(change != AgentChange::None);
        (self.unschedulable_reason, self.present) = (unschedulable_reason, present);
        change
    }

    pub fn revision(&self) -> AgentRevision {
        AgentRevision { session: self.id, changes: self.changes }
    }

    /// The runner's create was refused. It may be sent again if the runner returns to this agent.
    pub fn create_refused(&mut self, id: RunnerId) {
        self.creates.remove(&id);
        self.forget(id);
    }

    /// Whether a delete may be sent at `now`.
    pub fn may_delete(&self, id: RunnerId, now: Duration) -> bool {
        match self.not_before.get(&id) {
            Some((due, _)) => *due <= now,
            None => !self.deletes.contains_key(&id),
        }
    }

    /// Notes that a delete is sent, and gives it its command id.
    pub fn delete_sent(&mut self, id: RunnerId, mode: CommandMode, now: Duration) -> String {
        self.sent += 1;
        let command_id = format!("delete-{id}-{}-{}", self.id.0, self.sent);
        self.deletes.insert(id, command_id.clone());
        let tries = self.not_before.get(&id).map_or(0, |(_, tries)| *tries);
        let again = match mode {
            CommandMode::Poll => now + REPEAT_DELETE_TO_GO,
            CommandMode::Push => Duration::MAX,
        };
        self.not_before.insert(id, (again, tries));
        command_id
    }

    /// The agent no longer has the runner. If it lists the runner again, its deletes start over.
    pub fn forget(&mut self, id: RunnerId) {
        self.deletes.remove(&id);
        self.not_before.remove(&id);
    }

    /// Replaces the set of runners that the agent lists and should not have.
    pub fn set_strays(&mut self, strays: BTreeSet<RunnerId>) {
        let removed: Vec<RunnerId> = self.strays.difference(&strays).copied().collect();
        removed.into_iter().for_each(|id| self.forget(id));
        self.strays = strays;
    }

    /// A delete was refused: it is repeated after 1 s, and after up to a minute once it was refused more often. Returns
    /// the time of the next attempt.
    pub fn delete_refused(&mut self, id: RunnerId, now: Duration) -> Duration {
        let (due, tries) = self.not_before.entry(id).or_default();
        *due = now + Duration::from_secs(1 << (*tries).min(6)).min(Duration::from_secs(60));
        *tries += 1;
        *due
    }
}

impl Agent {
    pub fn mode(&self) -> CommandMode {
        match &self.info {
            Some(info) if info.protocol >= 1 => CommandMode::Push,
            _ => CommandMode::Poll,
        }
    }

    pub fn link(&self) -> Link {
        if self.session.is_some() { Link::Online } else { Link::Offline }
    }

    pub fn status(&self) -> wire::AgentStatus {
        match self.link() {
            Link::Online => wire::AgentStatus::Online,
            Link::Offline => wire::AgentStatus::Offline,
        }
    }

    /// Why it accepts no runners, as it reports; "" while it accepts them, or is offline.
    pub fn unschedulable_reason(&self) -> &str {
        self.session.as_ref().map_or("", |s| s.unschedulable_reason.as_str())
    }

    /// The status as error messages name it.
    pub fn status_label(&self) -> &'static str {
        match self.link() {
            Link::Online => "online",
            Link::Offline => "offline",
        }
    }

    /// The agent as operators see it, with `taken` slots in use.
    pub fn view(&self, taken: usize) -> AgentView {
        AgentView {
            agent: Some(wire::Agent {
                agent_id: self.id.to_string(),
                hostname: self.hostname.clone(),
                capacity: Some(self.capacity),
                status: self.status().into(),
            }),
            info: self.info.clone(),
            runners: u32::try_from(taken).unwrap_or(u32::MAX),
            last_seen: Some(convert::time_to_wire(self.last_seen)),
            unschedulable_reason: self.unschedulable_reason().to_owned(),
            hot: self.session.as_ref().map(|s| s.hot.list().to_vec()).unwrap_or_default(),
            restore_fallbacks: self.fallbacks.totals(),
            cordon: self.cordon.as_ref().map(|c| fleet::Cordon {
                reason: c.reason.clone(),
                since: Some(convert::time_to_wire(c.since)),
            }),
        }
    }
}
