//! The core: agents, runners and the queue as one value, without I/O or a clock. An [`Event`] and a [`Now`] go in; a
//! [`Decision`] comes out, whose writes must be durable before its effects are performed.
//!
//! Invariants ([`Core::broken_invariant`] checks them after every event in the tests):
//! - of all runners with one name at most one is wanted, and at most one has a slot;
//! - no VM is started for a name whose runner ran a job and finished;
//! - a slot is promised only when the agent is online, not cordoned, accepts runners, and has one free;
//! - the queue is served in the order of arrival, among the runners that fit and whose callers still wait;
//! - a runner that no caller waits for or owns has a time at which it is terminated.

mod cordon;
mod end;
mod instances;
mod reconcile;
mod requeue;
mod served_names;
mod sessions;
mod store_outage;
mod views;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

use jiff::Timestamp;
use shoes_vz_model::{AgentId, CloudId, RunnerId, RunnerName, Stage};

use crate::log_limit::LogLimiter;

use super::{
    agent::Agent,
    event::{Decision, Effect, Event, QueueReasons, Write},
    observation::Observation,
    runner::{Delivery, Phase, Placed, Runner},
    schedule::{self, Candidate, Choice, Requirements},
    values::{Now, SessionId, VmSize, WaiterId},
};

pub use super::policy::Policy;

/// How often expired tombstones and agents are looked for.
const SWEEP_EVERY: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub struct Core {
    policy: Policy,
    agents: BTreeMap<AgentId, Agent>,
    runners: HashMap<RunnerId, Runner>,
    by_cloud: HashMap<CloudId, RunnerId>,
    /// The wanted runner of each name: queued, or placed and not dying.
    current: HashMap<RunnerName, RunnerId>,
    /// Every placed runner by name: the next VM of a name waits until the last one is removed.
    placed_names: HashMap<RunnerName, Vec<RunnerId>>,
    /// Names whose runner ran a job and finished, while its tombstone is kept.
    served: HashMap<RunnerName, RunnerId>,
    /// Every placed runner by agent: the slots in use.
    by_agent: HashMap<AgentId, BTreeSet<RunnerId>>,
    sessions: HashMap<SessionId, AgentId>,
    /// In the order of arrival.
    queue: Vec<RunnerId>,
    /// How many requests have arrived.
    arrivals: u64,
    waiters: HashMap<WaiterId, Waiter>,
    timers: BTreeSet<(Duration, Timer)>,
    /// Set while the store cannot be written: the reason, and what to do.
    unwritable: Option<String>,
    /// For log lines that an agent or a caller can cause as often as it likes.
    log_limiter: LogLimiter,
    decision: Decision,
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
    Cleanup(RunnerId),
    Redelete(AgentId),
    Sweep,
}

/// A runner that an index of the core names. One that is missing is a mistake in the core, which tests must not miss.
fn runner_mut(runners: &mut HashMap<RunnerId, Runner>, id: RunnerId) -> Option<&mut Runner> {
    let runner = runners.get_mut(&id);
    debug_assert!(runner.is_some(), "an index of the fleet names runner {id}, which does not exist");
    runner
}

impl Core {
    /// The fleet as it was stored, without waiters or sessions.
    pub fn restore(policy: Policy, agents: Vec<Agent>, mut runners: Vec<Runner>, now: Now) -> Self {
        let mut core = Self {
            policy,
            agents: agents.into_iter().map(|a| (a.id, a)).collect(),
            timers: BTreeSet::from([(now.mono, Timer::Sweep)]),
            ..Self::default()
        };
        runners.sort_by_key(|r| (r.requested_at, r.id));
        for mut runner in runners {
            let id = runner.id;
            runner.live.began = now.mono;
            runner.live.before =
                now.wall.duration_since(runner.requested_at).try_into().unwrap_or(Duration::ZERO);
            runner.live.queued_since = now.mono;
            runner.live.arrival = core.next_arrival();
            // Perhaps it was not: the placement is stored before the command is sent.
            runner.live.sent_before = true;
            runner.live.request_unseen = !matches!(runner.phase, Phase::Queued(_));
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
            core.start_grace_if_unclaimed(id, now);
        }
        core
    }

    /// Decides what follows from one event.
    pub fn handle(&mut self, event: Event, now: Now) -> Decision {
        match event {
            Event::Add { waiter, request, timeout, new_ids } => {
                self.on_add(waiter, request, timeout, new_ids, now)
            }
            Event::Delete { waiter, cloud_id, timeout } => self.on_delete(waiter, cloud_id, timeout, now),
            Event::CallerDisconnected { waiter } => self.on_caller_disconnected(waiter, now),
            Event::Undelivered { runner } => self.on_undelivered(runner, now),
            Event::Register { waiter, registration } => self.on_register(waiter, *registration, now),
            Event::Cordon { waiter, agent, order } => self.on_cordon_order(waiter, &agent, order, now),
            Event::Synced { session, agent, request } => self.on_synced(session, agent, *request, now),
            Event::SessionLost { session, reason } => self.on_session_lost(session, &reason, now),
        }
        self.close_decision(now)
    }

    /// The next moment, by the monotonic clock, at which [`Core::on_time`] has something to do.
    pub fn next_timer(&self) -> Option<Duration> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Decides what follows from the timers that are due.
    pub fn on_time(&mut self, now: Now) -> Decision {
        while let Some((at, timer)) = self.timers.first().copied().filter(|(at, _)| *at <= now.mono) {
            self.timers.remove(&(at, timer));
            match timer {
                Timer::Deadline(waiter) => self.on_deadline(waiter),
                Timer::Grace(id) => self.on_grace_expired(id, at, now),
                Timer::Cleanup(id) => self.on_cleanup_timeout(id, at, now),
                Timer::Redelete(agent) => self.dispatch(agent, now),
                Timer::Sweep => self.sweep(now),
            }
            // The caller just answered may have been the last one.
            self.start_graces(now);
        }
        self.close_decision(now)
    }

    fn close_decision(&mut self, now: Now) -> Decision {
        self.start_graces(now);
        if std::mem::take(&mut self.reschedule) {
            self.schedule(now);
        }
        let mut decision = std::mem::take(&mut self.decision);
        for id in std::mem::take(&mut self.dirty) {
            if let Some(runner) = self.runners.get(&id) {
                decision.writes.push(Write::Runner(Box::new(runner.clone())));
            }
        }
        decision.changed.dedup();
        decision.agents.sort_unstable();
        decision.agents.dedup();
        decision
    }

    fn next_arrival(&mut self) -> u64 {
        self.arrivals += 1;
        self.arrivals
    }

    fn effect(&mut self, effect: Effect) {
        self.decision.effects.push(effect);
    }

    fn observe(&mut self, observation: Observation) {
        self.decision.effects.push(Effect::Observe(observation));
    }

    /// The runner has changed: write its row and show it to watchers.
    fn touch(&mut self, id: RunnerId) {
        self.dirty.insert(id);
        self.decision.changed.push(id);
    }

    /// An agent accepts runners on other terms: queued runners may be placed, or wait for another reason.
    fn agent_changed(&mut self, id: AgentId) {
        self.decision.agents.push(id);
        self.decision.queue_reasons = QueueReasons::Changed;
        self.reschedule = true;
    }

    fn hold_slot(&mut self, agent: AgentId, name: &RunnerName, id: RunnerId) {
        self.decision.agents.push(agent);
        self.by_agent.entry(agent).or_default().insert(id);
        self.placed_names.entry(name.clone()).or_default().push(id);
    }

    fn free_slot(&mut self, agent: AgentId, name: &RunnerName, id: RunnerId) {
        self.decision.agents.push(agent);
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

    fn candidates(&self) -> Vec<Candidate<'_>> {
        let candidate = |a| Candidate::new(a, self.taken(a.id), self.promised(a.id));
        self.agents.values().map(candidate).collect()
    }

    /// The sizes of an agent's runners that it has not reported yet.
    fn promised(&self, agent: AgentId) -> Vec<VmSize> {
        let held = self.by_agent.get(&agent).into_iter().flatten();
        let unreported = held
            .filter_map(|id| self.runners.get(id))
            .filter(|r| matches!(&r.phase, Phase::Placed(placed) if placed.report.is_none()));
        unreported.map(|r| r.size).collect()
    }

    fn requirements<'a>(&'a self, runner: &'a Runner) -> Requirements<'a> {
        Requirements {
            labels: &runner.labels,
            size: runner.size,
            template: &runner.template,
            accepted: &self.policy.accepted_labels,
            unknown: self.policy.unknown_labels,
            refused_by: &runner.live.refused_by,
        }
    }

    /// Places queued runners while slots are free.
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
                if runner.live.add_waiters.is_empty() || self.placed_names.contains_key(&runner.name) {
                    continue;
                }
                let Ok(choice) = schedule::choose(&candidates, self.requirements(runner)) else { continue };
                free -= 1;
                if let Some(chosen) = candidates.iter_mut().find(|c| c.id == choice.agent) {
                    chosen.taken += 1;
                    chosen.promised.push(runner.size);
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
        let Some(runner) = runner_mut(&mut self.runners, id) else { return };
        let Phase::Queued(script) = &runner.phase else { return };
        let queued_for = runner.wanted_for(now);
        // For a runner that was queued again, only the time since then has not been counted yet.
        let waited = match runner.live.queued_since == runner.live.began {
            true => queued_for,
            false => now.mono.saturating_sub(runner.live.queued_since),
        };
        let delivery = Delivery::Pending(script.clone());
        runner.phase = Phase::Placed(Placed::new(choice.agent, choice.template, queued_for, delivery));
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
        let older = |at: Timestamp, keep: Duration| {
            now.wall.duration_since(at)
                > jiff::SignedDuration::try_from(keep).unwrap_or(jiff::SignedDuration::MAX)
        };
        let lost: Vec<AgentId> = self
            .agents
            .values()
            .filter(|a| a.session.is_none() && older(a.last_seen, self.policy.agent_forget))
            // A cordon must not be forgotten, so a cordoned agent loses only its runners.
            .filter(|a| a.cordon.is_none() || self.taken(a.id) > 0)
            .map(|a| a.id)
            .collect();
        for id in lost {
            self.expire_agent(id, "the agent was offline for too long", now);
        }
        let expired: Vec<RunnerId> = self
            .runners
            .values()
            .filter(|r| matches!(&r.phase, Phase::Ended(e) if older(e.at, self.policy.tombstones)))
            .map(|r| r.id)
            .collect();
        for id in expired {
            if let Some(runner) = self.runners.remove(&id) {
                self.forget_served(&runner);
                self.by_cloud.remove(&runner.cloud_id);
                self.decision.writes.push(Write::RemoveRunner(id));
            }
        }
    }

    /// How many runners have not ended.
    pub fn living(&self) -> usize {
        self.runners.values().filter(|r| r.is_alive()).count()
    }

    /// How many calls wait for an answer.
    pub fn waiting(&self) -> usize {
        self.waiters.len()
    }

    /// The first invariant that does not hold, for tests and the simulation.
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
                    "{} is dying: {}, and current: {current}",
                    runner.id,
                    runner.is_dying()
                ));
            }
            if matches!(runner.phase, Phase::Queued(_)) && self.has_served(&runner.name).is_some() {
                return Some(format!("a second VM is wanted for {}, which has been served", runner.name));
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
            let unclaimed = runner.live.add_waiters.is_empty() && runner.claims == 0 && !runner.is_dying();
            if unclaimed != runner.live.grace.is_some() {
                return Some(format!("{} is unclaimed: {unclaimed}, and its grace disagrees", runner.id));
            }
            for waiter in runner.live.add_waiters.iter().chain(&runner.live.delete_waiters) {
                if !self.waiters.contains_key(waiter) {
                    return Some(format!("{} has an unknown waiter", runner.id));
                }
            }
            if runner.is_dying()
                && !runner.live.add_waiters.is_empty()
                && runner.state() != shoes_vz_model::State::TearingDown
            {
                return Some(format!("{} is dying and has waiters", runner.id));
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
