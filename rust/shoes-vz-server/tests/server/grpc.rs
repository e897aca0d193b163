//! The server over real gRPC, with agents played by the test.

use std::time::{Duration, Instant};

use crate::common::{Agent, SCRIPT, Server, answer, info};
use shoes_vz_proto::{
    WATCH_MATCHING,
    agent::{
        AgentStatus, EndKind, GuestRunnerState, RunnerEnd, RunnerStage, RunnerState, SyncResponse,
        sync_response::Command,
    },
    fleet::{
        AddInstanceRequest, DeleteInstanceRequest, ListAgentsRequest, WatchRunnersRequest,
        fleet_service_client::FleetServiceClient,
    },
};
use tempfile::tempdir;
use tonic::Code;

#[tokio::test]
async fn a_runner_is_added_once_it_is_ready_and_deleted_once_its_agent_has_removed_it() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect(&server, 2).await;
    let call = server.add("a");
    let create = agent.take_create().await;
    assert_eq!((create.runner_name.as_str(), create.setup_script.as_str()), ("a", SCRIPT));
    assert_eq!(create.resource_type, "large");
    agent.runners[0].ip_address = "192.168.64.2".into();
    agent.report(RunnerState::SshReady).await;
    let added = answer(call).await.unwrap();
    assert_eq!(added.cloud_id, create.cloud_id);
    assert_eq!((added.shoes_type.as_str(), added.ip_address.as_str()), ("shoes-vz", "192.168.64.2"));
    assert_eq!(added.resource_type, "large");

    let (deleted, id) = tokio::join!(server.delete(&added.cloud_id), agent.take_delete());
    deleted.unwrap();
    assert_eq!(id, create.runner_id);
    server.delete(&added.cloud_id).await.unwrap();
    let never = server.delete(&shoes_vz_model::CloudId::random().to_string()).await.unwrap_err();
    assert_eq!(never.code(), Code::NotFound);
    server.stop().await;
}

#[tokio::test]
async fn fault_06_commands_are_pushed_on_a_stream_on_which_the_agent_says_nothing() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect(&server, 2).await;
    until_agent_is(&server, AgentStatus::Online).await;
    // From here on the agent sends nothing.
    let calls = [server.add("a"), server.add("b")];
    let mut made = [agent.take_create().await, agent.take_create().await];
    made.sort_by(|a, b| a.runner_name.cmp(&b.runner_name));
    assert_eq!([&made[0].runner_name, &made[1].runner_name], ["a", "b"]);
    let mut shoes = server.shoes();
    let request = DeleteInstanceRequest { cloud_id: made[0].cloud_id.clone(), labels: vec![] };
    let deleting = tokio::spawn(async move { shoes.delete_instance(request).await });
    let command = agent.next().await.unwrap().unwrap().command;
    let Some(Command::DeleteRunner(delete)) = command else { panic!("not a delete: {command:?}") };
    assert_eq!(delete.runner_id, made[0].runner_id);
    deleting.abort();
    for call in calls {
        call.abort();
    }
    server.stop().await;
}

#[tokio::test]
async fn a_retry_with_the_same_name_joins_the_one_in_flight() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect(&server, 2).await;
    let first = server.add("same");
    agent.take_create().await;
    let second = server.add("same");
    assert!(agent.receives_nothing().await, "one create");
    agent.report(RunnerState::Running).await;
    let (first, second) = (answer(first).await.unwrap(), answer(second).await.unwrap());
    assert_eq!(first.cloud_id, second.cloud_id);
    assert_eq!(answer(server.add("same")).await.unwrap().cloud_id, first.cloud_id);

    let (deleted, _) = tokio::join!(server.delete(&first.cloud_id), agent.take_delete());
    deleted.unwrap();
    let again = server.add("same");
    agent.take_create().await;
    agent.report(RunnerState::SshReady).await;
    assert_ne!(answer(again).await.unwrap().cloud_id, first.cloud_id, "an ended name is a new VM");
    server.stop().await;
}

#[tokio::test]
async fn fault_28_requests_beyond_the_slots_are_served_in_order_when_one_is_free() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect(&server, 1).await;
    let mut calls = vec![server.add("r0")];
    agent.take_create().await;
    for n in 1..4 {
        let name = format!("r{n}");
        calls.push(server.add(&name));
        let view = server.until(&name, |v| !v.pending_reason.is_empty()).await;
        assert_eq!(view.pending_reason, "mac-1 is full (all 1 slots in use)");
        assert_eq!(view.runner.unwrap().stage(), RunnerStage::Queue);
    }
    let mut order = vec!["r0".to_owned()];
    for call in calls {
        agent.report(RunnerState::SshReady).await;
        let added = answer(call).await.unwrap();
        let (deleted, _) = tokio::join!(server.delete(&added.cloud_id), agent.take_delete());
        deleted.unwrap();
        if order.len() < 4 {
            order.push(agent.take_create().await.runner_name);
        }
    }
    assert_eq!(order, ["r0", "r1", "r2", "r3"]);
    server.stop().await;
}

#[tokio::test]
async fn pain_14_a_queued_request_is_refused_with_the_reason_before_its_callers_deadline() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let began = Instant::now();
    let refused = answer(server.add_within("a", Duration::from_secs(1))).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert!(refused.message().contains("no agent is registered"), "{refused:?}");
    assert!(began.elapsed() < Duration::from_secs(1));

    let mut agent = Agent::connect(&server, 1).await;
    let _held = server.add("b");
    agent.take_create().await;
    let refused = answer(server.add_within("c", Duration::from_secs(2))).await.unwrap_err();
    assert!(refused.message().contains("mac-1 is full"), "{refused:?}");
    server.stop().await;
}

#[tokio::test]
async fn fault_11_a_runner_whose_caller_disconnected_waits_for_the_retry_and_then_ends() {
    let dir = tempdir().unwrap();
    let server = Server::start_with(dir.path(), &["--caller-grace", "700ms"]).await;
    let mut agent = Agent::connect(&server, 2).await;
    let call = server.add("a");
    let create = agent.take_create().await;
    agent.report(RunnerState::Booting).await;
    call.abort();
    let retry = server.add("a");
    agent.report(RunnerState::SshReady).await;
    assert_eq!(answer(retry).await.unwrap().cloud_id, create.cloud_id);
    assert!(agent.receives_nothing().await, "the retry has it");

    let call = server.add("b");
    let create = agent.take_create().await;
    agent.sync().await;
    call.abort();
    assert_eq!(agent.take_delete().await, create.runner_id);
    let view = server.until("b", |v| v.runner.as_ref().unwrap().end.is_some()).await;
    let end = view.runner.unwrap().end.unwrap();
    assert_eq!(end.kind(), EndKind::Deleted);
    assert!(end.reason.contains("its caller disconnected"), "{end:?}");
    server.stop().await;
}

#[tokio::test]
async fn fault_12_deleting_a_starting_or_queued_runner_ends_its_creation() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect(&server, 1).await;
    let made = server.add("made");
    let create = agent.take_create().await;
    agent.report(RunnerState::Booting).await;
    let queued = server.add("queued");
    let waiting = server.until("queued", |v| !v.pending_reason.is_empty()).await;
    server.delete(&waiting.cloud_id).await.unwrap();
    let refused = answer(queued).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted, "{refused:?}");

    let (deleted, _) = tokio::join!(server.delete(&create.cloud_id), agent.take_delete());
    deleted.unwrap();
    let refused = answer(made).await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted, "{refused:?}");
    assert!(refused.message().contains("deleted on request"), "{refused:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_failure_is_reported_with_its_reason_and_stage_and_its_end_is_acknowledged() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect(&server, 1).await;
    let call = server.add("a");
    let create = agent.take_create().await;
    agent.runners[0].stage = RunnerStage::Guest.into();
    agent.runners[0].error_message = "the guest did not answer within 5 m".into();
    agent.report(RunnerState::Error).await;
    let refused = answer(call).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    for part in ["mac-1", "stage guest", "did not answer within 5 m"] {
        assert!(refused.message().contains(part), "{refused:?}");
    }
    agent.runners[0].end = Some(RunnerEnd {
        kind: EndKind::Failed.into(),
        reason: "the guest did not answer within 5 m".into(),
        stage: RunnerStage::Guest.into(),
        at: None,
    });
    agent.sync().await;
    let ack = agent.next().await.unwrap().unwrap();
    assert_eq!(ack.end_acks, [create.runner_id]);
    server.delete(&create.cloud_id).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn fault_25_a_request_that_can_never_succeed_is_refused_by_name() {
    let dir = tempdir().unwrap();
    let server = Server::start_with(dir.path(), &["--unknown-labels", "refuse"]).await;
    let _agent = Agent::connect(&server, 1).await;
    let good = AddInstanceRequest {
        runner_name: "a".into(),
        setup_script: SCRIPT.into(),
        resource_type: "nano".into(),
        labels: vec!["self-hosted".into(), "MACOS-26".into(), "arm64".into()],
    };
    let bad = [
        (AddInstanceRequest { resource_type: "huge".into(), ..good.clone() }, "huge"),
        (AddInstanceRequest { labels: vec!["self-hosted".into(), "gpu".into()], ..good.clone() }, "gpu"),
        (AddInstanceRequest { runner_name: String::new(), ..good.clone() }, "runner name"),
        (
            AddInstanceRequest { runner_name: "x".repeat(65), ..good.clone() },
            "65 characters; GitHub takes 1 to 64",
        ),
        (AddInstanceRequest { runner_name: "team/mac 1".into(), ..good.clone() }, "character 5 is '/'"),
        (AddInstanceRequest { runner_name: "-mac".into(), ..good.clone() }, "character 1 is '-'"),
        (AddInstanceRequest { labels: vec!["a\u{7}".into()], ..good.clone() }, "character 2 is '\\u{7}'"),
        (AddInstanceRequest { labels: vec!["x".repeat(257)], ..good.clone() }, "has 257 characters"),
    ];
    for (request, part) in bad {
        let refused = answer(server.call_add(request, Duration::from_secs(9))).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        assert!(refused.message().contains(part), "{refused:?}");
        assert!(!refused.message().contains("TOKEN"), "{refused:?}");
    }
    assert_eq!(server.runners().await.len(), 0);
    let call = server.call_add(good, Duration::from_secs(60));
    server.until("a", |v| v.agent_hostname == "mac-1").await;
    call.abort();
    server.stop().await;
}

#[tokio::test]
async fn fault_01_a_restarted_server_knows_its_runners_its_queue_and_its_tombstones() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect(&server, 2).await;
    let live = server.add("live");
    agent.take_create().await;
    let ended = server.add("ended");
    agent.take_create().await;
    agent.report(RunnerState::Running).await;
    let (live, ended) = (answer(live).await.unwrap(), answer(ended).await.unwrap());
    let (deleted, _) = tokio::join!(server.delete(&ended.cloud_id), async {
        let SyncResponse { command: Some(Command::DeleteRunner(delete)), .. } =
            agent.next().await.unwrap().unwrap()
        else {
            panic!("not a delete")
        };
        agent.runners.retain(|r| r.runner_id != delete.runner_id);
        agent.sync().await;
    });
    deleted.unwrap();
    let waiting = server.add("undelivered");
    let undelivered = agent.next().await.unwrap().unwrap().command.unwrap();
    server.stop().await;
    let refused = answer(waiting).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");

    let server = Server::start(dir.path()).await;
    assert_eq!(server.runners().await.len(), 3);
    server.delete(&ended.cloud_id).await.unwrap();
    assert_eq!(
        answer(server.add("live")).await.unwrap().cloud_id,
        live.cloud_id,
        "known even before its agent reconnects"
    );
    let retry = server.add("undelivered");
    let mut agent = Agent::connect_as(&server, &agent.id, 2, Some(info()), agent.runners.clone()).await;
    let again = agent.take_create().await;
    assert_eq!(Command::CreateRunner(again), undelivered, "the script outlived the server");
    agent.report(RunnerState::Running).await;
    answer(retry).await.unwrap();
    let (deleted, _) = tokio::join!(server.delete(&live.cloud_id), agent.take_delete());
    deleted.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn an_unacknowledged_create_is_sent_once_on_the_next_stream_and_never_again() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect(&server, 1).await;
    let call = server.add("a");
    let first = agent.next().await.unwrap().unwrap();
    let id = agent.id.clone();
    drop(agent);
    let mut agent = Agent::connect_as(&server, &id, 1, Some(info()), vec![]).await;
    let create = agent.take_create().await;
    assert_eq!(Some(Command::CreateRunner(create)), first.command);
    agent.report(RunnerState::SshReady).await;
    answer(call).await.unwrap();
    let runners = agent.runners.clone();
    let mut agent = Agent::connect_as(&server, &id, 1, Some(info()), runners).await;
    assert!(agent.receives_nothing().await);
    assert_eq!(
        server.http("/metrics", "").await.1.lines().find(|l| l.starts_with("shoesvz_commands_resent_total")),
        Some("shoesvz_commands_resent_total 1")
    );
    server.stop().await;
}

#[tokio::test]
async fn a_runner_that_one_agent_cannot_take_goes_to_another_and_outlives_the_server_in_between() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut full = Agent::connect(&server, 2).await;
    let call = server.add("a");
    let refused = full.refuse_create("its disk is full").await;
    let waits = server.until("a", |v| v.pending_reason.contains("mac-1 refused it: its disk is full")).await;
    assert_eq!(waits.runner.unwrap().stage(), RunnerStage::Queue);
    let metrics = server.http("/metrics", "").await.1;
    assert!(metrics.contains("shoesvz_runners_requeued_total 1"), "{metrics}");
    full.unschedulable_reason = "its disk is full".into();
    full.sync().await;
    server.until("a", |v| v.pending_reason == "mac-1 takes no runners for now: its disk is full").await;
    assert!(server.http("/metrics", "").await.1.contains("shoesvz_agents_unschedulable 1"));
    server.stop().await;
    answer(call).await.unwrap_err();

    let server = Server::start(dir.path()).await;
    let retry = server.add("a");
    let mut other = Agent::connect(&server, 1).await;
    let create = other.take_create().await;
    assert_eq!((&create.runner_id, create.setup_script.as_str()), (&refused.runner_id, SCRIPT));
    other.report(RunnerState::SshReady).await;
    answer(retry).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn the_newer_stream_of_an_agent_replaces_the_older_one() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut old = Agent::connect(&server, 1).await;
    let mut new = Agent::connect_as(&server, &old.id, 1, Some(info()), vec![]).await;
    let refused = old.next().await.unwrap_err();
    assert_eq!(refused.code(), Code::Aborted, "{refused:?}");
    let _call = server.add("a");
    new.take_create().await;
    server.stop().await;
}

#[tokio::test]
async fn fault_02_an_agent_that_is_away_has_no_capacity_and_keeps_its_runners() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect(&server, 2).await;
    let call = server.add("a");
    agent.take_create().await;
    agent.report(RunnerState::Running).await;
    let added = answer(call).await.unwrap();
    drop(agent);
    until_agent_is(&server, AgentStatus::Offline).await;
    let refused = answer(server.add_within("b", Duration::from_secs(2))).await.unwrap_err();
    assert!(refused.message().contains("mac-1 is offline"), "{refused:?}");
    let mut request =
        tonic::Request::new(DeleteInstanceRequest { cloud_id: added.cloud_id.clone(), labels: vec![] });
    request.set_timeout(Duration::from_secs(2));
    let refused = server.shoes().delete_instance(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    assert!(refused.message().contains("marked for deletion"), "{refused:?}");
    server.stop().await;
}

/// Waits until the only agent has this status.
async fn until_agent_is(server: &Server, status: AgentStatus) {
    let mut operators = FleetServiceClient::new(server.channel());
    let seen = async {
        loop {
            let agents = operators.list_agents(ListAgentsRequest {}).await.unwrap().into_inner().agents;
            if agents[0].agent.as_ref().unwrap().status() == status {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(crate::common::TIMEOUT, seen)
        .await
        .unwrap_or_else(|_| panic!("the agent is not {status:?}"));
}

#[tokio::test]
async fn fault_02_an_agent_behind_a_dead_connection_is_found_to_be_offline() {
    let dir = tempdir().unwrap();
    let server = Server::start_with(dir.path(), &["--keepalive", "200ms"]).await;
    // A proxy between the two stops forwarding without closing its connections.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let between = listener.local_addr().unwrap();
    let (to, dead) = (server.grpc_addr, std::sync::Arc::new(tokio::sync::Notify::new()));
    let die = dead.clone();
    tokio::spawn(async move {
        let (mut agent, _) = listener.accept().await.unwrap();
        let mut server = tokio::net::TcpStream::connect(to).await.unwrap();
        tokio::select! {
            passed = tokio::io::copy_bidirectional(&mut agent, &mut server) => panic!("closed: {passed:?}"),
            () = die.notified() => {}
        }
        std::future::pending::<()>().await;
    });
    let channel =
        tonic::transport::Endpoint::from_shared(format!("http://{between}")).unwrap().connect_lazy();
    let id = shoes_vz_model::AgentId::random().to_string();
    let _agent = Agent::connect_over(channel, &id, 1, Some(info()), vec![]).await;
    let call = server.add("a");
    server.until("a", |v| !v.agent_hostname.is_empty()).await;
    dead.notify_one();
    until_agent_is(&server, AgentStatus::Offline).await;
    call.abort();
    server.stop().await;
}

#[tokio::test]
async fn a_go_agent_gets_the_commands_that_the_go_server_sent() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect_as(&server, "", 2, None, vec![]).await;
    assert!(matches!(agent.next().await.unwrap().unwrap().command, Some(Command::Noop(_))));
    let call = server.add("a");
    server.until("a", |v| !v.agent_hostname.is_empty()).await;
    assert!(agent.receives_nothing().await, "a Go agent polls");
    agent.sync().await;
    agent.take_create().await;
    agent.report(RunnerState::Running).await;
    assert!(matches!(agent.next().await.unwrap().unwrap().command, Some(Command::Noop(_))));
    let added = answer(call).await.unwrap();
    let mut client = server.shoes();
    let request = DeleteInstanceRequest { cloud_id: added.cloud_id, labels: vec![] };
    let delete = tokio::spawn(async move { client.delete_instance(request).await.map(|_| ()) });
    // It polls: the delete may reach the server after one or more polls.
    loop {
        agent.sync().await;
        match agent.next().await.unwrap().unwrap().command {
            Some(Command::Noop(_)) => tokio::task::yield_now().await,
            Some(Command::DeleteRunner(_)) => break,
            other => panic!("{other:?}"),
        }
    }
    agent.runners.clear();
    agent.sync().await;
    answer(delete).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_watch_reports_at_once_how_many_runners_match_before_it_shows_one() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let _agent = Agent::connect(&server, 1).await;
    let watch = async |name: &str| {
        let request = WatchRunnersRequest { runner_name: name.into(), ..Default::default() };
        let mut client = FleetServiceClient::new(server.channel());
        let answer = tokio::time::timeout(crate::common::TIMEOUT, client.watch_runners(request)).await;
        answer.expect("its header comes before its first message").unwrap()
    };
    let early = watch("a").await;
    assert_eq!(early.metadata().get(WATCH_MATCHING).unwrap(), "0");
    let _call = server.add("a");
    let first = early.into_inner().message().await.unwrap().unwrap();
    assert_eq!(first.runner.unwrap().runner_name, "a");
    assert_eq!(watch("a").await.metadata().get(WATCH_MATCHING).unwrap(), "1");
    assert_eq!(watch("").await.metadata().get(WATCH_MATCHING).unwrap(), "1");
    server.stop().await;
}

#[tokio::test]
async fn a_served_name_gets_no_second_vm_not_even_from_a_restarted_server() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect(&server, 2).await;
    let call = server.add("a");
    let create = agent.take_create().await;
    agent.runners[0].guest_runner_state = GuestRunnerState::Running.into();
    agent.report(RunnerState::Running).await;
    answer(call).await.unwrap();
    agent.runners[0].guest_runner_state = GuestRunnerState::Finished.into();
    agent.runners[0].end = Some(RunnerEnd { kind: EndKind::Finished.into(), ..Default::default() });
    agent.report(RunnerState::TearingDown).await;
    server.until("a", |v| v.runner.as_ref().unwrap().end.is_some()).await;
    let refused = answer(server.add("a")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "myshoes drops the job upon this: {refused:?}");
    server.stop().await;

    let server = Server::start(dir.path()).await;
    let _agent = Agent::connect_as(&server, &agent.id, 2, Some(info()), vec![]).await;
    let refused = answer(server.add("a")).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    for part in ["the name a has been served", create.runner_id.as_str(), "on mac-1"] {
        assert!(refused.message().contains(part), "{refused:?}");
    }
    server.delete(&create.cloud_id).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_label_that_no_agent_offers_yet_waits_for_one_that_does_and_loses_no_job() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let _other = Agent::connect(&server, 1).await;
    let request = |name: &str| AddInstanceRequest {
        runner_name: name.into(),
        setup_script: SCRIPT.into(),
        resource_type: String::new(),
        labels: vec!["self-hosted".into(), "xcode-99".into()],
    };
    let refused = answer(server.call_add(request("a"), Duration::from_secs(1))).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "myshoes keeps its job: {refused:?}");
    assert!(refused.message().contains("xcode-99"), "{refused:?}");

    let call = server.call_add(request("b"), Duration::from_secs(60));
    let view = server.until("b", |v| !v.pending_reason.is_empty()).await;
    assert!(view.pending_reason.contains("label \"xcode-99\" is offered by no template"), "{view:?}");
    assert_eq!(view.resource_type, "nano", "none was named, so it is the default");
    let mut late = info();
    late.templates[0].labels = vec!["xcode-99".into()];
    let id = shoes_vz_model::AgentId::random().to_string();
    let mut late = Agent::connect_as(&server, &id, 1, Some(late), vec![]).await;
    late.take_create().await;
    late.report(RunnerState::SshReady).await;
    answer(call).await.unwrap();
    server.stop().await;
}

#[tokio::test]
async fn a_resource_type_that_is_not_named_is_the_servers_default() {
    let dir = tempdir().unwrap();
    let server = Server::start_with(dir.path(), &["--default-resource-type", "2xlarge"]).await;
    let mut agent = Agent::connect(&server, 1).await;
    let request = AddInstanceRequest {
        runner_name: "a".into(),
        setup_script: SCRIPT.into(),
        ..AddInstanceRequest::default()
    };
    let call = server.call_add(request, Duration::from_secs(60));
    assert_eq!(agent.take_create().await.resource_type, "2xlarge");
    agent.report(RunnerState::SshReady).await;
    assert_eq!(answer(call).await.unwrap().resource_type, "2xlarge");
    server.stop().await;
}
