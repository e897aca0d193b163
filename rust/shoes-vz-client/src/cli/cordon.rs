//! `cordon`, `uncordon`, `drain`.

use std::time::Duration;

use serde_json::json;
use shoes_vz_proto::{
    agent::AgentStatus,
    fleet::{AgentView, CordonAgentRequest, DrainAgentRequest, UncordonAgentRequest},
};
use shoes_vz_terminal::text;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status, Streaming};

use super::{
    Failure, Format,
    args::Drain,
    fleet::{WATCH_BUDGET, explain, fleet},
    print, print_json,
    progress::{Counter, shown},
    settings::Settings,
    view,
};
use crate::upstream::{Call, Pauses, is_connection_loss};

pub(super) async fn cordon(
    settings: &Settings,
    agent: String,
    reason: String,
    budget: Duration,
) -> Result<(), Failure> {
    let view = call_cordon(settings, agent, reason, budget).await?;
    show(settings.format, Done::Cordoned, &view)
}

pub(super) async fn uncordon(settings: &Settings, agent: String, budget: Duration) -> Result<(), Failure> {
    let call = Call::new("UncordonAgent", budget, None);
    let message = UncordonAgentRequest { agent };
    let answer = settings
        .server
        .call(&call, &message, async |channel, request| fleet(channel).uncordon_agent(request).await);
    let answer = shown("the server", answer).await.map_err(explain)?;
    show(settings.format, Done::Uncordoned, &answer.agent.unwrap_or_default())
}

async fn call_cordon(
    settings: &Settings,
    agent: String,
    reason: String,
    budget: Duration,
) -> Result<AgentView, Failure> {
    let call = Call::new("CordonAgent", budget, None);
    let message = CordonAgentRequest { agent, reason };
    let answer = settings
        .server
        .call(&call, &message, async |channel, request| fleet(channel).cordon_agent(request).await);
    let answer = shown("the server", answer).await.map_err(explain)?;
    Ok(answer.agent.unwrap_or_default())
}

/// Until the agent has no runners. A server's restart is sat out; its cordon outlives that, and this command.
pub(super) async fn drain(settings: &Settings, drain: Drain) -> Result<(), Failure> {
    let Drain { agent, reason, no_wait, timeout, .. } = drain;
    if no_wait {
        let budget = timeout.map_or(WATCH_BUDGET, |t| t.0);
        let view = call_cordon(settings, agent, reason, budget).await?;
        return show(settings.format, Done::Cordoned, &view);
    }
    let until = timeout.map(|t| Instant::now() + t.0);
    let mut counter = Counter::new("draining");
    let drained = wait(settings, DrainAgentRequest { agent, reason }, until, &mut counter).await;
    counter.end();
    show(settings.format, Done::Drained, &drained?)
}

async fn wait(
    settings: &Settings,
    mut message: DrainAgentRequest,
    until: Option<Instant>,
    counter: &mut Counter,
) -> Result<AgentView, Failure> {
    let mut last = AgentView::default();
    let mut pauses = Pauses::default();
    loop {
        let left = until.map_or(WATCH_BUDGET, |u| u.saturating_duration_since(Instant::now()));
        let call = Call::new("DrainAgent", left.min(WATCH_BUDGET), None).stream();
        let stream = settings
            .server
            .call(&call, &message, async |channel, request| fleet(channel).drain_agent(request).await);
        let lost = match shown("the server", stream).await {
            Ok(views) => match follow(views, until, counter, &mut last).await {
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
        tracing::warn!(server = %settings.server.addr(), "the connection to the server broke; connecting again");
        // By its id, and without the reason it has: the same agent, whatever its hostname is by then.
        if let Some(known) = &last.agent {
            message = DrainAgentRequest { agent: known.agent_id.clone(), reason: String::new() };
        }
        tokio::time::sleep(pauses.next(lost.message().to_owned())).await;
    }
}

/// Tells of each view until the stream's end, which is an empty agent's.
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
                counter.tell(&format!("{}: {}", host(&view), left(&view)));
                *last = view;
            }
            Ok(Ok(None)) if last.runners == 0 => return Ok(()),
            Ok(Ok(None)) => return Err(Status::unavailable("the server ended the drain early")),
            Ok(Err(status)) => return Err(status),
            Err(_) => {
                let words = format!(
                    "{}: {}; it stays cordoned, and the drain may be repeated",
                    host(last),
                    left(last)
                );
                return Err(Status::deadline_exceeded(words));
            }
        }
    }
}

/// `2 runners left`, and whether they can be heard of.
fn left(view: &AgentView) -> String {
    let runners = match view.runners {
        0 => "no runners left".to_owned(),
        1 => "1 runner left".to_owned(),
        n => format!("{n} runners left"),
    };
    let offline = view.agent.as_ref().is_some_and(|a| a.status() == AgentStatus::Offline);
    if offline && view.runners > 0 {
        format!("{runners}, but it is offline: they are heard of when it is back")
    } else {
        runners
    }
}

/// What a command did.
#[derive(Debug, Clone, Copy)]
enum Done {
    Cordoned,
    Uncordoned,
    Drained,
}

fn show(format: Format, done: Done, view: &AgentView) -> Result<(), Failure> {
    let word = match done {
        Done::Cordoned => "cordoned",
        Done::Uncordoned => "uncordoned",
        Done::Drained => "drained",
    };
    match (format, done) {
        (Format::Json, _) => print_json(&json!({ "done": word, "agent": view::agent_json(view) }))?,
        (Format::People, Done::Cordoned) => print(&format!("{word} {}: {}", host(view), left(view)))?,
        (Format::People, Done::Uncordoned | Done::Drained) => print(&format!("{word} {}", host(view)))?,
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
    fn what_is_left_is_counted_and_said_to_be_old_when_the_agent_is_away() {
        let view = |runners, status: AgentStatus| AgentView {
            agent: Some(Agent { status: status.into(), ..Agent::default() }),
            runners,
            ..AgentView::default()
        };
        assert_eq!(left(&view(2, AgentStatus::Online)), "2 runners left");
        assert!(left(&view(1, AgentStatus::Offline)).starts_with("1 runner left, but it is offline"));
        assert_eq!(left(&view(0, AgentStatus::Offline)), "no runners left");
    }
}
