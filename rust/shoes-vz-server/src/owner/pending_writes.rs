//! Rows that could not be written yet, and effects that must wait for them.
//!
//! ```text
//!            a commit fails                      one succeeds (retried after a pause)
//! writable ────────────────▶ unwritable ────────────────────────────────────────────────▶ writable
//!  performs every effect      keeps the last version of each row                           performs the held commands
//!                             refuses answers, and holds commands, that depend on one
//! ```
//! An effect may be performed if and only if none of the rows it depends on is kept here. A row is kept once, however often
//! it changes, so this is never larger than the fleet. If the server stops before the rows are written, agents repeat their
//! reports: an end is acknowledged only once it is durable.

use std::collections::{BTreeMap, BTreeSet};

use shoes_vz_model::{AgentId, RunnerId};
use shoes_vz_proto::{
    agent::{self as wire, sync_response::Command},
    fleet::AgentView,
};

use crate::fleet::{
    event::{Effect, Refusal, Write},
    values::SessionId,
};

#[derive(Debug, Default)]
pub(super) struct PendingWrites {
    rows: BTreeMap<Row, Write>,
    held: Vec<(SessionId, Box<wire::SyncResponse>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    Agent(AgentId),
    Runner(RunnerId),
    Script(RunnerId),
}

/// What to do with an effect.
#[derive(Debug)]
pub(super) enum Verdict {
    Perform(Effect),
    /// The effect would answer a caller that the runner is theirs. Perform this refusal instead, and drop the claim.
    Unclaim(RunnerId, Effect),
    /// The effect is kept until the rows are written.
    Held,
}

impl PendingWrites {
    /// How many rows wait to be written.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Keeps the last version of each row.
    pub(super) fn keep(&mut self, writes: impl IntoIterator<Item = Write>) {
        for write in writes {
            let row = match &write {
                Write::Runner(runner) => Row::Runner(runner.id),
                Write::RemoveRunner(id) => Row::Runner(*id),
                Write::Script(id, _) | Write::ForgetScript(id) => Row::Script(*id),
                Write::Agent(agent) => Row::Agent(agent.id),
                Write::RemoveAgent(id) => Row::Agent(*id),
            };
            self.rows.insert(row, write);
        }
    }

    /// All rows, for one transaction.
    pub(super) fn writes(&self) -> Vec<Write> {
        self.rows.values().cloned().collect()
    }

    /// Everything is durable: returns the commands that were held, in their order.
    pub(super) fn written(&mut self) -> Vec<(SessionId, Box<wire::SyncResponse>)> {
        self.rows.clear();
        std::mem::take(&mut self.held)
    }

    /// Drops the rows of these runners.
    pub(super) fn forget(&mut self, runners: &BTreeSet<RunnerId>) {
        self.rows.retain(|row, _| match row {
            Row::Runner(id) | Row::Script(id) => !runners.contains(id),
            Row::Agent(_) => true,
        });
    }

    /// The stream has ended.
    pub(super) fn forget_session(&mut self, session: SessionId) {
        self.held.retain(|(of, _)| *of != session);
    }

    /// Judges an effect while the store cannot be written for this reason.
    pub(super) fn judge(&mut self, effect: Effect, reason: &str) -> Verdict {
        let refusal = || Refusal::Unwritable(reason.to_owned());
        match effect {
            Effect::Added(waiter, Ok(added)) if self.has(added.runner_id) => {
                Verdict::Unclaim(added.runner_id, Effect::Added(waiter, Err(refusal())))
            }
            Effect::Deleted(waiter, Ok(id)) if self.has(id) => {
                Verdict::Perform(Effect::Deleted(waiter, Err(refusal())))
            }
            Effect::Cordoned(waiter, Ok(view)) if self.has_agent(&view) => {
                Verdict::Perform(Effect::Cordoned(waiter, Err(refusal())))
            }
            Effect::Send(session, command) if self.depends_on(&command) => {
                // An agent repeats what is not acknowledged; one acknowledgement is enough.
                let held = (session, command);
                if !self.held.contains(&held) {
                    self.held.push(held);
                }
                Verdict::Held
            }
            other => Verdict::Perform(other),
        }
    }

    fn has(&self, runner: RunnerId) -> bool {
        self.rows.contains_key(&Row::Runner(runner))
    }

    fn has_agent(&self, view: &AgentView) -> bool {
        let agent = view.agent.as_ref().and_then(|a| a.agent_id.parse().ok());
        agent.is_some_and(|id| self.rows.contains_key(&Row::Agent(id)))
    }

    fn depends_on(&self, response: &wire::SyncResponse) -> bool {
        let acknowledged = response.end_acks.iter().filter_map(|id| id.parse().ok());
        acknowledged.chain(commanded(response)).any(|id| self.has(id))
    }
}

/// The runner a command is about.
pub(super) fn commanded(response: &wire::SyncResponse) -> Option<RunnerId> {
    match &response.command {
        Some(Command::CreateRunner(create)) => create.runner_id.parse().ok(),
        Some(Command::DeleteRunner(delete)) => delete.runner_id.parse().ok(),
        Some(Command::Noop(_)) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use shoes_vz_model::CloudId;

    use super::*;
    use crate::fleet::{commands, runner::Added, values::WaiterId};

    #[test]
    fn only_what_depends_on_an_unwritten_row_is_held_or_refused() {
        let (kept, other) = (RunnerId::random(), RunnerId::random());
        let mut pending_writes = PendingWrites::default();
        pending_writes.keep([Write::RemoveRunner(kept)]);
        let ack = |id: RunnerId| Effect::Send(SessionId(1), Box::new(commands::noop(vec![id.to_string()])));
        assert!(matches!(pending_writes.judge(ack(other), "full"), Verdict::Perform(_)));
        assert!(matches!(pending_writes.judge(ack(kept), "full"), Verdict::Held));
        assert!(matches!(pending_writes.judge(ack(kept), "full"), Verdict::Held));
        let added = |id: RunnerId| Added {
            runner_id: id,
            cloud_id: CloudId::random(),
            ip_address: String::new(),
            resource_type: shoes_vz_model::ResourceType::Nano,
        };
        let ready = |id| Effect::Added(WaiterId(1), Ok(added(id)));
        assert!(matches!(
            pending_writes.judge(ready(other), "full"),
            Verdict::Perform(Effect::Added(_, Ok(_)))
        ));
        let verdict = pending_writes.judge(ready(kept), "full");
        assert!(
            matches!(&verdict, Verdict::Unclaim(id, Effect::Added(_, Err(Refusal::Unwritable(_)))) if *id == kept)
        );
        let deleted = |id| Effect::Deleted(WaiterId(1), Ok(id));
        assert!(matches!(
            pending_writes.judge(deleted(other), "full"),
            Verdict::Perform(Effect::Deleted(_, Ok(_)))
        ));
        assert!(matches!(
            pending_writes.judge(deleted(kept), "full"),
            Verdict::Perform(Effect::Deleted(_, Err(_)))
        ));

        assert_eq!(pending_writes.written().len(), 1, "a repeated acknowledgement is held once");
        assert!(matches!(pending_writes.judge(ack(kept), "full"), Verdict::Perform(_)), "it is durable now");
    }

    #[test]
    fn the_last_row_of_each_runner_is_kept_and_no_more() {
        let id = RunnerId::random();
        let mut pending_writes = PendingWrites::default();
        for _ in 0..1000 {
            pending_writes.keep([Write::ForgetScript(id), Write::RemoveRunner(id)]);
        }
        assert_eq!(pending_writes.len(), 2);
    }
}
