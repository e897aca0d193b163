//! The fleet as a value: agents, runners, the queue. No I/O and no clock: an [`Event`] and a [`Now`] go in, a [`Turn`]
//! comes out, whose writes must be durable before its effects are let go.
//!
//! What always holds (checked by [`Core::broken_invariant`] after every event in the tests):
//! - of all runners with one name at most one is wanted, and at most one has a slot;
//! - no VM is made for a name whose runner ran a job and finished;
//! - a slot is promised only when the agent is connected, not cordoned, takes runners, and has one free;
//! - the queue is served in the order of arrival, among those that fit and whose callers still wait;
//! - a runner that nobody waits for and nobody was given has a moment at which it goes.

mod calls;
mod cordon;
mod elsewhere;
mod end;
mod served;
mod stream;
mod unwritable;
mod views;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use jiff::Timestamp;
use shoes_vz_model::{AgentId, CloudId, RunnerId, RunnerName, Stage};

pub use views::Snapshot;

use crate::repeats::Repeats;

use super::{
    agent::Agent,
    demand::Demands,
    labels::{Accepted, UnknownLabels},
    runner::{Delivery, Phase, Placed, Runner},
    schedule::{self, Choice, Want, WhyNot},
    types::{Effect, Event, Now, Observation, SessionId, Shape, Turn, WaiterId, Waits, Write},
};

/// What the operator decided.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Templates and sizes by resource type and label; absent = the agent's default.
    pub demands: Demands,
    /// Labels no template has to offer.
    pub accepted_labels: Accepted,
    /// What is done about others that nobody offers.
    pub unknown_labels: UnknownLabels,
    /// How long a runner outlives its last caller.
    pub grace: Duration,
    /// How long an ended runner is remembered.
    pub tombstones: Duration,
    /// How long an agent may be away before it and its runners are given up.
    pub agent_forget: Duration,
    /// How long a VM may live; 0 = the agent's default.
    pub max_lifetime: Duration,
    /// How long until SSH must answer; 0 = the agent's default.
    pub start_deadline: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        const DAY: Duration = Duration::from_secs(24 * 60 * 60);
        Self {
            demands: Demands::default(),
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

/// How often tombstones and agents long gone are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

/// See the module.
#[derive(Debug)]
pub struct Core {
    policy: Policy,
    agents: BTreeMap<AgentId, Agent>,
    runners: HashMap<RunnerId, Runner>,
    by_cloud: HashMap<CloudId, RunnerId>,
    /// The wanted runner of each name: queued, or placed and not dying.
    current: HashMap<RunnerName, RunnerId>,
    /// Every placed runner by name: a name's next VM waits until the last one is gone.
    placed_names: HashMap<RunnerName, Vec<RunnerId>>,
    /// Names whose runner ran a job and finished, as long as its tombstone is kept.
    served: HashMap<RunnerName, RunnerId>,
    /// Every placed runner by agent: the slots in use.
    by_agent: HashMap<AgentId, BTreeSet<RunnerId>>,
    sessions: HashMap<SessionId, AgentId>,
    /// In the order of arrival.
    queue: Vec<RunnerId>,
    /// Arrivals so far.
    arrivals: u64,
    waiters: HashMap<WaiterId, Waiter>,
    timers: BTreeSet<(Duration, Timer)>,
    /// Set while the store cannot be written: why, and what to do.
    unwritable: Option<String>,
    /// Log lines an agent or a caller can have repeated at will.
    repeats: Repeats,
    turn: Turn,
    dirty: BTreeSet<RunnerId>,
    reschedule: bool,
}

#[derive(Debug, Clone, Copy)]
struct Waiter {
    runner: RunnerId,
    call: Call,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    Add,
    Delete,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Deadline(WaiterId),
    Grace(RunnerId),
    Failed(RunnerId),
    Redelete(AgentId),
    Sweep,
}

/// Whom a look at the queue is for.
type Refused = Vec<(String, WhyNot)>;

impl Core {
    /// A fleet as it was stored. Nobody waits, nobody is connected.
    pub fn restore(policy: Policy, agents: Vec<Agent>, mut runners: Vec<Runner>, now: Now) -> Self {
        let mut core = Self {
            policy,
            agents: agents.into_iter().map(|a| (a.id, a)).collect(),
            runners: HashMap::new(),
            by_cloud: HashMap::new(),
            current: HashMap::new(),
            placed_names: HashMap::new(),
            served: HashMap::new(),
            by_agent: HashMap::new(),
            sessions: HashMap::new(),
            queue: Vec::new(),
            arrivals: 0,
            waiters: HashMap::new(),
            timers: BTreeSet::from([(now.mono, Timer::Sweep)]),
            unwritable: None,
            repeats: Repeats::default(),
            turn: Turn::default(),
            dirty: BTreeSet::new(),
            reschedule: false,
        };
        runners.sort_by_key(|r| (r.requested_at, r.id));
        for mut runner in runners {
            let id = runner.id;
            runner.live.began = now.mono;
            runner.live.before =
                now.wall.duration_since(runner.requested_at).try_into().unwrap_or(Duration::ZERO);
            runner.live.queued_since = now.mono;
            runner.live.arrival = core.next_arrival();
            // It may have been: that it was placed is stored before the command is sent.
            runner.live.sent_before = true;
            runner.live.found = !matches!(runner.phase, Phase::Queued(_));
            core.by_cloud.insert(runner.cloud_id, id);
            match &runner.phase {
                Phase::Queued(_) => core.queue.push(id),
                Phase::Placed(placed) => core.hold_slot(placed.agent, &runner.name, id),
                Phase::Ended(_) => {}
            }
            if runner.has_served() {
                core.served.insert(runner.name.clone(), id);
            }
            if !runner.is_dying() {
                core.current.insert(runner.name.clone(), id);
            }
            core.runners.insert(id, runner);
            core.mind_unattended(id, now);
        }
        core
    }

    /// Takes one event in.
    pub fn handle(&mut self, event: Event, now: Now) -> Turn {
        match event {
            Event::Add { waiter, request, patience, fresh } => {
                self.on_add(waiter, request, patience, fresh, now)
            }
            Event::Delete { waiter, cloud_id, patience } => self.on_delete(waiter, cloud_id, patience, now),
            Event::CallerGone { waiter } => self.on_caller_gone(waiter, now),
            Event::Undelivered { runner } => self.on_undelivered(runner, now),
            Event::Register { waiter, registration } => self.on_register(waiter, *registration, now),
            Event::Order { waiter, agent, order } => self.on_order(waiter, &agent, order, now),
            Event::Synced { session, agent, request } => self.on_synced(session, agent, *request, now),
            Event::SessionLost { session, why } => self.on_session_lost(session, &why, now),
        }
        self.close_turn(now)
    }

    /// The next moment, by the monotonic clock, at which [`Core::on_time`] has something to do.
    pub fn next_timer(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Does what is due.
    pub fn on_time(&mut self, now: Now) -> Turn {
        while let Some((at, timer)) = self.timers.first().copied().filter(|(at, _)| *at <= now.mono) {
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Deadline(waiter) => self.on_deadline(waiter),
                Timer::Grace(id) => self.on_grace_over(id, at, now),
                Timer::Failed(id) => self.on_failed_for_long(id, at, now),
                Timer::Redelete(agent) => self.dispatch(agent, now),
                Timer::Sweep => self.sweep(now),
            }
            // A caller that was answered may have been the last one.
            self.mind_all_touched(now);
        }
        self.close_turn(now)
    }

    fn close_turn(&mut self, now: Now) -> Turn {
        self.mind_all_touched(now);
        if std::mem::take(&mut self.reschedule) {
            self.schedule(now);
        }
        let mut turn = std::mem::take(&mut self.turn);
        for id in std::mem::take(&mut self.dirty) {
            if let Some(runner) = self.runners.get(&id) {
                turn.writes.push(Write::Runner(Box::new(runner.clone())));
            }
        }
        turn.changed.dedup();
        turn.agents.sort_unstable();
        turn.agents.dedup();
        turn
    }

    fn next_arrival(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    fn effect(&mut self, effect: Effect) {
        self.turn.effects.push(effect);
    }

    fn observe(&mut self, observation: Observation) {
        self.turn.effects.push(Effect::Observe(observation));
    }

    /// To be written and shown again.
    fn touch(&mut self, id: RunnerId) {
        self.dirty.insert(id);
        self.turn.changed.push(id);
    }

    /// An agent takes runners otherwise than before: whoever waits may be served, or waits for another reason.
    fn agent_changed(&mut self, id: AgentId) {
        self.turn.agents.push(id);
        self.turn.waits = Waits::Otherwise;
        self.reschedule = true;
    }

    fn hold_slot(&mut self, agent: AgentId, name: &RunnerName, id: RunnerId) {
        self.turn.agents.push(agent);
        self.by_agent.entry(agent).or_default().insert(id);
        self.placed_names.entry(name.clone()).or_default().push(id);
    }

    fn free_slot(&mut self, agent: AgentId, name: &RunnerName, id: RunnerId) {
        self.turn.agents.push(agent);
        if let Some(held) = self.by_agent.get_mut(&agent) {
            held.remove(&id);
            if held.is_empty() {
                self.by_agent.remove(&agent);
            }
        }
        if let Some(held) = self.placed_names.get_mut(name) {
            held.retain(|other| *other != id);
            if held.is_empty() {
                self.placed_names.remove(name);
            }
        }
        self.reschedule = true;
    }

    fn taken(&self, agent: AgentId) -> usize {
        self.by_agent.get(&agent).map_or(0, BTreeSet::len)
    }

    fn candidates(&self) -> Vec<schedule::Candidate<'_>> {
        self.agents.values().map(|a| a.candidate(self.taken(a.id), self.promised(a.id))).collect()
    }

    /// The shapes of an agent's runners it has not told of yet.
    fn promised(&self, agent: AgentId) -> Vec<Shape> {
        let held = self.by_agent.get(&agent).into_iter().flatten();
        let untold = held
            .filter_map(|id| self.runners.get(id))
            .filter(|r| matches!(&r.phase, Phase::Placed(placed) if placed.report.is_none()));
        untold.map(|r| r.shape).collect()
    }

    fn want<'a>(&'a self, runner: &'a Runner) -> Want<'a> {
        Want {
            labels: &runner.labels,
            shape: runner.shape,
            template: &runner.template,
            accepted: &self.policy.accepted_labels,
            unknown: self.policy.unknown_labels,
            refused_by: &runner.live.refused_by,
        }
    }

    /// Serves the queue as far as slots go.
    fn schedule(&mut self, now: Now) {
        if self.unwritable.is_some() {
            return;
        }
        let mut served: Vec<(RunnerId, Choice)> = Vec::new();
        {
            let mut candidates = self.candidates();
            let mut free: u64 = candidates.iter().map(|c| u64::from(c.free())).sum();
            for id in &self.queue {
                if free == 0 {
                    break;
                }
                let Some(runner) = self.runners.get(id) else { continue };
                if runner.live.adders.is_empty() || self.placed_names.contains_key(&runner.name) {
                    continue;
                }
                let Ok(choice) = schedule::choose(&candidates, self.want(runner)) else { continue };
                free -= 1;
                if let Some(chosen) = candidates.iter_mut().find(|c| c.id == choice.agent) {
                    chosen.taken += 1;
                    chosen.promised.push(runner.shape);
                }
                served.push((*id, choice));
            }
        }
        let mut agents = BTreeSet::new();
        for (id, choice) in served {
            agents.insert(choice.agent);
            self.place(id, choice, now);
        }
        for agent in agents {
            self.dispatch(agent, now);
        }
    }

    fn place(&mut self, id: RunnerId, choice: Choice, now: Now) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        let Phase::Queued(script) = &runner.phase else { return };
        let queued_for = runner.wanted_for(now);
        // Of one that an agent refused only the time since then is new.
        let waited = match runner.live.queued_since == runner.live.began {
            true => queued_for,
            false => now.mono.saturating_sub(runner.live.queued_since),
        };
        runner.phase = Phase::Placed(Placed {
            agent: choice.agent,
            template: choice.template,
            queued_for,
            delivery: Delivery::Pending(script.clone()),
            report: None,
            doom: None,
        });
        let name = runner.name.clone();
        tracing::info!(runner_id = %id, runner_name = %name, request_id = %runner.request_id,
            agent_id = %choice.agent, queue_ms = queued_for.as_millis() as u64, "runner placed");
        self.queue.retain(|other| *other != id);
        self.hold_slot(choice.agent, &name, id);
        self.observe(Observation::Stage(Stage::Queue, waited));
        self.touch(id);
    }

    fn sweep(&mut self, now: Now) {
        self.timers.insert((now.mono + SWEEP_EVERY, Timer::Sweep));
        if self.unwritable.is_some() {
            return;
        }
        let over = |at: Timestamp, keep: Duration| {
            now.wall.duration_since(at)
                > jiff::SignedDuration::try_from(keep).unwrap_or(jiff::SignedDuration::MAX)
        };
        let lost: Vec<AgentId> = self
            .agents
            .values()
            .filter(|a| a.session.is_none() && over(a.last_seen, self.policy.agent_forget))
            // That it is cordoned must not be forgotten: only its runners are given up.
            .filter(|a| a.cordon.is_none() || self.taken(a.id) > 0)
            .map(|a| a.id)
            .collect();
        for id in lost {
            self.give_up_agent(id, "it was away for too long", now);
        }
        let past: Vec<RunnerId> = self
            .runners
            .values()
            .filter(|r| matches!(&r.phase, Phase::Ended(e) if over(e.at, self.policy.tombstones)))
            .map(|r| r.id)
            .collect();
        for id in past {
            if let Some(runner) = self.runners.remove(&id) {
                self.forget_served(&runner);
                self.by_cloud.remove(&runner.cloud_id);
                self.turn.writes.push(Write::RemoveRunner(id));
            }
        }
    }

    /// Runners that still are to come, or there.
    pub fn living(&self) -> usize {
        self.runners.values().filter(|r| r.is_alive()).count()
    }

    /// Calls that wait for an answer.
    pub fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// The first invariant that does not hold; for tests and simulation.
    pub fn broken_invariant(&self) -> Option<String> {
        for (name, ids) in &self.placed_names {
            let wanted = ids.iter().filter(|id| self.runners.get(id).is_some_and(|r| !r.is_dying())).count();
            if wanted > 1 {
                return Some(format!("{wanted} VMs are wanted for {name}"));
            }
        }
        for runner in self.runners.values() {
            let current = self.current.get(&runner.name) == Some(&runner.id);
            if current == runner.is_dying() {
                return Some(format!(
                    "{} is dying: {}, yet current: {current}",
                    runner.id,
                    runner.is_dying()
                ));
            }
            if matches!(runner.phase, Phase::Queued(_)) && self.has_served(&runner.name).is_some() {
                return Some(format!("a second VM is wanted for {}, whose job is done", runner.name));
            }
            let in_queue = self.queue.contains(&runner.id);
            if in_queue != matches!(runner.phase, Phase::Queued(_)) {
                return Some(format!("{} and the queue disagree", runner.id));
            }
            let holds = runner
                .placed()
                .is_some_and(|p| self.by_agent.get(&p.agent).is_some_and(|held| held.contains(&runner.id)));
            if holds != runner.placed().is_some() {
                return Some(format!("{} and its slot disagree", runner.id));
            }
            let unattended = runner.live.adders.is_empty() && runner.claims == 0 && !runner.is_dying();
            if unattended != runner.live.grace.is_some() {
                return Some(format!(
                    "{} is unattended: {unattended}, and its grace says otherwise",
                    runner.id
                ));
            }
            for waiter in runner.live.adders.iter().chain(&runner.live.deleters) {
                if !self.waiters.contains_key(waiter) {
                    return Some(format!("{} has a caller nobody knows", runner.id));
                }
            }
            if runner.is_dying()
                && !runner.live.adders.is_empty()
                && runner.state() != shoes_vz_model::State::TearingDown
            {
                return Some(format!("{} is dying and somebody waits for it", runner.id));
            }
        }
        let arrivals = self.queue.iter().filter_map(|id| self.runners.get(id)).map(|r| r.live.arrival);
        if !arrivals.is_sorted() {
            return Some("the queue is not in the order of arrival".into());
        }
        let slots: usize = self.by_agent.values().map(BTreeSet::len).sum();
        let placed = self.runners.values().filter(|r| r.placed().is_some()).count();
        (slots != placed).then(|| format!("{slots} slots are in use by {placed} runners"))
    }
}
