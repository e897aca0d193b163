//! `cordon`, `uncordon`, `drain`.

use std::time::Duration;

use serde_json::json;
use shoes_vz_proto::{
    agent::AgentStatus,
    fleet::{AgentView, CordonAgentRequest, DrainAgentRequest, UncordonAgentRequest},
};
use shoes_vz_terminal::{output::print, text};
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status, Streaming};

use super::{
    args::Drain,
    fleet::{WATCH_BUDGET, explain, fleet},
    outcome::{Failure, Format, Target, print_json},
    progress::{Counter, with_progress},
    view,
};
use crate::upstream::{Call, RetryBackoff, is_connection_loss};

pub(super) async fn cordon(
    target: &Target,
    agent: String,
    reason: String,
    budget: Duration,
) -> Result<(), Failure> {
    let call = Call::new("CordonAgent", budget, None);
    let message = CordonAgentRequest { agent, reason };
    let answer = target
        .server
        .call(&call, &message, async |channel, request| fleet(channel).cordon_agent(request).await);
    let answer = with_progress("the server", answer).await.map_err(explain)?;
    show(target.format, Done::Cordoned, &answer.into_inner().agent.unwrap_or_default())
}

pub(super) async fn uncordon(target: &Target, agent: String, budget: Duration) -> Result<(), Failure> {
    let call = Call::new("UncordonAgent", budget, None);
    let message = UncordonAgentRequest { agent };
    let answer = target
        .server
        .call(&call, &message, async |channel, request| fleet(channel).uncordon_agent(request).await);
    let answer = with_progress("the server", answer).await.map_err(explain)?;
    show(target.format, Done::Uncordoned, &answer.into_inner().agent.unwrap_or_default())
}

/// Waits until the agent has no runners, across restarts of the server. The cordon outlives both these restarts and this command.
pub(super) async fn drain(target: &Target, drain: Drain) -> Result<(), Failure> {
    let Drain { agent, reason, no_wait, timeout, .. } = drain;
    if no_wait {
        return cordon(target, agent, reason, timeout.map_or(WATCH_BUDGET, |t| t.0)).await;
    }
    let until = timeout.map(|t| Instant::now() + t.0);
    let mut counter = Counter::new("draining");
    let drained = until_drained(target, DrainAgentRequest { agent, reason }, until, &mut counter).await;
    drop(counter);
    show(target.format, Done::Drained, &drained?)
}

async fn until_drained(
    target: &Target,
    mut message: DrainAgentRequest,
    until: Option<Instant>,
    counter: &mut Counter,
) -> Result<AgentView, Failure> {
    let mut last = AgentView::default();
    let mut backoff = RetryBackoff::default();
    loop {
        let left = until.map_or(WATCH_BUDGET, |u| u.saturating_duration_since(Instant::now()));
        let call = Call::new("DrainAgent", left.min(WATCH_BUDGET), None).stream();
        let stream = target
            .server
            .call(&call, &message, async |channel, request| fleet(channel).drain_agent(request).await);
        let lost = match with_progress("the server", stream).await {
            Ok(views) => match follow(views.into_inner(), until, counter, &mut last).await {
                Ok(()) => return Ok(last),
                Err(status) => status,
            },
            Err(status) if status.code() == Code::Unavailable && until.is_none_or(|u| u > Instant::now()) => {
                status
            }
            Err(status) => return Err(explain(status)),
        };
        if !(is_connection_loss(&lost) || lost.code() == Code::Unavailable) {
            return Err(explain(lost));
        }
        tracing::warn!(server = %target.server.addr(), "connection to the server lost; reconnecting");
        // By ID, since the hostname may change; without the reason, which the cordon has already.
        if let Some(known) = &last.agent {
            message = DrainAgentRequest { agent: known.agent_id.clone(), reason: String::new() };
        }
        tokio::time::sleep(backoff.next(lost.message().to_owned())).await;
    }
}

/// Shows each view until the stream ends, which means that the agent has no runners.
async fn follow(
    mut views: Streaming<AgentView>,
    until: Option<Instant>,
    counter: &mut Counter,
    last: &mut AgentView,
) -> Result<(), Status> {
    loop {
        let seen = match until {
            Some(until) => timeout_at(until, views.message()).await,
            None => Ok(views.message().await),
        };
        match seen {
            Ok(Ok(Some(view))) => {
                counter.show(&format!("{}: {}", host(&view), left(&view)));
                *last = view;
            }
            Ok(Ok(None)) if last.runners == 0 => return Ok(()),
            Ok(Ok(None)) => return Err(Status::unavailable("the server ended the drain early")),
            Ok(Err(status)) => return Err(status),
            Err(_) => {
                let reason = format!(
                    "{}: {}; it stays cordoned, and the drain can be repeated",
                    host(last),
                    left(last)
                );
                return Err(Status::deadline_exceeded(reason));
            }
        }
    }
}

/// `2 runners left`, and whether that number is up to date.
fn left(view: &AgentView) -> String {
    let runners = match view.runners {
        0 => "no runners left".to_owned(),
        1 => "1 runner left".to_owned(),
        n => format!("{n} runners left"),
    };
    let offline = view.agent.as_ref().is_some_and(|a| a.status() == AgentStatus::Offline);
    if offline && view.runners > 0 {
        format!("{runners}, but the agent is offline: the number is updated when it reconnects")
    } else {
        runners
    }
}

#[derive(Debug, Clone, Copy)]
enum Done {
    Cordoned,
    Uncordoned,
    Drained,
}

fn show(format: Format, done: Done, view: &AgentView) -> Result<(), Failure> {
    let verb = match done {
        Done::Cordoned => "cordoned",
        Done::Uncordoned => "uncordoned",
        Done::Drained => "drained",
    };
    match (format, done) {
        (Format::Json, _) => print_json(&json!({ "done": verb, "agent": view::agent_json(view) }))?,
        (Format::People, Done::Cordoned) => print(&format!("{verb} {}: {}", host(view), left(view)))?,
        (Format::People, Done::Uncordoned | Done::Drained) => print(&format!("{verb} {}", host(view)))?,
    }
    Ok(())
}

fn host(view: &AgentView) -> String {
    view.agent.as_ref().map(|a| text::line(&a.hostname)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use shoes_vz_proto::agent::Agent;

    #[test]
    fn what_is_left_is_counted_and_marked_as_outdated_when_the_agent_is_offline() {
        let view = |runners, status: AgentStatus| AgentView {
            agent: Some(Agent { status: status.into(), ..Agent::default() }),
            runners,
            ..AgentView::default()
        };
        assert_eq!(left(&view(2, AgentStatus::Online)), "2 runners left");
        assert!(left(&view(1, AgentStatus::Offline)).starts_with("1 runner left, but the agent is offline"));
        assert_eq!(left(&view(0, AgentStatus::Offline)), "no runners left");
    }
}
