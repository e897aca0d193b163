//! Messages on Sync streams, and reconciliation. The agent decides what exists, the server what should exist.

use std::{collections::BTreeSet, time::Duration};

use shoes_vz_model::{AgentId, RunnerId, State};
use shoes_vz_proto::{agent as wire, convert};

use crate::fleet::{
    agent::{AgentChange, CommandMode},
    commands,
    event::{Effect, Refusal, Write},
    hot::Hot,
    observation::Observation,
    report,
    runner::{Delivery, Phase, Placed, Runner, TerminationKind},
    values::{Now, SessionId},
};

use crate::log_limit::LogLimit;

use super::{Core, Timer, runner_mut};

/// How long an agent may take to remove a failed runner before the server deletes it.
const CLEANUP_TIMEOUT: Duration = Duration::from_secs(60);

impl Core {
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
        for report in request.runners {
            let Ok(runner) = report.runner_id.parse::<RunnerId>() else {
                if let Some(suppressed) =
                    self.log_limiter.admit(&format!("odd id {id}"), LogLimit::Once, now.mono)
                {
                    tracing::warn!(agent_id = %id, suppressed, "invalid runner ID in an agent's list; ignored");
                }
                continue;
            };
            let report = report::bounded(report);
            if report.end.is_some() {
                end_acks.push(report.runner_id.clone());
            } else {
                present.insert(runner);
            }
            listed.insert(runner);
            if self.on_report(id, runner, report, now) == Standing::Stray {
                strays.insert(runner);
            }
        }
        for runner in self.by_agent.get(&id).cloned().unwrap_or_default().difference(&listed) {
            if self.has_vanished(id, *runner) {
                self.record_vanished_end(*runner, now);
            }
        }
        self.on_hot(id, request.hot, &request.restore_fallbacks);
        if let Some(session) = self.agents.get_mut(&id).and_then(|a| a.session.as_mut()) {
            session.set_strays(strays);
            match session.update(report::one_line(&request.unschedulable_reason), present) {
                AgentChange::None => {}
                AgentChange::Runners => self.reschedule = true,
                AgentChange::Schedulability => {
                    let key = format!("schedulability {id}");
                    if let Some(suppressed) = self.log_limiter.admit(&key, LogLimit::Few, now.mono) {
                        tracing::info!(agent_id = %id, reason = %session.unschedulable_reason, suppressed,
                            "agent's schedulability changed");
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

    /// Hot VMs matter for the next choice only: they take no slots, so they serve no queued runner.
    fn on_hot(&mut self, id: AgentId, hot: Vec<wire::HotVms>, fallbacks: &[wire::RestoreFallback]) {
        let Some(agent) = self.agents.get_mut(&id) else { return };
        agent.fallbacks.update(fallbacks);
        if let Some(session) = &mut agent.session {
            let hot = Hot::reported(hot);
            if session.hot != hot {
                session.hot = hot;
                self.decision.agents.push(id);
            }
        }
    }

    fn on_report(&mut self, agent: AgentId, id: RunnerId, report: wire::Runner, now: Now) -> Standing {
        let Some(runner) = self.runners.get_mut(&id) else {
            self.adopt(agent, id, report, now);
            return Standing::Known;
        };
        match &runner.phase {
            Phase::Ended(_) if report.end.is_some() => return Standing::Known,
            Phase::Ended(_) => return Standing::Stray,
            Phase::Placed(placed) if placed.agent == agent => {}
            Phase::Placed(placed) => {
                // Either the host lost its old id and has a new one, or this is a copy that must not exist.
                let old = placed.agent;
                if self.agents.get(&old).is_some_and(|a| a.session.is_some()) {
                    let key = format!("two agents {id} {agent}");
                    if let Some(suppressed) = self.log_limiter.admit(&key, LogLimit::Once, now.mono) {
                        tracing::warn!(runner_id = %id, agent_id = %agent, owner = %old, suppressed,
                            "two agents list the same runner");
                    }
                    return Standing::Stray;
                }
                self.move_to_agent(id, old, agent, now);
            }
            Phase::Queued(script) => {
                // The database was set back, or an agent refused it and has it after all. What exists counts.
                let (delivery, queued_for) = (Delivery::Pending(script.clone()), runner.wanted_for(now));
                runner.phase = Phase::Placed(Placed::new(agent, String::new(), queued_for, delivery));
                let name = runner.name.clone();
                self.queue.retain(|other| *other != id);
                self.hold_slot(agent, &name, id);
            }
        }
        self.update(id, report, now);
        Standing::Known
    }

    fn move_to_agent(&mut self, id: RunnerId, from: AgentId, to: AgentId, now: Now) {
        let Some(runner) = runner_mut(&mut self.runners, id) else { return };
        let name = runner.name.clone();
        if let Phase::Placed(placed) = &mut runner.phase {
            placed.agent = to;
        }
        if let Some(suppressed) = self.log_limiter.admit(&format!("moved {id}"), LogLimit::Few, now.mono) {
            tracing::warn!(runner_id = %id, from = %from, to = %to, suppressed,
                "runner moved to another agent ID");
        }
        self.free_slot(from, &name, id);
        self.hold_slot(to, &name, id);
        self.touch(id);
    }

    /// Stores an agent's report of a runner.
    fn update(&mut self, id: RunnerId, report: wire::Runner, now: Now) {
        let Some(runner) = runner_mut(&mut self.runners, id) else { return };
        let (before, was_ready) = (runner.state(), runner.state().is_ready());
        let began = runner.live.began;
        let Phase::Placed(placed) = &mut runner.phase else { return };
        if matches!(placed.delivery, Delivery::Pending(_)) {
            placed.delivery = Delivery::Done;
            self.decision.writes.push(Write::ForgetScript(id));
            self.dirty.insert(id);
        }
        let report = report::follow(placed.report.as_ref(), report);
        if placed.report.as_ref() == Some(&report) {
            return;
        }
        let mut seen = report::new_stages(placed.report.as_ref(), &report);
        seen.extend(report::job_ended(&mut runner.live.busy_since, &report, now.mono));
        let end = report.end.clone();
        placed.report = Some(report);
        let after = runner.state();
        // How long it took is unknown if this server did not see the request.
        if after.is_ready() && !was_ready && !runner.live.request_unseen {
            let took = now.mono.saturating_sub(began);
            seen.push(Observation::Startup(took));
            let path = convert::start_path_from_wire(runner.last_report().map_or(0, |r| r.start_path));
            seen.extend(path.map(|path| Observation::Started(path, took)));
        }
        if after != before {
            tracing::info!(runner_id = %id, runner_name = %runner.name, state = after.as_str(), "runner state changed");
        }
        for observation in seen {
            self.observe(observation);
        }
        self.touch(id);
        match end {
            Some(end) => self.record_reported_end(id, end, now),
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

    /// Fails the callers at once. The agent removes the runner; if it does not, the server deletes it.
    fn on_failed(&mut self, id: RunnerId, now: Now) {
        let Some(runner) = runner_mut(&mut self.runners, id) else { return };
        let at = now.mono + CLEANUP_TIMEOUT;
        runner.live.cleanup_deadline = Some(at);
        self.timers.insert((at, Timer::Cleanup(id)));
        let Some(runner) = self.runners.get(&id) else { return };
        let (host, message) = (self.host_of(runner), runner.error_message());
        let reason = format!("{} failed on {host} in stage {}: {message}", runner.name, runner.stage());
        let is_go_agent = runner
            .placed()
            .and_then(|p| self.agents.get(&p.agent))
            .is_some_and(|a| a.mode() == CommandMode::Poll);
        self.fail_add_waiters(id, &Refusal::Failed(reason));
        self.no_longer_wanted(id);
        if is_go_agent {
            self.terminate(id, TerminationKind::Failed, message, now);
        }
    }

    /// The server does not know this runner, since its state is newer than the runner. The runner exists, so it is kept.
    fn adopt(&mut self, agent: AgentId, id: RunnerId, report: wire::Runner, now: Now) {
        let Some(adopted) = Runner::adopted(agent, id, &report, now) else { return };
        if self.by_cloud.contains_key(&adopted.cloud_id) {
            if let Some(suppressed) =
                self.log_limiter.admit(&format!("cloud id {id}"), LogLimit::Once, now.mono)
            {
                tracing::warn!(runner_id = %id, agent_id = %agent, suppressed,
                    "unknown runner with the cloud ID of another runner; ignored");
            }
            return;
        }
        let name = adopted.name.clone();
        tracing::warn!(runner_id = %id, agent_id = %agent, runner_name = %name, "unknown runner adopted");
        self.by_cloud.insert(adopted.cloud_id, id);
        self.runners.insert(id, adopted);
        self.hold_slot(agent, &name, id);
        let namesake = self.current.get(&name).copied();
        match namesake.and_then(|n| self.runners.get(&n)).map(|r| matches!(r.phase, Phase::Queued(_))) {
            None => {
                self.current.insert(name, id);
            }
            Some(true) => self.transfer_waiters(namesake, id, now),
            Some(false) => {}
        }
        self.touch(id);
        self.update(id, report, now);
        let unwanted =
            self.runners.get(&id).is_some_and(|r| !r.is_dying() && self.current.get(&r.name) != Some(&id));
        if unwanted {
            self.terminate(id, TerminationKind::Deleted, "another VM has this name already".to_owned(), now);
        }
    }

    /// Gives the callers of a queued runner the running one with its name.
    fn transfer_waiters(&mut self, queued: Option<RunnerId>, by: RunnerId, now: Now) {
        let Some(queued) = queued else { return };
        let Some(runner) = runner_mut(&mut self.runners, queued) else { return };
        let add_waiters = std::mem::take(&mut runner.live.add_waiters);
        for waiter in &add_waiters {
            if let Some(waiting) = self.waiters.get_mut(waiter) {
                waiting.runner = by;
            }
        }
        let reason = format!("a VM with this name is running already ({by})");
        self.record_queued_end(queued, TerminationKind::Deleted, reason, now);
        if let Some(runner) = self.runners.get_mut(&by) {
            runner.live.add_waiters = add_waiters;
            self.current.insert(runner.name.clone(), by);
        }
    }

    /// Whether a runner that its agent does not list has ended, rather than not begun.
    fn has_vanished(&self, agent: AgentId, id: RunnerId) -> bool {
        let Some(placed) = self.runners.get(&id).and_then(Runner::placed) else { return false };
        let Some(owner) = self.agents.get(&agent) else { return false };
        match placed.delivery {
            Delivery::Done => true,
            // A Go agent acknowledges nothing: one that was sent a delete and does not list the runner does not have it.
            Delivery::Pending(_) => {
                let delete_sent = owner.session.as_ref().is_some_and(|s| s.deletes.contains_key(&id));
                owner.mode() == CommandMode::Poll && placed.termination.is_some() && delete_sent
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
            // Accepted or refused, the agent does not have the runner.
            return self.record_vanished_end(id, now);
        }
        if !ack.error.is_empty() {
            let due = session.delete_refused(id, now.mono);
            if let Some(suppressed) =
                self.log_limiter.admit(&format!("delete refused {id}"), LogLimit::Few, now.mono)
            {
                tracing::warn!(runner_id = %id, agent_id = %agent, reason = %ack.error, suppressed,
                    "delete refused; retrying");
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
        // The id comes from the agent, so the runner may be unknown.
        let Some(runner) = self.runners.get_mut(&id) else { return };
        let is_outdated = commands::create_id(runner) != ack.command_id;
        let Phase::Placed(placed) = &mut runner.phase else { return };
        if is_outdated || placed.agent != agent || !matches!(placed.delivery, Delivery::Pending(_)) {
            return;
        }
        if ack.error.is_empty() || listed {
            placed.delivery = Delivery::Done;
            self.decision.writes.push(Write::ForgetScript(id));
            self.touch(id);
            return;
        }
        if ack.try_elsewhere && placed.termination.is_none() {
            return self.requeue(id, agent, &ack.error, now);
        }
        let kind = match &placed.termination {
            Some(_) => wire::EndKind::Deleted,
            None => wire::EndKind::Failed,
        };
        self.observe(Observation::CreateRefused);
        let reason = format!("the agent refused to create it: {}", report::bounded_text(&ack.error));
        self.record_end(id, report::end(kind, reason, wire::RunnerStage::Clone.into(), now.wall), now);
    }

    /// Replies to a message: with every command that is due, or to a Go agent with at most one.
    fn answer(&mut self, session: SessionId, agent: AgentId, end_acks: Vec<String>, now: Now) {
        let polls = self.agents.get(&agent).is_some_and(|a| a.mode() == CommandMode::Poll);
        if polls {
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
        let Some((session, CommandMode::Push)) =
            self.agents.get(&agent).and_then(|a| a.session.as_ref().map(|s| (s.id, a.mode())))
        else {
            return;
        };
        while let Some(command) = self.next_command(agent, now) {
            self.effect(Effect::Send(session, Box::new(command)));
        }
    }

    fn next_command(&mut self, agent: AgentId, now: Now) -> Option<wire::SyncResponse> {
        let owner = self.agents.get_mut(&agent)?;
        let mode = owner.mode();
        let session = owner.session.as_mut()?;
        if let Some(stray) = session.strays.iter().copied().find(|id| session.may_delete(*id, now.mono)) {
            let command_id = session.delete_sent(stray, mode, now.mono);
            return Some(commands::delete(stray, command_id, String::new()));
        }
        for id in self.by_agent.get(&agent).into_iter().flatten() {
            let Some(runner) = runner_mut(&mut self.runners, *id) else { continue };
            let Phase::Placed(placed) = &runner.phase else { continue };
            if placed.termination.is_some() {
                if session.may_delete(*id, now.mono) {
                    let command_id = session.delete_sent(*id, mode, now.mono);
                    return Some(commands::delete(*id, command_id, runner.request_id.clone()));
                }
            } else if let Delivery::Pending(script) = &placed.delivery
                && session.creates.insert(*id)
            {
                let command = commands::create(runner, placed, script, &self.policy);
                if std::mem::replace(&mut runner.live.sent_before, true) {
                    self.decision.effects.push(Effect::Observe(Observation::Resent));
                }
                return Some(command);
            }
        }
        None
    }
}

/// Whether an agent should have a runner that it lists.
#[derive(Debug, PartialEq, Eq)]
enum Standing {
    Known,
    Stray,
}
