//! `delete`, `list`, `watch`, `agents`.

use std::{collections::HashSet, time::Duration};

use jiff::Timestamp;
use serde_json::json;
use shoes_vz_process::{backoff::Backoff, settings::Mistakes};
use shoes_vz_proto::WATCH_MATCHING;
use shoes_vz_proto::fleet::{
    DeleteInstanceRequest, ListAgentsRequest, ListRunnersRequest, RunnerView, WatchRunnersRequest,
    fleet_service_client::FleetServiceClient, shoes_service_client::ShoesServiceClient,
};
use shoes_vz_terminal::{output::note, table::Width, text};
use tonic::{Code, Status, metadata::MetadataMap, transport::Channel};

use super::{Failure, Format, print, print_json, progress::shown, settings::Settings, view};
use crate::{
    plugin::sized,
    upstream::{Call, is_connection_loss},
};

/// A whole fleet with its log tails is larger than one call's message.
const MAX_LIST: usize = 64 << 20;
/// How long a watch looks for a server that went away.
pub(super) const WATCH_BUDGET: Duration = Duration::from_secs(300);

pub(super) fn fleet(channel: Channel) -> FleetServiceClient<Channel> {
    FleetServiceClient::new(channel).max_decoding_message_size(MAX_LIST)
}

/// A Go server has no FleetService; "unimplemented" alone would not tell anyone.
pub(super) fn explain(status: Status) -> Failure {
    match status.code() {
        Code::Unimplemented => Failure::Call(Status::unimplemented(
            "this server cannot show or steer its runners and agents (it has no FleetService, or not this call of it): \
             it is the Go implementation's, or older than this client",
        )),
        _ => Failure::Call(status),
    }
}

pub(super) async fn delete(settings: &Settings, cloud_id: &str, budget: Duration) -> Result<(), Failure> {
    if cloud_id.trim().is_empty() {
        return Err(Failure::Usage(Mistakes(vec!["the cloud id is empty".into()])));
    }
    let call = Call::new("DeleteInstance", budget, None);
    let message = DeleteInstanceRequest { cloud_id: cloud_id.to_owned(), labels: Vec::new() };
    let deleted = settings.server.call(&call, &message, async |channel, request| {
        sized(ShoesServiceClient::new(channel)).delete_instance(request).await
    });
    shown("the server", deleted).await?;
    match settings.format {
        Format::Json => print_json(&json!({ "cloud_id": cloud_id, "deleted": true }))?,
        Format::People => print(&format!("deleted {cloud_id}"))?,
    }
    Ok(())
}

pub(super) async fn list(settings: &Settings, all: bool, budget: Duration) -> Result<(), Failure> {
    let call = Call::new("ListRunners", budget, None);
    let message = ListRunnersRequest { include_ended: all };
    let answer = settings
        .server
        .call(&call, &message, async |channel, request| fleet(channel).list_runners(request).await);
    let runners = shown("the server", answer).await.map_err(explain)?.runners;
    let json = || json!({ "runners": runners.iter().map(view::runner_json).collect::<Vec<_>>() });
    match settings.format {
        Format::Json => print_json(&json())?,
        Format::People if runners.is_empty() => print("no runners")?,
        Format::People => print(&view::runner_table(&runners, Timestamp::now(), Width::of_stdout()))?,
    }
    Ok(())
}

pub(super) async fn agents(settings: &Settings, budget: Duration) -> Result<(), Failure> {
    let call = Call::new("ListAgents", budget, None);
    let answer = settings.server.call(&call, &ListAgentsRequest {}, async |channel, request| {
        fleet(channel).list_agents(request).await
    });
    let agents = shown("the server", answer).await.map_err(explain)?.agents;
    let json = || json!({ "agents": agents.iter().map(view::agent_json).collect::<Vec<_>>() });
    match settings.format {
        Format::Json => print_json(&json())?,
        Format::People if agents.is_empty() => print("no agents")?,
        Format::People => print(&view::agent_table(&agents, Timestamp::now(), Width::of_stdout()))?,
    }
    Ok(())
}

/// Until the one runner asked for is gone; with none named, until interrupted. A server's restart is sat out.
///
/// Where nothing matches yet, that is said on stderr, with `--json` too: stdout has runners only.
pub(super) async fn watch(settings: &Settings, runner_name: String, cloud_id: String) -> Result<(), Failure> {
    let nothing = match runner_name.as_str() {
        "" => "no runners yet; waiting for one".to_owned(),
        name => format!("no runner named {name:?} yet; waiting for one"),
    };
    let is_one = !(runner_name.is_empty() && cloud_id.is_empty());
    let message = WatchRunnersRequest { cloud_id, runner_name };
    let mut shower = Shower::new(settings.format);
    let (mut waits, mut was_connected, mut is_over) = (false, false, false);
    let mut pauses = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    loop {
        let call = Call::new("WatchRunners", WATCH_BUDGET, None).stream();
        let answer = settings
            .server
            .response(&call, &message, async |channel, request| fleet(channel).watch_runners(request).await);
        let answer = match shown("the server", answer).await {
            // A server that is stopping says so for a moment.
            Err(status) if was_connected && status.code() == Code::Unavailable => {
                tokio::time::sleep(pauses.pause()).await;
                continue;
            }
            answer => answer.map_err(explain)?,
        };
        was_connected = true;
        pauses.reset();
        if matching(answer.metadata()) == Some(0) && !waits {
            note(&nothing);
            waits = true;
        }
        let mut views = answer.into_inner();
        loop {
            match views.message().await {
                Ok(Some(view)) => {
                    shower.show(&view)?;
                    is_over = is_one && view.runner.as_ref().is_some_and(|r| r.end.is_some());
                }
                Ok(None) if is_over => return Ok(()),
                Ok(None) => {
                    tracing::warn!(server = %settings.server.addr(), "the server ended the watch, as when it restarts; connecting again");
                    tokio::time::sleep(pauses.pause()).await;
                    break;
                }
                Err(status) if is_connection_loss(&status) => {
                    tracing::warn!(server = %settings.server.addr(), "the connection to the server broke; connecting again");
                    break;
                }
                Err(status) => return Err(explain(status)),
            }
        }
    }
}

fn matching(headers: &MetadataMap) -> Option<u64> {
    headers.get(WATCH_MATCHING)?.to_str().ok()?.parse().ok()
}

/// Shows runners as they change, and once of each that failed what it printed last.
struct Shower {
    format: Format,
    quoted: HashSet<String>,
}

impl Shower {
    fn new(format: Format) -> Self {
        Self { format, quoted: HashSet::new() }
    }

    fn show(&mut self, view: &RunnerView) -> std::io::Result<()> {
        if self.format == Format::Json {
            return print_json(&view::runner_json(view));
        }
        print(&text::line(&view::runner_line(view)))?;
        let quoted = view::quoted(view);
        if !quoted.is_empty() && self.quoted.insert(view.cloud_id.clone()) {
            print(&format!("    {}", text::indented(&quoted, "    ")))?;
        }
        if view.runner.as_ref().is_some_and(|runner| runner.end.is_some()) {
            self.quoted.remove(&view.cloud_id);
        }
        Ok(())
    }
}
