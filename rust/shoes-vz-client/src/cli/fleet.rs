//! `delete`, `list`, `watch`, `agents`.

use std::{collections::HashSet, time::Duration};

use jiff::Timestamp;
use serde_json::{Value, json};
use shoes_vz_process::{backoff::Backoff, settings::Mistakes};
use shoes_vz_proto::WATCH_MATCHING;
use shoes_vz_proto::fleet::{
    DeleteInstanceRequest, ListAgentsRequest, ListRunnersRequest, RunnerView, WatchRunnersRequest,
    fleet_service_client::FleetServiceClient,
};
use shoes_vz_terminal::{
    output::{note, print},
    table::Width,
    text,
};
use tonic::{Code, Status, metadata::MetadataMap, transport::Channel};

use super::{
    outcome::{Failure, Format, Target, print_json},
    progress::with_progress,
    view,
};
use crate::upstream::{Call, is_connection_loss, shoes_service};

/// A list of the whole fleet with its log tails exceeds the usual message size.
const MAX_LIST: usize = 64 << 20;
/// How long a watch tries to reconnect to the server.
pub(super) const WATCH_BUDGET: Duration = Duration::from_secs(300);

pub(super) fn fleet(channel: Channel) -> FleetServiceClient<Channel> {
    FleetServiceClient::new(channel).max_decoding_message_size(MAX_LIST)
}

/// A Go server has no FleetService; "unimplemented" alone would not explain that.
pub(super) fn explain(status: Status) -> Failure {
    match status.code() {
        Code::Unimplemented => Failure::Call(Status::unimplemented(
            "the server does not implement this call of FleetService: it is the Go implementation, or older than this client",
        )),
        _ => Failure::Call(status),
    }
}

pub(super) async fn delete(target: &Target, cloud_id: &str, budget: Duration) -> Result<(), Failure> {
    if cloud_id.trim().is_empty() {
        return Err(Failure::Usage(Mistakes(vec!["the cloud ID is empty".into()])));
    }
    let call = Call::new("DeleteInstance", budget, None);
    let message = DeleteInstanceRequest { cloud_id: cloud_id.to_owned(), labels: Vec::new() };
    let deleted = target.server.call(&call, &message, async |channel, request| {
        shoes_service(channel).delete_instance(request).await
    });
    with_progress("the server", deleted).await?;
    match target.format {
        Format::Json => print_json(&json!({ "cloud_id": cloud_id, "deleted": true }))?,
        Format::People => print(&format!("deleted {cloud_id}"))?,
    }
    Ok(())
}

pub(super) async fn list(target: &Target, all: bool, budget: Duration) -> Result<(), Failure> {
    let call = Call::new("ListRunners", budget, None);
    let message = ListRunnersRequest { include_ended: all };
    let answer = target
        .server
        .call(&call, &message, async |channel, request| fleet(channel).list_runners(request).await);
    let runners = with_progress("the server", answer).await.map_err(explain)?.into_inner().runners;
    let rows = runners.iter().map(view::runner_json).collect();
    let table = || view::runner_table(&runners, Timestamp::now(), Width::of_stdout());
    print_list(target.format, "runners", rows, table)
}

pub(super) async fn agents(target: &Target, budget: Duration) -> Result<(), Failure> {
    let call = Call::new("ListAgents", budget, None);
    let answer = target.server.call(&call, &ListAgentsRequest {}, async |channel, request| {
        fleet(channel).list_agents(request).await
    });
    let agents = with_progress("the server", answer).await.map_err(explain)?.into_inner().agents;
    let rows = agents.iter().map(view::agent_json).collect();
    let table = || view::agent_table(&agents, Timestamp::now(), Width::of_stdout());
    print_list(target.format, "agents", rows, table)
}

fn print_list(
    format: Format,
    name: &str,
    rows: Vec<Value>,
    table: impl FnOnce() -> String,
) -> Result<(), Failure> {
    match format {
        Format::Json => print_json(&json!({ name: rows }))?,
        Format::People if rows.is_empty() => print(&format!("no {name}"))?,
        Format::People => print(&table())?,
    }
    Ok(())
}

/// Returns when the selected runner has ended; with none selected, never. Reconnects when the server restarts.
///
/// When nothing matches yet, stderr says so, also with `--json`: stdout has runners only.
pub(super) async fn watch(target: &Target, runner_name: String, cloud_id: String) -> Result<(), Failure> {
    let no_match = match runner_name.as_str() {
        "" => "no runners yet; waiting for one".to_owned(),
        name => format!("no runner named {name:?} yet; waiting for one"),
    };
    let is_one = !(runner_name.is_empty() && cloud_id.is_empty());
    let message = WatchRunnersRequest { cloud_id, runner_name };
    let mut printer = WatchPrinter { format: target.format, quoted: HashSet::new() };
    let (mut noted, mut was_connected, mut has_ended) = (false, false, false);
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    loop {
        let call = Call::new("WatchRunners", WATCH_BUDGET, None).stream();
        let answer = target
            .server
            .call(&call, &message, async |channel, request| fleet(channel).watch_runners(request).await);
        let answer = match with_progress("the server", answer).await {
            // A server that is stopping refuses calls for a moment.
            Err(status) if was_connected && status.code() == Code::Unavailable => {
                tokio::time::sleep(backoff.pause()).await;
                continue;
            }
            answer => answer.map_err(explain)?,
        };
        was_connected = true;
        backoff.reset();
        if matching(answer.metadata()) == Some(0) && !noted {
            note(&no_match);
            noted = true;
        }
        let mut views = answer.into_inner();
        loop {
            match views.message().await {
                Ok(Some(view)) => {
                    printer.print(&view)?;
                    has_ended = is_one && view.runner.as_ref().is_some_and(|r| r.end.is_some());
                }
                Ok(None) if has_ended => return Ok(()),
                Ok(None) => {
                    tracing::warn!(server = %target.server.addr(), "watch ended by the server; reconnecting");
                    tokio::time::sleep(backoff.pause()).await;
                    break;
                }
                Err(status) if is_connection_loss(&status) => {
                    tracing::warn!(server = %target.server.addr(), "connection to the server lost; reconnecting");
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

/// Prints runners as they change, and once for each failed runner the last lines it printed.
struct WatchPrinter {
    format: Format,
    quoted: HashSet<String>,
}

impl WatchPrinter {
    fn print(&mut self, view: &RunnerView) -> std::io::Result<()> {
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
