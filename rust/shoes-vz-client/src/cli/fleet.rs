//! `delete`, `list`, `watch`, `agents`.

use std::time::Duration;

use serde_json::json;
use shoes_vz_proto::fleet::{
    DeleteInstanceRequest, ListAgentsRequest, ListRunnersRequest, RunnerView, WatchRunnersRequest,
    fleet_service_client::FleetServiceClient, shoes_service_client::ShoesServiceClient,
};
use tonic::{Code, Status, transport::Channel};

use super::{Failure, Format, print, settings::Settings, view};
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
        return Err(Failure::Usage(vec!["the cloud id is empty".into()]));
    }
    let call = Call::new("DeleteInstance", budget, None);
    let message = DeleteInstanceRequest { cloud_id: cloud_id.to_owned(), labels: Vec::new() };
    settings
        .server
        .call(&call, &message, async |channel, request| {
            sized(ShoesServiceClient::new(channel)).delete_instance(request).await
        })
        .await?;
    match settings.format {
        Format::Json => print(&json!({ "cloud_id": cloud_id, "deleted": true }).to_string())?,
        Format::People => print(&format!("deleted {cloud_id}"))?,
    }
    Ok(())
}

pub(super) async fn list(settings: &Settings, all: bool, budget: Duration) -> Result<(), Failure> {
    let call = Call::new("ListRunners", budget, None);
    let message = ListRunnersRequest { include_ended: all };
    let runners = settings
        .server
        .call(&call, &message, async |channel, request| fleet(channel).list_runners(request).await)
        .await
        .map_err(explain)?
        .runners;
    let json = || json!({ "runners": runners.iter().map(view::runner_json).collect::<Vec<_>>() }).to_string();
    match settings.format {
        Format::Json => print(&json())?,
        Format::People if runners.is_empty() => print("no runners")?,
        Format::People => print(&view::runner_table(&runners))?,
    }
    Ok(())
}

pub(super) async fn agents(settings: &Settings, budget: Duration) -> Result<(), Failure> {
    let call = Call::new("ListAgents", budget, None);
    let agents = settings
        .server
        .call(&call, &ListAgentsRequest {}, async |channel, request| {
            fleet(channel).list_agents(request).await
        })
        .await
        .map_err(explain)?
        .agents;
    let json = || json!({ "agents": agents.iter().map(view::agent_json).collect::<Vec<_>>() }).to_string();
    match settings.format {
        Format::Json => print(&json())?,
        Format::People if agents.is_empty() => print("no agents")?,
        Format::People => print(&view::agent_table(&agents))?,
    }
    Ok(())
}

/// Until the one runner asked for is gone; with none named, until interrupted. A server's restart is sat out.
pub(super) async fn watch(settings: &Settings, runner_name: String, cloud_id: String) -> Result<(), Failure> {
    let message = WatchRunnersRequest { cloud_id, runner_name };
    loop {
        let call = Call::new("WatchRunners", WATCH_BUDGET, None).stream();
        let mut views = settings
            .server
            .call(&call, &message, async |channel, request| fleet(channel).watch_runners(request).await)
            .await
            .map_err(explain)?;
        loop {
            match views.message().await {
                Ok(Some(view)) => show(settings.format, &view)?,
                Ok(None) => return Ok(()),
                Err(status) if is_connection_loss(&status) => {
                    tracing::warn!(server = %settings.server.addr(), "the connection to the server broke; connecting again");
                    break;
                }
                Err(status) => return Err(explain(status)),
            }
        }
    }
}

fn show(format: Format, view: &RunnerView) -> std::io::Result<()> {
    match format {
        Format::Json => print(&view::runner_json(view).to_string()),
        Format::People => print(&view::runner_line(view).replace(char::is_control, "?")),
    }
}
