//! What could not be written yet, and what must not be told before it is.
//!
//! ```text
//!            a commit fails                      one succeeds (tried again after a pause)
//! writable ────────────────▶ unwritable ────────────────────────────────────────────────▶ writable
//!  tells what it wrote        keeps the last row of each runner and agent                  tells what was held
//!                             refuses answers, and holds commands, that speak of one
//! ```
//! An effect may be told if and only if none of the rows it speaks of is kept here. A row is kept once, however often it
//! changes, so that this is never larger than the fleet. Should the server end before the rows are written, agents tell
//! again of everything they say: an end is acknowledged only once it is durable.

use std::collections::{BTreeMap, BTreeSet};

use shoes_vz_model::{AgentId, RunnerId};
use shoes_vz_proto::agent::{self as wire, sync_response::Command};

use super::types::{Effect, Refusal, SessionId, Write};

/// See the module.
#[derive(Debug, Default)]
pub struct Unwritten {
    rows: BTreeMap<Row, Write>,
    held: Vec<(SessionId, Box<wire::SyncResponse>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Row {
    Agent(AgentId),
    Runner(RunnerId),
    Script(RunnerId),
}

/// What becomes of an effect.
#[derive(Debug)]
pub enum Told {
    /// It may be told.
    Now(Effect),
    /// A caller was to be told that it has the runner: it is refused instead, and has it not.
    Unclaimed(RunnerId, Effect),
    /// It is told later, or not at all.
    Held,
}

impl Unwritten {
    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// How many rows there are to write.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Of each row the last one counts.
    pub fn keep(&mut self, writes: impl IntoIterator<Item = Write>) {
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

    /// Everything, to be written in one transaction.
    pub fn writes(&self) -> Vec<Write> {
        self.rows.values().cloned().collect()
    }

    /// It is all durable. Gives the commands that were held, in their order.
    pub fn written(&mut self) -> Vec<(SessionId, Box<wire::SyncResponse>)> {
        self.rows.clear();
        std::mem::take(&mut self.held)
    }

    /// Forgets those runners' rows.
    pub fn forget(&mut self, runners: &BTreeSet<RunnerId>) {
        self.rows.retain(|row, _| match row {
            Row::Runner(id) | Row::Script(id) => !runners.contains(id),
            Row::Agent(_) => true,
        });
    }

    /// Nobody listens to that stream any more.
    pub fn forget_session(&mut self, session: SessionId) {
        self.held.retain(|(of, _)| *of != session);
    }

    /// What becomes of an effect while `reason` holds.
    pub fn judge(&mut self, effect: Effect, reason: &str) -> Told {
        let refusal = || Refusal::Unwritable(reason.to_owned());
        match effect {
            Effect::Added(waiter, Ok(added)) if self.has(added.runner_id) => {
                Told::Unclaimed(added.runner_id, Effect::Added(waiter, Err(refusal())))
            }
            Effect::Deleted(waiter, Ok(id)) if self.has(id) => {
                Told::Now(Effect::Deleted(waiter, Err(refusal())))
            }
            Effect::Ordered(waiter, Ok(view)) => {
                let agent = view.agent.as_ref().and_then(|a| a.agent_id.parse().ok());
                match agent.is_some_and(|id| self.rows.contains_key(&Row::Agent(id))) {
                    true => Told::Now(Effect::Ordered(waiter, Err(refusal()))),
                    false => Told::Now(Effect::Ordered(waiter, Ok(view))),
                }
            }
            Effect::Send(session, command) if self.speaks_of(&command) => {
                // An agent repeats what is not acknowledged; once is enough to answer it.
                let held = (session, command);
                if !self.held.contains(&held) {
                    self.held.push(held);
                }
                Told::Held
            }
            other => Told::Now(other),
        }
    }

    fn has(&self, runner: RunnerId) -> bool {
        self.rows.contains_key(&Row::Runner(runner))
    }

    fn speaks_of(&self, response: &wire::SyncResponse) -> bool {
        let acknowledged = response.end_acks.iter().filter_map(|id| id.parse().ok());
        acknowledged.chain(commanded(response)).any(|id| self.has(id))
    }
}

/// The runner a command is about.
pub fn commanded(response: &wire::SyncResponse) -> Option<RunnerId> {
    match &response.command {
        Some(Command::CreateRunner(create)) => create.runner_id.parse().ok(),
        Some(Command::DeleteRunner(delete)) => delete.runner_id.parse().ok(),
        Some(Command::Noop(_)) | None => None,
    }
}

#[cfg(test)]
mod tests {
    use shoes_vz_model::CloudId;

    use super::{
        super::types::{Added, WaiterId},
        *,
    };

    #[test]
    fn only_what_speaks_of_an_unwritten_row_is_held_or_refused() {
        let (kept, other) = (RunnerId::random(), RunnerId::random());
        let mut unwritten = Unwritten::default();
        unwritten.keep([Write::RemoveRunner(kept)]);
        let ack = |id: RunnerId| {
            Effect::Send(SessionId(1), Box::new(super::super::commands::noop(vec![id.to_string()])))
        };
        assert!(matches!(unwritten.judge(ack(other), "full"), Told::Now(_)));
        assert!(matches!(unwritten.judge(ack(kept), "full"), Told::Held));
        assert!(matches!(unwritten.judge(ack(kept), "full"), Told::Held));
        let added = |id: RunnerId| Added {
            runner_id: id,
            cloud_id: CloudId::random(),
            ip_address: String::new(),
            resource_type: shoes_vz_model::ResourceType::Nano,
        };
        let ready = |id| Effect::Added(WaiterId(1), Ok(added(id)));
        assert!(matches!(unwritten.judge(ready(other), "full"), Told::Now(Effect::Added(_, Ok(_)))));
        let told = unwritten.judge(ready(kept), "full");
        assert!(
            matches!(&told, Told::Unclaimed(id, Effect::Added(_, Err(Refusal::Unwritable(_)))) if *id == kept)
        );
        let gone = |id| Effect::Deleted(WaiterId(1), Ok(id));
        assert!(matches!(unwritten.judge(gone(other), "full"), Told::Now(Effect::Deleted(_, Ok(_)))));
        assert!(matches!(unwritten.judge(gone(kept), "full"), Told::Now(Effect::Deleted(_, Err(_)))));

        assert_eq!(unwritten.written().len(), 1, "a repeated acknowledgement is held once");
        assert!(matches!(unwritten.judge(ack(kept), "full"), Told::Now(_)), "it is durable now");
    }

    #[test]
    fn the_last_row_of_each_runner_is_kept_and_no_more() {
        let id = RunnerId::random();
        let mut unwritten = Unwritten::default();
        for _ in 0..1000 {
            unwritten.keep([Write::ForgetScript(id), Write::RemoveRunner(id)]);
        }
        assert_eq!(unwritten.len(), 2);
    }
}
