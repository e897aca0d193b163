//! An agent: what it told of itself, and the stream it is on.

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
    schedule::{Candidate, Link},
    types::{SessionId, Shape},
};

/// An operator's decision that an agent gets no new runners. Those it has go on.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cordon {
    /// For people; may be empty.
    pub reason: String,
    /// When it was made.
    pub since: Timestamp,
}

/// One agent; everything but `session` and `fallbacks` is durable.
#[derive(Debug, Clone)]
pub struct Agent {
    /// Stable on its disk.
    pub id: AgentId,
    /// For people.
    pub hostname: String,
    /// Its slots and size.
    pub capacity: wire::AgentCapacity,
    /// Absent: a Go agent.
    pub info: Option<wire::AgentInfo>,
    /// When it was last heard of.
    pub last_seen: Timestamp,
    /// What jobs can ask it for; from `info`.
    pub offers: Offers,
    /// Set while it gets no new runners.
    pub cordon: Option<Cordon>,
    /// The Sync stream it is on.
    pub session: Option<Session>,
    /// Saved states it could not use, as counted so far.
    pub fallbacks: Fallbacks,
}

/// How commands reach an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Pushed at once, with ids, acknowledged.
    Push,
    /// A Go agent: one for each of its messages.
    Tick,
}

/// What happened on one Sync stream.
#[derive(Debug, Clone)]
pub struct Session {
    /// Which.
    pub id: SessionId,
    /// Creates sent on it.
    pub creates: HashSet<RunnerId>,
    /// Deletes sent on it, by their command ids.
    pub deletes: HashMap<RunnerId, String>,
    /// Runners it lists that should not be.
    pub strays: BTreeSet<RunnerId>,
    /// Why the agent takes no runners for now, in its words; "" = it does.
    pub takes_none: String,
    /// Its hot VMs.
    pub hot: Hot,
    /// The runners it lists that are not over.
    present: BTreeSet<RunnerId>,
    /// How often what it says of itself has changed.
    changes: u64,
    /// Deletes to be sent again: not before when, and how often they were refused.
    not_before: HashMap<RunnerId, (Duration, u32)>,
    sent: u64,
}

/// How far an agent was heard: equal as long as it says nothing new of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    session: SessionId,
    changes: u64,
}

/// What a message says of the agent itself that was not so before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Nothing.
    None,
    /// It has other runners: it may take what it refused.
    Runners,
    /// It takes none from now on, or takes them again, or has another reason.
    TakesNone,
}

/// That an agent refused a runner for its own sake, so that another may take it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// How far it had been heard: once it says something new, it may be asked again.
    pub heard: Option<Heard>,
    /// Its words.
    pub words: String,
}

/// A Go agent acknowledges no delete: it is asked again this much later.
const ASK_GO_AGAIN: Duration = Duration::from_secs(60);

impl Session {
    /// A stream just opened.
    pub fn new(id: SessionId) -> Self {
        Self {
            id,
            creates: HashSet::new(),
            deletes: HashMap::new(),
            strays: BTreeSet::new(),
            takes_none: String::new(),
            hot: Hot::default(),
            present: BTreeSet::new(),
            changes: 0,
            not_before: HashMap::new(),
            sent: 0,
        }
    }

    /// What a message says of the agent itself. What it refused so far it may take after a change.
    pub fn hear(&mut self, takes_none: String, present: BTreeSet<RunnerId>) -> News {
        let news = match (self.takes_none == takes_none, self.present == present) {
            (true, true) => News::None,
            (true, false) => News::Runners,
            (false, _) => News::TakesNone,
        };
        self.changes += u64::from(news != News::None);
        (self.takes_none, self.present) = (takes_none, present);
        news
    }

    /// How far it was heard.
    pub fn heard(&self) -> Heard {
        Heard { session: self.id, changes: self.changes }
    }

    /// The runner's create was refused: it may be sent again, should the runner come back.
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

    /// A delete is sent: gives it its command id.
    pub fn delete_sent(&mut self, id: RunnerId, style: Style, now: Duration) -> String {
        self.sent += 1;
        let command_id = format!("delete-{id}-{}-{}", self.id.0, self.sent);
        self.deletes.insert(id, command_id.clone());
        let tries = self.not_before.get(&id).map_or(0, |(_, tries)| *tries);
        let again = match style {
            Style::Tick => now + ASK_GO_AGAIN,
            Style::Push => Duration::MAX,
        };
        self.not_before.insert(id, (again, tries));
        command_id
    }

    /// The agent has the runner no longer; should it list it again, that is a new matter.
    pub fn forget(&mut self, id: RunnerId) {
        self.deletes.remove(&id);
        self.not_before.remove(&id);
    }

    /// Takes over which runners are there and should not be.
    pub fn set_strays(&mut self, strays: BTreeSet<RunnerId>) {
        let gone: Vec<RunnerId> = self.strays.difference(&strays).copied().collect();
        gone.into_iter().for_each(|id| self.forget(id));
        self.strays = strays;
    }

    /// A delete was refused: it is sent again after 1 s, later ones after up to a minute. Gives when.
    pub fn refused(&mut self, id: RunnerId, now: Duration) -> Duration {
        let (due, tries) = self.not_before.entry(id).or_default();
        *due = now + Duration::from_secs(1 << (*tries).min(6)).min(Duration::from_secs(60));
        *tries += 1;
        *due
    }
}

impl Agent {
    /// How commands reach it.
    pub fn style(&self) -> Style {
        match &self.info {
            Some(info) if info.protocol >= 1 => Style::Push,
            _ => Style::Tick,
        }
    }

    /// Whether its stream stands.
    pub fn link(&self) -> Link {
        if self.session.is_some() { Link::Online } else { Link::Offline }
    }

    /// As the scheduler sees it, with `taken` slots in use, of which it has not told `promised` yet.
    pub fn candidate(&self, taken: usize, promised: Vec<Shape>) -> Candidate<'_> {
        Candidate {
            id: self.id,
            hostname: &self.hostname,
            link: self.link(),
            cordon: self.cordon.as_ref().map(|c| c.reason.as_str()),
            takes_none: self.takes_none(),
            heard: self.session.as_ref().map(Session::heard),
            slots: self.capacity.max_runners,
            taken: u32::try_from(taken).unwrap_or(u32::MAX),
            cpus: self.capacity.cpu_cores,
            memory_bytes: self.capacity.memory_bytes,
            offers: &self.offers,
            hot: self.session.as_ref().map(|s| &s.hot),
            promised,
        }
    }

    /// For operators.
    pub fn status(&self) -> wire::AgentStatus {
        match self.link() {
            Link::Online => wire::AgentStatus::Online,
            Link::Offline => wire::AgentStatus::Offline,
        }
    }

    /// Why it takes no runners, in its own words; "" when it does, or is not there.
    fn takes_none(&self) -> &str {
        self.session.as_ref().map_or("", |s| s.takes_none.as_str())
    }

    /// For messages.
    pub fn status_word(&self) -> &'static str {
        match self.link() {
            Link::Online => "online",
            Link::Offline => "offline",
        }
    }

    /// For operators.
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
            unschedulable_reason: self.takes_none().to_owned(),
            hot: self.session.as_ref().map(|s| s.hot.shown().to_vec()).unwrap_or_default(),
            restore_fallbacks: self.fallbacks.shown(),
            cordon: self.cordon.as_ref().map(|c| fleet::Cordon {
                reason: c.reason.clone(),
                since: Some(convert::time_to_wire(c.since)),
            }),
        }
    }
}
