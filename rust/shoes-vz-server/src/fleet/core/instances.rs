//! AddInstance, DeleteInstance, and callers that disconnect.

use std::time::Duration;

use shoes_vz_model::{CloudId, RunnerId, State};

use crate::fleet::{
    agent::Link,
    event::{AddRequest, Effect, Refusal, Write},
    labels::{self, UnknownLabels},
    requirements::VmRequirements,
    runner::{Added, Live, Phase, Placed, Runner, Termination, TerminationKind},
    schedule,
    values::{NewIds, Now, WaiterId},
};

use crate::log_limit::LogLimit;

use super::{Call, Core, Timer, Waiter, runner_mut};

/// Time to answer with the reason before the caller's deadline.
fn margin(timeout: Duration) -> Duration {
    (timeout / 10).min(Duration::from_secs(5))
}

impl Core {
    pub(super) fn on_add(
        &mut self,
        waiter: WaiterId,
        request: AddRequest,
        timeout: Duration,
        new_ids: NewIds,
        now: Now,
    ) {
        // A queue that an earlier version stored may have such a name.
        self.refuse_if_served(&request.name, now);
        let current = self.current.get(&request.name).copied();
        let id = match current {
            Some(id) => id,
            None => match self.check_new(&request) {
                Ok(requirements) => self.enqueue(request, requirements, new_ids, now),
                Err(refusal) => return self.effect(Effect::Added(waiter, Err(refusal))),
            },
        };
        let Some(runner) = runner_mut(&mut self.runners, id) else { return };
        if let Some(grace) = runner.live.grace.take() {
            self.timers.remove(&(grace, Timer::Grace(id)));
        }
        self.add_waiter(waiter, id, Call::Add, timeout, now);
        self.answer_if_ready(id);
        self.decision.changed.push(id);
        self.reschedule = true;
    }

    /// What a new runner requires, unless the request is refused.
    fn check_new(&self, request: &AddRequest) -> Result<VmRequirements, Refusal> {
        self.has_served(&request.name).map_or(Ok(()), Err)?;
        self.check_labels(&request.labels)?;
        let requirements = self.vm_requirements(request)?;
        self.writable().map(|()| requirements)
    }

    fn check_labels(&self, asked: &[String]) -> Result<(), Refusal> {
        match (self.policy.unknown_labels, self.unknown_label(asked)) {
            (UnknownLabels::Refuse, Some(label)) => Err(Refusal::Invalid(label)),
            (UnknownLabels::Refuse, None) | (UnknownLabels::Wait | UnknownLabels::Ignore, _) => Ok(()),
        }
    }

    /// The reason if no agent offers one of the labels, and what to do.
    fn unknown_label(&self, asked: &[String]) -> Option<String> {
        let offers = self.agents.values().map(|a| &a.offers);
        let label = labels::first_unknown(asked, &self.policy.accepted_labels, offers)?;
        Some(format!(
            "label {:?} is offered by no template of any agent; add it to a template's Template.json or to \
             the server's accepted_labels, start an agent that offers it, or start the server with --unknown-labels ignore",
            label.chars().take(80).collect::<String>()
        ))
    }

    fn vm_requirements(&self, request: &AddRequest) -> Result<VmRequirements, Refusal> {
        let requirements = self.policy.requirement_tables.of(request.resource_type, &request.labels);
        requirements.map_err(|conflict| Refusal::Invalid(conflict.to_string()))
    }

    fn enqueue(
        &mut self,
        request: AddRequest,
        requirements: VmRequirements,
        new_ids: NewIds,
        now: Now,
    ) -> RunnerId {
        let id = new_ids.runner;
        tracing::info!(runner_id = %id, cloud_id = %new_ids.cloud, runner_name = %request.name,
            request_id = %request.request_id, resource_type = %request.resource_type, labels = ?request.labels,
            "runner requested");
        self.decision.writes.push(Write::Script(id, request.script.clone()));
        self.by_cloud.insert(new_ids.cloud, id);
        self.current.insert(request.name.clone(), id);
        self.queue.push(id);
        let live =
            Live { began: now.mono, queued_since: now.mono, arrival: self.next_arrival(), ..Live::default() };
        self.runners.insert(
            id,
            Runner {
                id,
                cloud_id: new_ids.cloud,
                name: request.name,
                resource_type: request.resource_type,
                size: requirements.size,
                template: requirements.template,
                labels: request.labels,
                request_id: request.request_id,
                requested_at: now.wall,
                refusals: 0,
                claims: 0,
                phase: Phase::Queued(request.script),
                live,
            },
        );
        self.touch(id);
        id
    }

    fn add_waiter(&mut self, waiter: WaiterId, runner: RunnerId, call: Call, timeout: Duration, now: Now) {
        let Some(row) = runner_mut(&mut self.runners, runner) else { return };
        match call {
            Call::Add => row.live.add_waiters.push(waiter),
            Call::Delete => row.live.delete_waiters.push(waiter),
        }
        self.waiters.insert(waiter, Waiter { runner, call });
        self.timers.insert((now.mono + timeout.saturating_sub(margin(timeout)), Timer::Deadline(waiter)));
    }

    /// Answers every caller that waits for the runner to be ready, if it is.
    pub(super) fn answer_if_ready(&mut self, id: RunnerId) {
        let Some(runner) = self.runners.get(&id) else { return };
        let Some(added) = runner.added().filter(|_| self.unwritable.is_none()) else { return };
        self.answer_add_waiters(id, &added);
    }

    /// Answers every caller that waits for the runner with success.
    pub(super) fn answer_add_waiters(&mut self, id: RunnerId, added: &Added) {
        let Some(runner) = runner_mut(&mut self.runners, id) else { return };
        if runner.live.add_waiters.is_empty() {
            return;
        }
        let add_waiters = std::mem::take(&mut runner.live.add_waiters);
        runner.claims += u32::try_from(add_waiters.len()).unwrap_or(u32::MAX);
        for waiter in add_waiters {
            self.waiters.remove(&waiter);
            self.effect(Effect::Added(waiter, Ok(added.clone())));
        }
        self.touch(id);
    }

    /// Answers every caller that waits for the runner with a failure.
    pub(super) fn fail_add_waiters(&mut self, id: RunnerId, refusal: &Refusal) {
        let Some(runner) = runner_mut(&mut self.runners, id) else { return };
        for waiter in std::mem::take(&mut runner.live.add_waiters) {
            self.waiters.remove(&waiter);
            self.effect(Effect::Added(waiter, Err(refusal.clone())));
        }
    }

    pub(super) fn on_delete(&mut self, waiter: WaiterId, cloud_id: CloudId, timeout: Duration, now: Now) {
        let Some(id) = self.by_cloud.get(&cloud_id).copied() else {
            let reason = format!("{cloud_id} is not known: it never existed, or its tombstone has expired");
            return self.effect(Effect::Deleted(waiter, Err(Refusal::NotFound(reason))));
        };
        let needs_write = self.runners.get(&id).is_some_and(|r| match &r.phase {
            Phase::Queued(_) => true,
            Phase::Placed(placed) => placed.termination.is_none(),
            Phase::Ended(_) => false,
        });
        if let (true, Err(refusal)) = (needs_write, self.writable()) {
            return self.effect(Effect::Deleted(waiter, Err(refusal)));
        }
        self.terminate(id, TerminationKind::Deleted, "deleted on request".to_owned(), now);
        if self.runners.get(&id).is_some_and(Runner::is_alive) {
            self.add_waiter(waiter, id, Call::Delete, timeout, now);
        } else {
            self.effect(Effect::Deleted(waiter, Ok(id)));
        }
    }

    /// Decides to end a runner. A queued one ends at once; a placed one when its agent reports its end.
    pub(super) fn terminate(&mut self, id: RunnerId, kind: TerminationKind, reason: String, now: Now) {
        let Some(runner) = runner_mut(&mut self.runners, id) else { return };
        match &mut runner.phase {
            Phase::Ended(_) => {}
            Phase::Queued(_) => self.record_queued_end(id, kind, reason, now),
            Phase::Placed(Placed { termination: Some(_), .. }) => {}
            Phase::Placed(placed) => {
                let agent = placed.agent;
                tracing::info!(runner_id = %id, agent_id = %agent, %reason, "terminating runner");
                let refusal = Refusal::Aborted(format!("{}: {reason}", runner.name));
                placed.termination = Some(Termination { kind, reason });
                self.fail_add_waiters(id, &refusal);
                self.no_longer_wanted(id);
                self.touch(id);
                self.dispatch(agent, now);
            }
        }
    }

    /// Frees the runner's name for a new request, and stops its grace.
    pub(super) fn no_longer_wanted(&mut self, id: RunnerId) {
        let Some(runner) = runner_mut(&mut self.runners, id) else { return };
        if let Some(grace) = runner.live.grace.take() {
            self.timers.remove(&(grace, Timer::Grace(id)));
        }
        if self.current.get(&runner.name) == Some(&id) {
            self.current.remove(&runner.name);
        }
    }

    pub(super) fn on_caller_disconnected(&mut self, waiter: WaiterId, now: Now) {
        if let Some(dropped) = self.drop_waiter(waiter) {
            let key = format!("caller disconnected {}", dropped.runner);
            if let Some(suppressed) = self.log_limiter.admit(&key, LogLimit::Few, now.mono) {
                tracing::info!(runner_id = %dropped.runner, call = ?dropped.call, suppressed, "caller disconnected");
            }
            self.start_grace_if_unclaimed(dropped.runner, now);
            self.decision.changed.push(dropped.runner);
        }
    }

    fn drop_waiter(&mut self, waiter: WaiterId) -> Option<Waiter> {
        let dropped = self.waiters.remove(&waiter)?;
        if let Some(runner) = runner_mut(&mut self.runners, dropped.runner) {
            runner.live.add_waiters.retain(|w| *w != waiter);
            runner.live.delete_waiters.retain(|w| *w != waiter);
        }
        Some(dropped)
    }

    pub(super) fn on_undelivered(&mut self, id: RunnerId, now: Now) {
        // Its tombstone may have expired while the answer was on its way.
        let Some(runner) = self.runners.get_mut(&id) else { return };
        runner.claims = runner.claims.saturating_sub(1);
        self.touch(id);
        self.start_grace_if_unclaimed(id, now);
    }

    /// A runner that no caller waits for or owns is terminated after a grace.
    pub(super) fn start_grace_if_unclaimed(&mut self, id: RunnerId, now: Now) {
        let grace = self.policy.grace;
        // What this decision changed may also be removed by it.
        let Some(runner) = self.runners.get_mut(&id) else { return };
        let unclaimed = runner.live.add_waiters.is_empty() && runner.claims == 0 && !runner.is_dying();
        if unclaimed && runner.live.grace.is_none() {
            let at = now.mono + grace;
            runner.live.grace = Some(at);
            self.timers.insert((at, Timer::Grace(id)));
        }
    }

    pub(super) fn start_graces(&mut self, now: Now) {
        for id in self.decision.changed.clone() {
            self.start_grace_if_unclaimed(id, now);
        }
    }

    pub(super) fn on_grace_expired(&mut self, id: RunnerId, at: Duration, now: Now) {
        if self.unwritable.is_some() {
            // Its caller may be among those that cannot be answered now, so the grace starts over once they can.
            if let Some(runner) = self.runners.get_mut(&id).filter(|r| r.live.grace == Some(at)) {
                let again = now.mono + self.policy.grace.max(Duration::from_secs(1));
                runner.live.grace = Some(again);
                self.timers.insert((again, Timer::Grace(id)));
            }
            return;
        }
        if self.runners.get(&id).is_some_and(|r| r.live.grace == Some(at)) {
            let reason = format!(
                "its caller disconnected and did not ask for it again within {} s",
                self.policy.grace.as_secs_f32()
            );
            self.terminate(id, TerminationKind::Deleted, reason, now);
        }
    }

    pub(super) fn on_deadline(&mut self, waiter: WaiterId) {
        let Some(dropped) = self.drop_waiter(waiter) else { return };
        let Some(runner) = self.runners.get(&dropped.runner) else { return };
        let host = self.host_of(runner);
        let offline = match runner.placed().and_then(|p| self.agents.get(&p.agent)).map(|a| a.link()) {
            Some(Link::Online) => "",
            Some(Link::Offline) | None => ", which is offline",
        };
        let name = &runner.name;
        let ready = runner.added().is_some();
        let refusal = match (dropped.call, &runner.phase) {
            (Call::Add, _) if ready && let Err(refusal) = self.writable() => refusal,
            (Call::Add, Phase::Queued(_)) => Refusal::Exhausted(format!(
                "no slot for {name} before the caller's deadline: {}",
                self.no_slot_reason(runner)
            )),
            (Call::Add, _) => Refusal::Deadline(format!(
                "{name} is not ready before the caller's deadline: it is in stage {} on {host}{offline}; \
                 a retry with the same name within {} s joins it",
                runner.stage(),
                self.policy.grace.as_secs_f32(),
            )),
            (Call::Delete, _) if offline.is_empty() => Refusal::Deadline(format!(
                "{host} has not removed {name} before the caller's deadline; the removal continues, try again"
            )),
            (Call::Delete, _) => Refusal::Unavailable(format!(
                "{name} is on {host}{offline}; it is marked for deletion and will be removed once that agent reconnects"
            )),
        };
        self.decision.changed.push(dropped.runner);
        self.effect(match dropped.call {
            Call::Add => Effect::Added(waiter, Err(refusal)),
            Call::Delete => Effect::Deleted(waiter, Err(refusal)),
        });
    }

    /// The agent has not removed a failed runner in time.
    pub(super) fn on_cleanup_timeout(&mut self, id: RunnerId, at: Duration, now: Now) {
        let Some(runner) = self.runners.get(&id) else { return };
        if runner.live.cleanup_deadline == Some(at) && runner.state() == State::Error {
            let reason = runner.error_message();
            self.terminate(id, TerminationKind::Failed, reason, now);
        }
    }

    /// Why a runner is still queued; "" if it is not.
    pub(super) fn pending_reason(&self, runner: &Runner) -> String {
        if !matches!(runner.phase, Phase::Queued(_)) {
            return String::new();
        }
        if runner.live.add_waiters.is_empty() {
            return "its caller disconnected; it keeps its place for a retry".into();
        }
        self.no_slot_reason(runner)
    }

    fn no_slot_reason(&self, runner: &Runner) -> String {
        if let Some(reason) = &self.unwritable {
            return reason.clone();
        }
        if let Some(last) = self.placed_names.get(&runner.name).and_then(|ids| ids.first()) {
            let host = self.runners.get(last).map(|r| self.host_of(r)).unwrap_or_default();
            return format!("{host} has not removed the last VM of this name ({last}) yet");
        }
        if self.agents.is_empty() {
            return "no agent is registered".into();
        }
        if self.policy.unknown_labels != UnknownLabels::Ignore
            && let Some(reason) = self.unknown_label(&runner.labels)
        {
            return reason;
        }
        let mut reasons: Vec<String> = match schedule::choose(&self.candidates(), self.requirements(runner)) {
            Ok(_) => return String::new(),
            Err(rejections) => rejections.iter().map(|(host, reason)| format!("{host} {reason}")).collect(),
        };
        if reasons.len() > 20 {
            let rest = reasons.len() - 20;
            reasons.truncate(20);
            reasons.push(format!("and {rest} more"));
        }
        reasons.join("; ")
    }

    pub(super) fn host_of(&self, runner: &Runner) -> String {
        match &runner.phase {
            Phase::Queued(_) => String::new(),
            Phase::Placed(p) => {
                self.agents.get(&p.agent).map_or_else(|| p.agent.to_string(), |a| a.hostname.clone())
            }
            Phase::Ended(e) => e.hostname.clone(),
        }
    }
}
