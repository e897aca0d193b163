//! Agents: registration, Sync streams that open and close, and agents that stay offline.

use shoes_vz_model::AgentId;
use shoes_vz_proto::agent as wire;

use crate::{
    fleet::{
        agent::{Agent, Session},
        event::{Closed, Effect, Registration, Write},
        labels::Offers,
        report,
        values::{Now, SessionId, WaiterId},
    },
    log_limit::LogLimit,
};

use super::Core;

impl Core {
    pub(super) fn on_register(&mut self, waiter: WaiterId, registration: Registration, now: Now) {
        let Registration { agent_id, new_id, hostname, capacity, info } = registration;
        let id = agent_id.unwrap_or(new_id);
        let mut cordon = self.agents.get(&id).and_then(|a| a.cordon.clone());
        if agent_id.is_none() {
            let old = self
                .agents
                .values()
                .filter(|a| a.info.is_none() && a.session.is_none() && a.hostname == hostname);
            for old in old.map(|a| a.id).collect::<Vec<_>>() {
                // A Go agent has no persistent id, so the cordon was for its host.
                cordon = cordon.or_else(|| self.agents.get(&old).and_then(|a| a.cordon.clone()));
                self.forget_agent(
                    old,
                    "its Go agent restarted, and the VMs of a Go agent end with its process",
                    now,
                );
            }
        }
        // A Go agent that starts in a loop has a new id each time.
        let key = format!("registered {}", agent_id.map_or(hostname.clone(), |id| id.to_string()));
        if let Some(suppressed) = self.log_limiter.admit(&key, LogLimit::Few, now.mono) {
            tracing::info!(agent_id = %id, hostname, slots = capacity.max_runners, suppressed,
                version = info.as_ref().map_or("Go agent", |i| i.version.as_str()), "agent registered");
        }
        let offers = Offers::of(info.as_ref());
        let before = self.agents.get_mut(&id).map(|a| (a.session.take(), std::mem::take(&mut a.fallbacks)));
        let (session, fallbacks) = before.unwrap_or_default();
        let last_seen = now.wall;
        let agent = Agent { id, hostname, capacity, info, last_seen, offers, cordon, session, fallbacks };
        self.decision.writes.push(Write::Agent(Box::new(agent.clone())));
        self.agents.insert(id, agent);
        self.effect(Effect::Registered(waiter, id));
        self.agent_changed(id);
    }

    /// It was offline for too long: forgets it with its runners, or, when it is cordoned, only its runners.
    pub(super) fn expire_agent(&mut self, id: AgentId, reason: &str, now: Now) {
        match self.agents.get(&id).map(|a| &a.cordon) {
            Some(Some(_)) => self.record_runners_lost(id, reason, now),
            Some(None) | None => self.forget_agent(id, reason, now),
        }
    }

    fn forget_agent(&mut self, id: AgentId, reason: &str, now: Now) {
        self.record_runners_lost(id, reason, now);
        self.agents.remove(&id);
        self.decision.writes.push(Write::RemoveAgent(id));
        self.agent_changed(id);
    }

    fn record_runners_lost(&mut self, id: AgentId, reason: &str, now: Now) {
        let Some(agent) = self.agents.get(&id) else { return };
        tracing::warn!(agent_id = %id, hostname = %agent.hostname, reason, "agent's runners recorded as lost");
        let reason = format!("lost with {}: {reason}", agent.hostname);
        for runner in self.by_agent.get(&id).cloned().unwrap_or_default() {
            let stage = self.runners.get(&runner).map_or(0, |r| r.report().stage);
            let end = report::end(wire::EndKind::VmDied, reason.clone(), stage, now.wall);
            self.record_end(runner, end, now);
        }
    }

    pub(super) fn on_session_lost(&mut self, session: SessionId, reason: &str, now: Now) {
        let Some(id) = self.sessions.remove(&session) else { return };
        let Some(agent) = self.agents.get_mut(&id) else { return };
        if agent.session.as_ref().is_some_and(|s| s.id == session) {
            agent.session = None;
            agent.last_seen = now.wall;
            if let Some(suppressed) =
                self.log_limiter.admit(&format!("offline {id}"), LogLimit::Few, now.mono)
            {
                tracing::warn!(agent_id = %id, hostname = %agent.hostname, reason, suppressed,
                    "agent offline; its runners are kept, its slots are not counted");
            }
            let row = agent.clone();
            self.decision.writes.push(Write::Agent(Box::new(row)));
            let held = self.by_agent.get(&id).into_iter().flatten();
            self.decision.changed.extend(held);
            self.agent_changed(id);
        }
    }

    /// Whether `session` is this agent's current stream; the first message on a newer one makes it so.
    pub(super) fn open_session(&mut self, session: SessionId, id: AgentId, now: Now) -> bool {
        let closed = match (self.sessions.get(&session), self.agents.get(&id)) {
            (Some(owner), _) if *owner != id => Some(Closed::Unregistered),
            (_, None) => Some(Closed::Unregistered),
            (_, Some(agent)) => match &agent.session {
                Some(current) if current.id > session => Some(Closed::Replaced),
                Some(_) | None => None,
            },
        };
        if let Some(reason) = closed {
            self.effect(Effect::Close(session, reason));
            return false;
        }
        let Some(agent) = self.agents.get_mut(&id) else { return false };
        agent.last_seen = now.wall;
        if agent.session.as_ref().is_some_and(|s| s.id == session) {
            return true;
        }
        if let Some(suppressed) = self.log_limiter.admit(&format!("online {id}"), LogLimit::Few, now.mono) {
            tracing::info!(agent_id = %id, hostname = %agent.hostname, suppressed, "agent online");
        }
        if let Some(old) = agent.session.replace(Session::new(session)) {
            self.sessions.remove(&old.id);
            self.effect(Effect::Close(old.id, Closed::Replaced));
        }
        self.sessions.insert(session, id);
        let held = self.by_agent.get(&id).into_iter().flatten();
        self.decision.changed.extend(held);
        self.agent_changed(id);
        true
    }
}
