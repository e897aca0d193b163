//! AddInstance, DeleteInstance, and callers that go away.

use std::time::Duration;

use shoes_vz_model::{CloudId, RunnerId, State};

use crate::fleet::{
    demand::Demand,
    labels::{self, UnknownLabels},
    runner::{Doom, DoomKind, Live, Phase, Placed, Runner},
    schedule::{self, Link},
    types::{AddRequest, Added, Effect, Fresh, Now, Refusal, WaiterId, Write},
};

use crate::repeats::Say;

use super::{Call, Core, Refused, Timer, Waiter};

/// Time kept back so that the words arrive before the caller's own deadline does.
fn margin(patience: Duration) -> Duration {
    (patience / 10).min(Duration::from_secs(5))
}

impl Core {
    pub(super) fn on_add(
        &mut self,
        waiter: WaiterId,
        request: AddRequest,
        patience: Duration,
        fresh: Fresh,
        now: Now,
    ) {
        // A queue stored by an earlier version may have such a name.
        self.refuse_if_served(&request.name, now);
        let current = self.current.get(&request.name).copied();
        let id = match current {
            Some(id) => id,
            None => match self.may_be_made(&request) {
                Ok(demand) => self.enqueue(request, demand, fresh, now),
                Err(refusal) => return self.effect(Effect::Added(waiter, Err(refusal))),
            },
        };
        let Some(runner) = self.runners.get_mut(&id) else { return };
        if let Some(grace) = runner.live.grace.take() {
            self.timers.remove(&(grace, Timer::Grace(id)));
        }
        self.wait(waiter, id, Call::Add, patience, now);
        self.answer_if_ready(id);
        self.turn.changed.push(id);
        self.reschedule = true;
    }

    /// What a runner that is not there yet is made by.
    fn may_be_made(&self, request: &AddRequest) -> Result<Demand, Refusal> {
        self.has_served(&request.name).map_or(Ok(()), Err)?;
        self.check_labels(&request.labels)?;
        let demand = self.demand(request)?;
        self.writable().map(|()| demand)
    }

    fn check_labels(&self, asked: &[String]) -> Result<(), Refusal> {
        match (self.policy.unknown_labels, self.unknown_label(asked)) {
            (UnknownLabels::Refuse, Some(label)) => Err(Refusal::Invalid(label)),
            (UnknownLabels::Refuse, None) | (UnknownLabels::Wait | UnknownLabels::Ignore, _) => Ok(()),
        }
    }

    /// That no agent offers one of the labels, and what to do.
    fn unknown_label(&self, asked: &[String]) -> Option<String> {
        let offers = self.agents.values().map(|a| &a.offers);
        let label = labels::first_unknown(asked, &self.policy.accepted_labels, offers)?;
        Some(format!(
            "label {:?} is offered by no template of any agent; add it to a template's Template.json or to \
             the server's accepted_labels, start an agent that offers it, or start the server with --unknown-labels ignore",
            label.chars().take(80).collect::<String>()
        ))
    }

    fn demand(&self, request: &AddRequest) -> Result<Demand, Refusal> {
        let demand = self.policy.demands.of(request.resource_type, &request.labels);
        demand.map_err(|conflict| Refusal::Invalid(conflict.to_string()))
    }

    fn enqueue(&mut self, request: AddRequest, demand: Demand, fresh: Fresh, now: Now) -> RunnerId {
        let id = fresh.runner;
        tracing::info!(runner_id = %id, cloud_id = %fresh.cloud, runner_name = %request.name,
            request_id = %request.request_id, resource_type = %request.resource_type, labels = ?request.labels,
            "runner wanted");
        self.turn.writes.push(Write::Script(id, request.script.clone()));
        self.by_cloud.insert(fresh.cloud, id);
        self.current.insert(request.name.clone(), id);
        self.queue.push(id);
        let live =
            Live { began: now.mono, queued_since: now.mono, arrival: self.next_arrival(), ..Live::default() };
        self.runners.insert(
            id,
            Runner {
                id,
                cloud_id: fresh.cloud,
                name: request.name,
                resource_type: request.resource_type,
                shape: demand.shape,
                template: demand.template,
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

    fn wait(&mut self, waiter: WaiterId, runner: RunnerId, call: Call, patience: Duration, now: Now) {
        let Some(row) = self.runners.get_mut(&runner) else { return };
        match call {
            Call::Add => row.live.adders.push(waiter),
            Call::Delete => row.live.deleters.push(waiter),
        }
        self.waiters.insert(waiter, Waiter { runner, call });
        self.timers.insert((now.mono + patience.saturating_sub(margin(patience)), Timer::Deadline(waiter)));
    }

    /// Answers every caller that waits for the runner to be ready, if it is.
    pub(super) fn answer_if_ready(&mut self, id: RunnerId) {
        let Some(runner) = self.runners.get(&id) else { return };
        let Some(added) = runner.added().filter(|_| self.unwritable.is_none()) else { return };
        self.answer_adders(id, &added);
    }

    /// Answers every caller that waits for the runner with success.
    pub(super) fn answer_adders(&mut self, id: RunnerId, added: &Added) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        if runner.live.adders.is_empty() {
            return;
        }
        let adders = std::mem::take(&mut runner.live.adders);
        runner.claims += u32::try_from(adders.len()).unwrap_or(u32::MAX);
        for waiter in adders {
            self.waiters.remove(&waiter);
            self.effect(Effect::Added(waiter, Ok(added.clone())));
        }
        self.touch(id);
    }

    /// Answers every caller that waits for the runner with a failure.
    pub(super) fn fail_adders(&mut self, id: RunnerId, refusal: &Refusal) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        for waiter in std::mem::take(&mut runner.live.adders) {
            self.waiters.remove(&waiter);
            self.effect(Effect::Added(waiter, Err(refusal.clone())));
        }
    }

    pub(super) fn on_delete(&mut self, waiter: WaiterId, cloud_id: CloudId, patience: Duration, now: Now) {
        let Some(id) = self.by_cloud.get(&cloud_id).copied() else {
            let words = format!("{cloud_id} is not known, nor was it within the time tombstones are kept");
            return self.effect(Effect::Deleted(waiter, Err(Refusal::NotFound(words))));
        };
        let needs_write = self.runners.get(&id).is_some_and(|r| match &r.phase {
            Phase::Queued(_) => true,
            Phase::Placed(placed) => placed.doom.is_none(),
            Phase::Ended(_) => false,
        });
        if let (true, Err(refusal)) = (needs_write, self.writable()) {
            return self.effect(Effect::Deleted(waiter, Err(refusal)));
        }
        let reason = "deleted on request".to_owned();
        self.doom(id, Doom { kind: DoomKind::Deleted, reason }, now);
        if self.runners.get(&id).is_some_and(Runner::is_alive) {
            self.wait(waiter, id, Call::Delete, patience, now);
        } else {
            self.effect(Effect::Deleted(waiter, Ok(id)));
        }
    }

    /// Decides that a runner goes. A queued one is over at once; a placed one when its agent says so.
    pub(super) fn doom(&mut self, id: RunnerId, doom: Doom, now: Now) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        match &mut runner.phase {
            Phase::Ended(_) => {}
            Phase::Queued(_) => self.bury_queued(id, &doom, now),
            Phase::Placed(Placed { doom: Some(_), .. }) => {}
            Phase::Placed(placed) => {
                let agent = placed.agent;
                tracing::info!(runner_id = %id, agent_id = %agent, reason = %doom.reason, "runner is to go");
                let refusal = Refusal::Aborted(format!("{}: {}", runner.name, doom.reason));
                placed.doom = Some(doom);
                self.fail_adders(id, &refusal);
                self.no_longer_wanted(id);
                self.touch(id);
                self.dispatch(agent, now);
            }
        }
    }

    /// Its name may be asked for anew, and it has no grace to lose.
    pub(super) fn no_longer_wanted(&mut self, id: RunnerId) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        if let Some(grace) = runner.live.grace.take() {
            self.timers.remove(&(grace, Timer::Grace(id)));
        }
        if self.current.get(&runner.name) == Some(&id) {
            self.current.remove(&runner.name);
        }
    }

    pub(super) fn on_caller_gone(&mut self, waiter: WaiterId, now: Now) {
        if let Some(gone) = self.drop_waiter(waiter) {
            let key = format!("caller gone {}", gone.runner);
            if let Some(repeats) = self.repeats.note(&key, Say::AFewTimes, now.mono) {
                tracing::info!(runner_id = %gone.runner, call = ?gone.call, repeats, "the caller went away");
            }
            self.mind_unattended(gone.runner, now);
            self.turn.changed.push(gone.runner);
        }
    }

    fn drop_waiter(&mut self, waiter: WaiterId) -> Option<Waiter> {
        let gone = self.waiters.remove(&waiter)?;
        if let Some(runner) = self.runners.get_mut(&gone.runner) {
            runner.live.adders.retain(|w| *w != waiter);
            runner.live.deleters.retain(|w| *w != waiter);
        }
        Some(gone)
    }

    pub(super) fn on_undelivered(&mut self, id: RunnerId, now: Now) {
        let Some(runner) = self.runners.get_mut(&id) else { return };
        runner.claims = runner.claims.saturating_sub(1);
        self.touch(id);
        self.mind_unattended(id, now);
    }

    /// A runner that nobody waits for and nobody has goes after a grace.
    pub(super) fn mind_unattended(&mut self, id: RunnerId, now: Now) {
        let grace = self.policy.grace;
        let Some(runner) = self.runners.get_mut(&id) else { return };
        let unattended = runner.live.adders.is_empty() && runner.claims == 0 && !runner.is_dying();
        if unattended && runner.live.grace.is_none() {
            let at = now.mono + grace;
            runner.live.grace = Some(at);
            self.timers.insert((at, Timer::Grace(id)));
        }
    }

    pub(super) fn mind_all_touched(&mut self, now: Now) {
        let touched: Vec<RunnerId> = self.turn.changed.clone();
        for id in touched {
            self.mind_unattended(id, now);
        }
    }

    pub(super) fn on_grace_over(&mut self, id: RunnerId, at: Duration, now: Now) {
        if self.unwritable.is_some() {
            // Its caller may be one of those that cannot be answered now: it has the whole grace once they can.
            if let Some(runner) = self.runners.get_mut(&id).filter(|r| r.live.grace == Some(at)) {
                let again = now.mono + self.policy.grace.max(Duration::from_secs(1));
                runner.live.grace = Some(again);
                self.timers.insert((again, Timer::Grace(id)));
            }
            return;
        }
        if self.runners.get(&id).is_some_and(|r| r.live.grace == Some(at)) {
            let reason = format!(
                "its caller went away and nobody asked for it again within {} s",
                self.policy.grace.as_secs_f32()
            );
            self.doom(id, Doom { kind: DoomKind::Deleted, reason }, now);
        }
    }

    pub(super) fn on_deadline(&mut self, waiter: WaiterId) {
        let Some(gone) = self.drop_waiter(waiter) else { return };
        let Some(runner) = self.runners.get(&gone.runner) else { return };
        let host = self.host_of(runner);
        let away = match runner.placed().and_then(|p| self.agents.get(&p.agent)).map(|a| a.link()) {
            Some(Link::Online) => "",
            Some(Link::Offline) | None => ", which is offline",
        };
        let name = &runner.name;
        let ready = runner.added().is_some();
        let effect = match (gone.call, &runner.phase) {
            (Call::Add, _) if ready && let Err(refusal) = self.writable() => {
                Effect::Added(waiter, Err(refusal))
            }
            (Call::Add, Phase::Queued(_)) => Effect::Added(
                waiter,
                Err(Refusal::Exhausted(format!(
                    "no slot for {name} before the caller's deadline: {}",
                    self.why_no_slot(runner)
                ))),
            ),
            (Call::Add, _) => Effect::Added(
                waiter,
                Err(Refusal::Deadline(format!(
                    "{name} is not ready before the caller's deadline: it is in stage {} on {host}{away}; \
                     a retry with the same name within {} s joins it",
                    runner.stage(),
                    self.policy.grace.as_secs_f32(),
                ))),
            ),
            (Call::Delete, _) if away.is_empty() => Effect::Deleted(
                waiter,
                Err(Refusal::Deadline(format!(
                    "{host} has not reported {name} gone before the caller's deadline; it is being removed, try again"
                ))),
            ),
            (Call::Delete, _) => Effect::Deleted(
                waiter,
                Err(Refusal::Unavailable(format!(
                    "{name} is on {host}{away}; it is marked for deletion and goes when that agent is back"
                ))),
            ),
        };
        self.turn.changed.push(gone.runner);
        self.effect(effect);
    }

    /// The agent left a failed runner standing.
    pub(super) fn on_failed_for_long(&mut self, id: RunnerId, at: Duration, now: Now) {
        let due =
            self.runners.get(&id).is_some_and(|r| r.live.sweep == Some(at) && r.state() == State::Error);
        if due {
            let reason = self.runners.get(&id).map(|r| r.report().error_message).unwrap_or_default();
            self.doom(id, Doom { kind: DoomKind::Failed, reason }, now);
        }
    }

    /// Why a queued runner still waits; "" when it does not.
    pub(super) fn why_pending(&self, runner: &Runner) -> String {
        if !matches!(runner.phase, Phase::Queued(_)) {
            return String::new();
        }
        if runner.live.adders.is_empty() {
            return "its caller went away; it keeps its place for a retry".into();
        }
        self.why_no_slot(runner)
    }

    fn why_no_slot(&self, runner: &Runner) -> String {
        if let Some(reason) = &self.unwritable {
            return reason.clone();
        }
        if let Some(last) = self.placed_names.get(&runner.name).and_then(|ids| ids.first()) {
            let host = self.runners.get(last).map(|r| self.host_of(r)).unwrap_or_default();
            return format!("the last VM of this name ({last}) is not gone from {host} yet");
        }
        if self.agents.is_empty() {
            return "no agent is registered".into();
        }
        if self.policy.unknown_labels != UnknownLabels::Ignore
            && let Some(reason) = self.unknown_label(&runner.labels)
        {
            return reason;
        }
        let refused: Refused = match schedule::choose(&self.candidates(), self.want(runner)) {
            Ok(_) => return String::new(),
            Err(why) => why.into_iter().map(|(host, why)| (host.to_owned(), why)).collect(),
        };
        let mut words: Vec<String> = refused.iter().map(|(host, why)| format!("{host} {why}")).collect();
        if words.len() > 20 {
            let rest = words.len() - 20;
            words.truncate(20);
            words.push(format!("and {rest} more"));
        }
        words.join("; ")
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
