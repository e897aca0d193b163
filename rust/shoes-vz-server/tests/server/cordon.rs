//! Agents that get no new runners, over real gRPC.

use std::time::Duration;

use crate::common::{Agent, Server, TIMEOUT, answer, info};
use shoes_vz_proto::{
    agent::{AgentStatus, RunnerState},
    fleet::{
        AgentView, CordonAgentRequest, DrainAgentRequest, ListAgentsRequest, UncordonAgentRequest,
        fleet_service_client::FleetServiceClient,
    },
};
use tempfile::tempdir;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming, transport::Channel};

fn operator(server: &Server) -> FleetServiceClient<Channel> {
    FleetServiceClient::new(server.channel())
}

async fn cordon(server: &Server, agent: &str, reason: &str) -> Result<AgentView, Status> {
    let request = CordonAgentRequest { agent: agent.into(), reason: reason.into() };
    operator(server).cordon_agent(request).await.map(|r| r.into_inner().agent.unwrap())
}

async fn uncordon(server: &Server, agent: &str) -> AgentView {
    let request = UncordonAgentRequest { agent: agent.into() };
    operator(server).uncordon_agent(request).await.unwrap().into_inner().agent.unwrap()
}

async fn drain(server: &Server, agent: &str) -> Streaming<AgentView> {
    let request = DrainAgentRequest { agent: agent.into(), reason: "new disk".into() };
    operator(server).drain_agent(request).await.unwrap().into_inner()
}

async fn next(views: &mut Streaming<AgentView>) -> Result<Option<AgentView>, Status> {
    timeout(TIMEOUT, views.message()).await.expect("the drain continues")
}

async fn metric(server: &Server, name: &str) -> String {
    let text = server.http("/metrics", "").await.1;
    let line = text.lines().find(|l| l.starts_with(&format!("{name} ")));
    line.map(|l| l.split(' ').nth(1).unwrap().to_owned()).unwrap_or_default()
}

#[tokio::test]
async fn a_drain_cordons_shows_what_is_left_and_ends_when_the_agent_is_empty() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect(&server, 2).await;
    let call = server.add("a");
    agent.take_create().await;
    agent.report(RunnerState::Running).await;
    let added = answer(call).await.unwrap();

    let mut views = drain(&server, "mac-1").await;
    let first = next(&mut views).await.unwrap().unwrap();
    assert_eq!((first.runners, first.cordon.unwrap().reason.as_str()), (1, "new disk"));
    let waits = server.add("b");
    let pending = server.until("b", |v| !v.pending_reason.is_empty()).await;
    assert_eq!(pending.pending_reason, "mac-1 is cordoned (new disk)");
    let (deleted, _) = tokio::join!(server.delete(&added.cloud_id), agent.take_delete());
    deleted.unwrap();
    let mut last = None;
    while let Some(view) = next(&mut views).await.unwrap() {
        last = Some(view);
    }
    assert_eq!(last.unwrap().runners, 0);
    assert!(agent.receives_nothing().await, "it is drained and still cordoned");
    assert_eq!(metric(&server, "shoesvz_agents_cordoned").await, "1");
    assert_eq!(metric(&server, "shoesvz_capacity_available_runners").await, "0");

    let mut again = drain(&server, &agent.id).await;
    assert_eq!(next(&mut again).await.unwrap().unwrap().runners, 0, "an empty one is drained at once");
    assert!(next(&mut again).await.unwrap().is_none());
    assert!(uncordon(&server, "mac-1").await.cordon.is_none());
    agent.take_create().await;
    agent.report(RunnerState::Running).await;
    answer(waits).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_drain_that_is_overtaken_by_an_uncordon_says_so() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect(&server, 1).await;
    let _call = server.add("a");
    agent.take_create().await;
    agent.report(RunnerState::Booting).await;
    let mut views = drain(&server, "mac-1").await;
    next(&mut views).await.unwrap().unwrap();
    uncordon(&server, "mac-1").await;
    let status = loop {
        match next(&mut views).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("it is not drained"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Aborted, "{status:?}");
    assert!(status.message().contains("uncordoned"), "{status:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_cordon_outlives_an_aborted_drain_and_the_server_and_the_agents_registration() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect(&server, 2).await;
    let _call = server.add("a");
    agent.take_create().await;
    agent.report(RunnerState::Running).await;
    let mut views = drain(&server, "mac-1").await;
    next(&mut views).await.unwrap().unwrap();
    drop(views);
    server.stop().await;

    let server = Server::start(dir.path()).await;
    let shown = server.runners().await;
    assert_eq!(shown[0].agent_status(), AgentStatus::Offline, "it has not come back yet");
    let runners = agent.runners.clone();
    let mut agent = Agent::connect_as(&server, &agent.id, 2, Some(info()), runners).await;
    let refused = answer(server.add_within("b", Duration::from_secs(1))).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("mac-1 is cordoned (new disk)"), "{refused:?}");
    let agents = operator(&server).list_agents(ListAgentsRequest {}).await.unwrap().into_inner().agents;
    assert!(agents[0].cordon.as_ref().unwrap().since.is_some());
    assert!(agent.receives_nothing().await);
    server.stop().await;
}

#[tokio::test]
async fn a_stopping_server_does_not_call_an_agent_drained() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect(&server, 1).await;
    let _call = server.add("a");
    agent.take_create().await;
    agent.report(RunnerState::Booting).await;
    let mut views = drain(&server, "mac-1").await;
    next(&mut views).await.unwrap().unwrap();
    server.stop().await;
    assert_eq!(next(&mut views).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_hostname_of_two_agents_is_refused_with_both_ids() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let (one, two) = (Agent::connect(&server, 1).await, Agent::connect(&server, 1).await);
    let refused = cordon(&server, "mac-1", "").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(refused.message().contains(&one.id) && refused.message().contains(&two.id), "{refused:?}");
    assert!(cordon(&server, &two.id, "").await.unwrap().cordon.is_some());
    assert_eq!(cordon(&server, "mac-2", "").await.unwrap_err().code(), Code::NotFound);
    server.stop().await;
}
