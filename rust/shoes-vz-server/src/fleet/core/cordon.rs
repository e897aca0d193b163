//! Operators' decisions about agents.

use shoes_vz_model::AgentId;

use crate::fleet::{
    agent::Cordon,
    event::{CordonOrder, Effect, Refusal, Write},
    values::{Now, WaiterId},
};

use super::Core;

/// Longest reason, in bytes.
const MAX_REASON: usize = 1 << 10;

impl Core {
    pub(super) fn on_cordon_order(&mut self, waiter: WaiterId, agent: &str, order: CordonOrder, now: Now) {
        let done = self.find_agent(agent).and_then(|id| self.set_cordon(id, order, now));
        let answer = done.and_then(|id| {
            let view = self.agent_view(id).map(Box::new);
            view.ok_or_else(|| unknown(agent))
        });
        self.effect(Effect::Cordoned(waiter, answer));
    }

    fn set_cordon(&mut self, id: AgentId, order: CordonOrder, now: Now) -> Result<AgentId, Refusal> {
        let cordon = match order {
            CordonOrder::Uncordon => None,
            CordonOrder::Cordon(reason) => Some(bounded_reason(&reason)?),
        };
        let Some(agent) = self.agents.get_mut(&id) else { return Ok(id) };
        let next = match (&agent.cordon, cordon) {
            (_, None) => None,
            (None, Some(reason)) => Some(Cordon { reason, since: now.wall }),
            (Some(present), Some(reason)) if reason.is_empty() => Some(present.clone()),
            (Some(present), Some(reason)) => Some(Cordon { reason, since: present.since }),
        };
        if agent.cordon == next {
            return Ok(id);
        }
        if let Some(reason) = &self.unwritable {
            return Err(Refusal::Unwritable(reason.clone()));
        }
        match &next {
            Some(Cordon { reason, .. }) => {
                tracing::info!(agent_id = %id, hostname = %agent.hostname, reason, "agent cordoned");
            }
            None => tracing::info!(agent_id = %id, hostname = %agent.hostname, "agent uncordoned"),
        }
        agent.cordon = next;
        self.decision.writes.push(Write::Agent(Box::new(agent.clone())));
        self.agent_changed(id);
        Ok(id)
    }

    /// Finds an agent by its id, or by a hostname (in any case) that no other agent has.
    fn find_agent(&self, named: &str) -> Result<AgentId, Refusal> {
        if named.is_empty() {
            return Err(Refusal::Invalid("the agent is missing: give its ID or its hostname".into()));
        }
        if let Some(id) = named.parse().ok().filter(|id| self.agents.contains_key(id)) {
            return Ok(id);
        }
        let found: Vec<AgentId> =
            self.agents.values().filter(|a| a.hostname.eq_ignore_ascii_case(named)).map(|a| a.id).collect();
        match found.as_slice() {
            [] => Err(unknown(named)),
            [one] => Ok(*one),
            several => {
                let each = several.iter().filter_map(|id| self.agents.get(id));
                let each: Vec<String> = each.map(|a| format!("{} ({})", a.id, a.status_label())).collect();
                Err(Refusal::Ambiguous(format!(
                    "{} agents have the hostname {named}; name one by its ID: {}",
                    several.len(),
                    each.join(", ")
                )))
            }
        }
    }
}

fn unknown(named: &str) -> Refusal {
    let named: String = named.chars().take(255).collect();
    Refusal::NotFound(format!("no agent has the ID or hostname {named:?}"))
}

/// A reason as it is stored: one line, within bounds.
fn bounded_reason(reason: &str) -> Result<String, Refusal> {
    if reason.len() > MAX_REASON {
        let refusal = format!("the reason has {} bytes; at most {MAX_REASON} are allowed", reason.len());
        return Err(Refusal::Invalid(refusal));
    }
    Ok(reason.replace(char::is_control, " ").trim().to_owned())
}
