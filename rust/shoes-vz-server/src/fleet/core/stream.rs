//! Agents: registration, their Sync streams, and how both sides come to agree. The agent's word counts on what exists,
//! the server's on what should.

use std::{collections::BTreeSet, time::Duration};

use shoes_vz_model::{AgentId, RunnerId, State};
use shoes_vz_proto::{agent as wire, convert};

use crate::fleet::{
    agent::{Agent, News, Session, Style},
    commands,
    hot::Hot,
    labels::Offers,
    report,
    runner::{Delivery, Doom, DoomKind, Phase, Placed, Runner},
    types::{Closed, Effect, Now, Observation, Registration, SessionId, WaiterId, Write},
};

use crate::repeats::Say;

use super::{Core, Timer};

/// How long an agent has to clean up a failed runner before the server asks for it.
const FAILED_FOR_LONG: Duration = Duration::from_secs(60);

impl Core {
    pub(super) fn on_register(&mut self, waiter: WaiterId, registration: Registration, now: Now) {
        let Registration { agent_id, fresh, hostname, capacity, info } = registration;
        let id = agent_id.unwrap_or(fresh);
        let mut cordon = self.agents.get(&id).and_then(|a| a.cordon.clone());
        if agent_id.is_none() {
            let old = self
                .agents
                .values()
                .filter(|a| a.info.is_none() && a.session.is_none() && a.hostname == hostname);
            for old in old.map(|a| a.id).collect::<Vec<_>>() {
                // It has no identity of its own: its host is what was cordoned.
                cordon = cordon.or_else(|| self.agents.get(&old).and_then(|a| a.cordon.clone()));
                self.forget_agent(old, "its agent (Go) started anew, and VMs end with that process", now);
            }
        }
        // A Go agent that starts in a loop has a new id each time.
        let key = format!("registered {}", agent_id.map_or(hostname.clone(), |id| id.to_string()));
        if let Some(repeats) = self.repeats.note(&key, Say::AFewTimes, now.mono) {
            tracing::info!(agent_id = %id, hostname, slots = capacity.max_runners, repeats,
                version = info.as_ref().map_or("Go agent", |i| i.version.as_str()), "agent registered");
        }
        let offers = Offers::of(info.as_ref());
        let before = self.agents.get_mut(&id).map(|a| (a.session.take(), std::mem::take(&mut a.fallbacks)));
        let (session, fallbacks) = before.unwrap_or_default();
        let last_seen = now.wall;
        let agent = Agent { id, hostname, capacity, info, last_seen, offers, cordon, session, fallbacks };
        self.turn.writes.push(Write::Agent(Box::new(agent.clone())));
        self.agents.insert(id, agent);
        self.effect(Effect::Registered(waiter, id));
        self.agent_changed(id);
    }

    /// It was away for too long: forgotten with its runners, or, when it is cordoned, its runners alone.
    pub(super) fn give_up_agent(&mut self, id: AgentId, why: &str, now: Now) {
        match self.agents.get(&id).map(|a| &a.cordon) {
            Some(Some(_)) => self.give_up_runners(id, why, now),
            Some(None) | None => self.forget_agent(id, why, now),
        }
    }

    /// Nothing of it can be there any more.
    fn forget_agent(&mut self, id: AgentId, why: &str, now: Now) {
        self.give_up_runners(id, why, now);
        self.agents.remove(&id);
        self.turn.writes.push(Write::RemoveAgent(id));
        self.agent_changed(id);
    }

    fn give_up_runners(&mut self, id: AgentId, why: &str, now: Now) {
        let Some(agent) = self.agents.get(&id) else { return };
        tracing::warn!(agent_id = %id, hostname = %agent.hostname, why, "agent given up");
        let reason = format!("{} was given up: {why}", agent.hostname);
        for runner in self.by_agent.get(&id).cloned().unwrap_or_default() {
            let stage = self.runners.get(&runner).map_or(0, |r| r.report().stage);
            let end = wire::RunnerEnd {
                kind: wire::EndKind::VmDied.into(),
                reason: reason.clone(),
                stage,
                at: Some(convert::time_to_wire(now.wall)),
            };
            self.bury(runner, end, now);
        }
    }

    pub(super) fn on_session_lost(&mut self, session: SessionId, why: &str, now: Now) {
        let Some(id) = self.sessions.remove(&session) else { return };
        let Some(agent) = self.agents.get_mut(&id) else { return };
        if agent.session.as_ref().is_some_and(|s| s.id == session) {
            agent.session = None;
            agent.last_seen = now.wall;
            if let Some(repeats) = self.repeats.note(&format!("offline {id}"), Say::AFewTimes, now.mono) {
                tracing::warn!(agent_id = %id, hostname = %agent.hostname, why, repeats,
                    "agent offline; its runners are kept, its slots are not counted");
            }
            let row = agent.clone();
            self.turn.writes.push(Write::Agent(Box::new(row)));
            let held = self.by_agent.get(&id).into_iter().flatten();
            self.turn.changed.extend(held);
            self.agent_changed(id);
        }
    }

    pub(super) fn on_synced(
        &mut self,
        session: SessionId,
        id: AgentId,
        request: wire::SyncRequest,
        now: Now,
    ) {
        if !self.open_session(session, id, now) {
            return;
        }
        let (mut listed, mut present) = (BTreeSet::new(), BTreeSet::new());
        let mut strays = BTreeSet::new();
        let mut end_acks = Vec::new();
        for told in request.runners {
            let Ok(runner) = told.runner_id.parse::<RunnerId>() else {
                if let Some(repeats) = self.repeats.note(&format!("odd id {id}"), Say::Once, now.mono) {
                    tracing::warn!(agent_id = %id, repeats, "the agent lists a runner whose id is not a UUID; ignored");
                }
                continue;
            };
            let told = report::bounded(told);
            if told.end.is_some() {
                end_acks.push(told.runner_id.clone());
            } else {
                present.insert(runner);
            }
            listed.insert(runner);
            if self.on_report(id, runner, told, now) == Standing::Stray {
                strays.insert(runner);
            }
        }
        for runner in self.by_agent.get(&id).cloned().unwrap_or_default().difference(&listed) {
            if self.has_vanished(id, *runner) {
                self.bury_vanished(*runner, now);
            }
        }
        self.on_hot(id, request.hot, &request.restore_fallbacks);
        if let Some(session) = self.agents.get_mut(&id).and_then(|a| a.session.as_mut()) {
            session.set_strays(strays);
            match session.hear(report::one_line(&request.unschedulable_reason), present) {
                News::None => {}
                News::Runners => self.reschedule = true,
                News::TakesNone => {
                    let key = format!("takes none {id}");
                    if let Some(repeats) = self.repeats.note(&key, Say::AFewTimes, now.mono) {
                        tracing::info!(agent_id = %id, why = %session.takes_none, repeats,
                            "whether the agent takes runners has changed");
                    }
                    self.agent_changed(id);
                }
            }
        }
        for ack in request.acks {
            self.on_ack(id, &ack, &listed, now);
        }
        self.answer(session, id, end_acks, now);
    }

    /// What an agent has hot is for the next choice: nobody who waits is served by it, since it takes no slot.
    fn on_hot(&mut self, id: AgentId, told: Vec<wire::HotVms>, fallbacks: &[wire::RestoreFallback]) {
        let Some(agent) = self.agents.get_mut(&id) else { return };
        agent.fallbacks.hear(fallbacks);
        if let Some(session) = &mut agent.session {
            let hot = Hot::told(told);
            if session.hot != hot {
                session.hot = hot;
                self.turn.agents.push(id);
            }
        }
    }

    /// Whether `session` is this agent's present stream; the first message on a new one makes it so.
    fn open_session(&mut self, session: SessionId, id: AgentId, now: Now) -> bool {
        let closed = match (self.sessions.get(&session), self.agents.get(&id)) {
            (Some(owner), _) if *owner != id => Some(Closed::Unregistered),
            (_, None) => Some(Closed::Unregistered),
            (_, Some(agent)) => match &agent.session {
                Some(present) if present.id > session => Some(Closed::Replaced),
                Some(_) | None => None,
            },
        };
        if let Some(why) = closed {
            self.effect(Effect::Close(session, why));
            return false;
        }
        let Some(agent) = self.agents.get_mut(&id) else { return false };
        agent.last_seen = now.wall;
        if agent.session.as_ref().is_some_and(|s| s.id == session) {
            return true;
        }
        if let Some(repeats) = self.repeats.note(&format!("online {id}"), Say::AFewTimes, now.mono) {
            tracing::info!(agent_id = %id, hostname = %agent.hostname, repeats, "agent online");
        }
        if let Some(old) = agent.session.replace(Session::new(session)) {
            self.sessions.remove(&old.id);
            self.effect(Effect::Close(old.id, Closed::Replaced));
        }
        self.sessions.insert(session, id);
        let held = self.by_agent.get(&id).into_iter().flatten();
        self.turn.changed.extend(held);
        self.agent_changed(id);
        true
    }

    fn on_report(&mut self, agent: AgentId, id: RunnerId, told: wire::Runner, now: Now) -> Standing {
        let Some(runner) = self.runners.get_mut(&id) else {
            self.adopt(agent, id, told, now);
            return Standing::Known;
        };
        match &runner.phase {
            Phase::Ended(_) if told.end.is_some() => return Standing::Known,
            Phase::Ended(_) => return Standing::Stray,
            Phase::Placed(placed) if placed.agent == agent => {}
            Phase::Placed(placed) => {
                // The same host under a new identity (its old one was lost), or a copy that must not be.
                let old = placed.agent;
                if self.agents.get(&old).is_some_and(|a| a.session.is_some()) {
                    let key = format!("two agents {id} {agent}");
                    if let Some(repeats) = self.repeats.note(&key, Say::Once, now.mono) {
                        tracing::warn!(runner_id = %id, agent_id = %agent, owner = %old, repeats,
                            "two agents list one runner");
                    }
                    return Standing::Stray;
                }
                self.rehome(id, old, agent, now);
            }
            Phase::Queued(script) => {
                // After the database was set back, or an agent refused it and has it after all. What runs counts.
                runner.phase = Phase::Placed(Placed {
                    agent,
                    template: String::new(),
                    queued_for: runner.wanted_for(now),
                    delivery: Delivery::Pending(script.clone()),
                    report: None,
                    doom: None,
                });
                let name = runner.name.clone();
                self.queue.retain(|other| *other != id);
                self.hold_slot(agent, &name, id);
            }
        }
        self.update(id, told, now);
        Standing::Known
    }

    fn rehome(&mut self, id: RunnerId, from: AgentId, to: AgentId, now: Now) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        let name = runner.name.clone();
        if let Phase::Placed(placed) = &mut runner.phase {
            placed.agent = to;
        }
        if let Some(repeats) = self.repeats.note(&format!("rehomed {id}"), Say::AFewTimes, now.mono) {
            tracing::warn!(runner_id = %id, from = %from, to = %to, repeats,
                "runner found on an agent of another identity");
        }
        self.free_slot(from, &name, id);
        self.hold_slot(to, &name, id);
        self.touch(id);
    }

    /// Takes in what a runner's agent tells of it.
    fn update(&mut self, id: RunnerId, told: wire::Runner, now: Now) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        let (before, was_ready) = (runner.state(), runner.state().is_ready());
        let began = runner.live.began;
        let Phase::Placed(placed) = &mut runner.phase else { return };
        if matches!(placed.delivery, Delivery::Pending(_)) {
            placed.delivery = Delivery::Done;
            self.turn.writes.push(Write::ForgetScript(id));
            self.dirty.insert(id);
        }
        let told = report::follow(placed.report.as_ref(), told);
        if placed.report.as_ref() == Some(&told) {
            return;
        }
        let mut seen = report::new_stages(placed.report.as_ref(), &told);
        seen.extend(report::job_over(&mut runner.live.busy_since, &told, now.mono));
        let end = told.end.clone();
        placed.report = Some(told);
        let after = runner.state();
        // Of one whose beginning was not seen nobody knows how long it took.
        if after.is_ready() && !was_ready && !runner.live.found {
            let took = now.mono.saturating_sub(began);
            seen.push(Observation::Startup(took));
            let path = convert::start_path_from_wire(runner.report().start_path);
            seen.extend(path.map(|path| Observation::Started(path, took)));
        }
        if after != before {
            tracing::info!(runner_id = %id, runner_name = %runner.name, state = after.metric_label(), "runner state");
        }
        for observation in seen {
            self.observe(observation);
        }
        self.touch(id);
        match end {
            Some(end) => self.bury_reported(id, end, now),
            None if after != before => self.on_state(id, after, now),
            None => {}
        }
    }

    fn on_state(&mut self, id: RunnerId, state: State, now: Now) {
        match state {
            State::SshReady | State::Running => self.answer_if_ready(id),
            State::Error => self.on_failed(id, now),
            State::TearingDown => self.no_longer_wanted(id),
            State::Creating | State::Booting => {}
        }
    }

    /// Callers are told at once; the agent cleans up, and is asked to when it does not.
    fn on_failed(&mut self, id: RunnerId, now: Now) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        let at = now.mono + FAILED_FOR_LONG;
        runner.live.sweep = Some(at);
        self.timers.insert((at, Timer::Failed(id)));
        let Some(runner) = self.runners.get(&id) else { return };
        let (host, message) = (self.host_of(runner), runner.report().error_message);
        let words = format!("{} failed on {host} in stage {}: {message}", runner.name, runner.stage());
        let go =
            runner.placed().and_then(|p| self.agents.get(&p.agent)).is_some_and(|a| a.style() == Style::Tick);
        self.fail_adders(id, &crate::fleet::types::Refusal::Failed(words));
        self.no_longer_wanted(id);
        if go {
            self.doom(id, Doom { kind: DoomKind::Failed, reason: message }, now);
        }
    }

    /// A runner nobody here knows: this server's state is younger than the runner. It counts, and it is kept.
    fn adopt(&mut self, agent: AgentId, id: RunnerId, told: wire::Runner, now: Now) {
        let Some(adopted) = report::adopted(agent, id, &told, now) else { return };
        if self.by_cloud.contains_key(&adopted.cloud_id) {
            if let Some(repeats) = self.repeats.note(&format!("cloud id {id}"), Say::Once, now.mono) {
                tracing::warn!(runner_id = %id, agent_id = %agent, repeats,
                    "an unknown runner has another one's cloud id; ignored");
            }
            return;
        }
        let name = adopted.name.clone();
        tracing::warn!(runner_id = %id, agent_id = %agent, runner_name = %name, "adopted a runner unknown so far");
        self.by_cloud.insert(adopted.cloud_id, id);
        self.runners.insert(id, adopted);
        self.hold_slot(agent, &name, id);
        let namesake = self.current.get(&name).copied();
        match namesake.and_then(|n| self.runners.get(&n)).map(|r| matches!(r.phase, Phase::Queued(_))) {
            None => {
                self.current.insert(name, id);
            }
            Some(true) => self.take_over(namesake, id, now),
            Some(false) => {}
        }
        self.touch(id);
        self.update(id, told, now);
        let unwanted =
            self.runners.get(&id).is_some_and(|r| !r.is_dying() && self.current.get(&r.name) != Some(&id));
        if unwanted {
            let reason = "another VM has its name already".to_owned();
            self.doom(id, Doom { kind: DoomKind::Deleted, reason }, now);
        }
    }

    /// The callers of a queued runner get the one that was found running under its name.
    fn take_over(&mut self, queued: Option<RunnerId>, by: RunnerId, now: Now) {
        let Some(queued) = queued else { return };
        let Some(runner) = self.runners.get_mut(&queued) else { return };
        let adders = std::mem::take(&mut runner.live.adders);
        for waiter in &adders {
            if let Some(waiting) = self.waiters.get_mut(waiter) {
                waiting.runner = by;
            }
        }
        let reason = format!("a VM of its name was found running ({by})");
        self.bury_queued(queued, &Doom { kind: DoomKind::Deleted, reason }, now);
        if let Some(runner) = self.runners.get_mut(&by) {
            runner.live.adders = adders;
            self.current.insert(runner.name.clone(), by);
        }
    }

    /// Whether a runner its agent does not list is gone, rather than not begun.
    fn has_vanished(&self, agent: AgentId, id: RunnerId) -> bool {
        let Some(placed) = self.runners.get(&id).and_then(Runner::placed) else { return false };
        let Some(owner) = self.agents.get(&agent) else { return false };
        match placed.delivery {
            Delivery::Done => true,
            // A Go agent acknowledges nothing: asked to delete it, and still not listing it, it has it not.
            Delivery::Pending(_) => {
                let asked = owner.session.as_ref().is_some_and(|s| s.deletes.contains_key(&id));
                owner.style() == Style::Tick && placed.doom.is_some() && asked
            }
        }
    }

    fn on_ack(&mut self, agent: AgentId, ack: &wire::CommandAck, listed: &BTreeSet<RunnerId>, now: Now) {
        if let Some(id) = commands::created_by(&ack.command_id) {
            return self.on_create_ack(agent, id, ack, listed.contains(&id), now);
        }
        let Some(session) = self.agents.get_mut(&agent).and_then(|a| a.session.as_mut()) else { return };
        let Some(id) = session.deletes.iter().find(|(_, c)| **c == ack.command_id).map(|(id, _)| *id) else {
            return;
        };
        if !listed.contains(&id) {
            // Begun or refused alike: the agent has it not.
            return self.bury_vanished(id, now);
        }
        if !ack.error.is_empty() {
            let due = session.refused(id, now.mono);
            if let Some(repeats) =
                self.repeats.note(&format!("delete refused {id}"), Say::AFewTimes, now.mono)
            {
                tracing::warn!(runner_id = %id, agent_id = %agent, error = %ack.error, repeats,
                    "delete refused; it is sent again");
            }
            self.timers.insert((due, Timer::Redelete(agent)));
        }
    }

    fn on_create_ack(
        &mut self,
        agent: AgentId,
        id: RunnerId,
        ack: &wire::CommandAck,
        listed: bool,
        now: Now,
    ) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        let of_an_earlier_one = commands::create_id(runner) != ack.command_id;
        let Phase::Placed(placed) = &mut runner.phase else { return };
        if of_an_earlier_one || placed.agent != agent || !matches!(placed.delivery, Delivery::Pending(_)) {
            return;
        }
        if ack.error.is_empty() || listed {
            placed.delivery = Delivery::Done;
            self.turn.writes.push(Write::ForgetScript(id));
            self.touch(id);
            return;
        }
        if ack.try_elsewhere && placed.doom.is_none() {
            return self.try_elsewhere(id, agent, &ack.error, now);
        }
        let kind = match &placed.doom {
            Some(_) => wire::EndKind::Deleted,
            None => wire::EndKind::Failed,
        };
        self.observe(Observation::CreateRefused);
        let reason = format!("the agent refused it: {}", report::bounded_text(&ack.error));
        let end = wire::RunnerEnd {
            kind: kind.into(),
            reason,
            stage: wire::RunnerStage::Clone.into(),
            at: Some(convert::time_to_wire(now.wall)),
        };
        self.bury(id, end, now);
    }

    /// What goes back after a message: everything due, or for a Go agent one command or none.
    fn answer(&mut self, session: SessionId, agent: AgentId, end_acks: Vec<String>, now: Now) {
        let tick = self.agents.get(&agent).is_some_and(|a| a.style() == Style::Tick);
        if tick {
            let command = self.next_command(agent, now).unwrap_or_else(|| commands::noop(end_acks));
            return self.effect(Effect::Send(session, Box::new(command)));
        }
        if !end_acks.is_empty() {
            self.effect(Effect::Send(session, Box::new(commands::noop(end_acks))));
        }
        self.dispatch(agent, now);
    }

    /// Pushes every command that is due.
    pub(super) fn dispatch(&mut self, agent: AgentId, now: Now) {
        let Some((session, Style::Push)) =
            self.agents.get(&agent).and_then(|a| a.session.as_ref().map(|s| (s.id, a.style())))
        else {
            return;
        };
        while let Some(command) = self.next_command(agent, now) {
            self.effect(Effect::Send(session, Box::new(command)));
        }
    }

    fn next_command(&mut self, agent: AgentId, now: Now) -> Option<wire::SyncResponse> {
        let owner = self.agents.get_mut(&agent)?;
        let style = owner.style();
        let session = owner.session.as_mut()?;
        if let Some(stray) = session.strays.iter().copied().find(|id| session.may_delete(*id, now.mono)) {
            let command_id = session.delete_sent(stray, style, now.mono);
            return Some(commands::delete(stray, command_id, String::new()));
        }
        for id in self.by_agent.get(&agent).into_iter().flatten() {
            let Some(runner) = self.runners.get_mut(id) else { continue };
            let Phase::Placed(placed) = &runner.phase else { continue };
            if placed.doom.is_some() {
                if session.may_delete(*id, now.mono) {
                    let command_id = session.delete_sent(*id, style, now.mono);
                    return Some(commands::delete(*id, command_id, runner.request_id.clone()));
                }
            } else if let Delivery::Pending(script) = &placed.delivery
                && session.creates.insert(*id)
            {
                let command = commands::create(runner, placed, script, &self.policy);
                if std::mem::replace(&mut runner.live.sent_before, true) {
                    self.turn.effects.push(Effect::Observe(Observation::Resent));
                }
                return Some(command);
            }
        }
        None
    }
}

/// Whether a runner an agent lists should be there.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Known,
    Stray,
}
