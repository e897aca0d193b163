//! Access, logs, metrics, reflection and the limits of requests.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use crate::common::{Agent, SCRIPT, Server, answer};
use shoes_vz_proto::{
    agent::{GuestRunnerState, RunnerStage, RunnerState, StageTiming},
    fleet::{ListAgentsRequest, fleet_service_client::FleetServiceClient},
};
use shoes_vz_server::{serve, settings::Settings};
use tempfile::tempdir;
use tonic::{Code, Request};
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;
    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[tokio::test]
async fn fault_20_the_script_is_in_no_log_and_the_request_id_is_in_all() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(log.clone())
        .finish();
    // For every thread, and so for every test here: a subscriber for one thread loses events to tracing's interest cache,
    // which the tests of other threads fill.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect(&server, 1).await;
    let mut client = server.shoes();
    let call = tokio::spawn(async move {
        let mut request = Request::new(shoes_vz_proto::fleet::AddInstanceRequest {
            runner_name: "a".into(),
            setup_script: SCRIPT.into(),
            ..Default::default()
        });
        request.metadata_mut().insert("x-request-id", "req-4711".parse().unwrap());
        client.add_instance(request).await
    });
    let create = agent.take_create().await;
    assert_eq!(create.request_id, "req-4711");
    agent.report(RunnerState::Running).await;
    let response = answer(call).await.unwrap();
    assert_eq!(response.metadata().get("x-request-id").unwrap(), "req-4711");
    server.stop().await;
    let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    // h2 and hyper trace frames byte by byte; only the server's events count here.
    let own: Vec<&str> = text.lines().filter(|l| l.contains("\"target\":\"shoes_vz_server")).collect();
    assert!(own.iter().any(|l| l.contains("runner placed") && l.contains("req-4711")), "{own:#?}");
    let answered = own.iter().find(|l| l.contains("AddInstance answered") && l.contains("req-4711"));
    assert!(answered.is_some_and(|l| l.contains(&create.runner_id)), "{own:#?}");
    assert!(!own.concat().contains("registration-token"));
}

#[tokio::test]
async fn fault_19_only_callers_with_the_token_are_accepted() {
    let dir = tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "s3cret\n").unwrap();
    let server =
        Server::start_with(&dir.path().join("state"), &["--token-file", token.to_str().unwrap()]).await;
    let refused =
        FleetServiceClient::new(server.channel()).list_agents(ListAgentsRequest {}).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert!(!refused.message().contains("s3cret"));
    let mut request = Request::new(ListAgentsRequest {});
    request.metadata_mut().insert("authorization", "Bearer s3cret".parse().unwrap());
    FleetServiceClient::new(server.channel()).list_agents(request).await.unwrap();
    let refused = server.add("a").await.unwrap().unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);

    assert_eq!(server.http("/metrics", "").await.0, 401);
    assert_eq!(server.http("/", "Authorization: Bearer wrong!\r\n").await.0, 401);
    assert_eq!(server.http("/metrics", "Authorization: Bearer s3cret\r\n").await.0, 200);
    assert_eq!(server.http("/healthz", "").await.0, 200);
    let mut health = tonic_health::pb::health_client::HealthClient::new(server.channel());
    let serving = health.check(tonic_health::pb::HealthCheckRequest::default()).await.unwrap();
    assert_eq!(serving.into_inner().status, 1, "health needs no token");
    server.stop().await;
}

#[tokio::test]
async fn reflection_lists_the_services_in_both_versions() {
    use tonic_reflection::pb::{v1, v1alpha};
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let wanted = [
        "grpc.health.v1.Health",
        "shoes.vz.agent.v1.AgentService",
        "shoes.vz.shoes.v1.FleetService",
        "shoes.vz.shoes.v1.ShoesService",
    ];

    let request = v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(v1::server_reflection_request::MessageRequest::ListServices(String::new())),
    };
    let mut client = v1::server_reflection_client::ServerReflectionClient::new(server.channel());
    let stream = client.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    let Some(v1::server_reflection_response::MessageResponse::ListServicesResponse(list)) =
        stream.into_inner().message().await.unwrap().unwrap().message_response
    else {
        panic!("not a list")
    };
    let names: Vec<String> = list.service.into_iter().map(|s| s.name).collect();
    assert!(wanted.iter().all(|w| names.iter().any(|n| n == w)), "{names:?}");

    let request = v1alpha::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(
            v1alpha::server_reflection_request::MessageRequest::ListServices(String::new()),
        ),
    };
    let mut client = v1alpha::server_reflection_client::ServerReflectionClient::new(server.channel());
    let stream = client.server_reflection_info(tokio_stream::once(request)).await.unwrap();
    assert!(stream.into_inner().message().await.unwrap().unwrap().message_response.is_some());
    server.stop().await;
}

#[tokio::test]
async fn fault_23_every_metric_of_the_go_server_is_there_and_fed() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect(&server, 4).await;
    let call = server.add("a");
    let create = agent.take_create().await;
    agent.runners[0].stages =
        vec![StageTiming { stage: RunnerStage::Clone.into(), duration_us: 4_000, started_at: None }];
    agent.runners[0].guest_runner_state = GuestRunnerState::Running.into();
    agent.report(RunnerState::Running).await;
    answer(call).await.unwrap();
    let text = server.http("/metrics", "").await.1;
    for line in text.lines().filter(|l| !l.starts_with('#')) {
        let (_, value) = line.rsplit_once(' ').unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
    let id = &agent.id;
    for line in [
        "shoesvz_runners_total{state=\"RUNNER_STATE_RUNNING\"} 1",
        "shoesvz_runners_idle 0",
        "shoesvz_runners_busy 1",
        "shoesvz_agents_total{status=\"AGENT_STATUS_ONLINE\"} 1",
        "shoesvz_agents_online 1",
        &format!("shoesvz_agents_capacity_runners{{agent_id=\"{id}\",hostname=\"mac-1\"}} 4"),
        &format!("shoesvz_agents_current_runners{{agent_id=\"{id}\",hostname=\"mac-1\"}} 1"),
        "shoesvz_capacity_total_runners 4",
        "shoesvz_capacity_available_runners 3",
        "shoesvz_capacity_utilization_ratio 0.25",
        "shoesvz_runner_errors 0",
        "shoesvz_runner_startup_duration_seconds_count 1",
        "shoesvz_runner_job_duration_seconds_count 0",
        "shoesvz_add_instance_duration_seconds_count 1",
        "shoesvz_runner_failures_total{reason=\"startup_timeout\"} 0",
        "shoesvz_runner_failures_total{reason=\"send_command_failed\"} 0",
        "shoesvz_add_instance_requests_total{status=\"success\"} 1",
        "shoesvz_add_instance_requests_total{status=\"failed_no_agent\"} 0",
        "shoesvz_add_instance_requests_total{status=\"failed_send_command\"} 0",
        "shoesvz_add_instance_requests_total{status=\"failed_timeout\"} 0",
        "shoesvz_add_instance_requests_total{status=\"failed_get_runner\"} 0",
        "shoesvz_delete_instance_requests_total{status=\"success\"} 0",
        "shoesvz_delete_instance_requests_total{status=\"failed_not_found\"} 0",
        "shoesvz_delete_instance_requests_total{status=\"failed_get_agent\"} 0",
        "shoesvz_delete_instance_requests_total{status=\"failed_send_command\"} 0",
        "shoesvz_runner_stage_duration_seconds_bucket{stage=\"clone\",le=\"0.005\"} 1",
        "shoesvz_runner_stage_duration_seconds_count{stage=\"queue\"} 1",
        "shoesvz_queue_length 0",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
    }
    let (deleted, _) = tokio::join!(server.delete(&create.cloud_id), agent.take_delete());
    deleted.unwrap();
    let text = server.http("/", "").await.1;
    for line in
        ["shoesvz_runner_job_duration_seconds_count 1", "shoesvz_runners_ended_total{kind=\"deleted\"} 1"]
    {
        assert!(text.lines().any(|l| l == line), "{line} is not in:\n{text}");
    }
    assert_eq!(server.http("/nowhere", "").await.0, 404);
    server.stop().await;
}

#[tokio::test]
async fn fault_24_the_startup_metric_measures_what_its_help_says() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect(&server, 1).await;
    let call = server.add("a");
    agent.take_create().await;
    let counts = async || {
        let text = server.http("/metrics", "").await.1;
        let name = "shoesvz_runner_startup_duration_seconds";
        assert!(text.lines().any(|l| l == format!("# HELP {name} Time from AddInstance to SSH.")), "{text}");
        text.lines().find_map(|l| l.strip_prefix(&format!("{name}_count "))).unwrap().to_owned()
    };
    agent.report(RunnerState::Booting).await;
    server.until("a", |v| v.runner.as_ref().unwrap().state() == RunnerState::Booting).await;
    assert_eq!(counts().await, "0");
    agent.report(RunnerState::SshReady).await;
    answer(call).await.unwrap();
    assert_eq!(counts().await, "1");
    agent.report(RunnerState::Running).await;
    server.until("a", |v| v.runner.as_ref().unwrap().state() == RunnerState::Running).await;
    assert_eq!(counts().await, "1", "the job does not count");
    server.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_reported_with_its_address() {
    let dir = tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let state = dir.path().to_str().unwrap();
    let args =
        ["shoes-vz-server", "--grpc-addr", &addr, "--metrics-addr", "127.0.0.1:0", "--state-dir", state];
    let settings = Settings::read(args.iter().map(Into::into), []).unwrap();
    let refused = serve::bind(settings).await.err().unwrap().to_string();
    assert!(refused.contains(&addr) && refused.contains("--grpc-addr"), "{refused}");
}

#[tokio::test]
async fn a_request_of_two_mebibytes_is_accepted_and_one_that_is_too_long_is_not() {
    let dir = tempdir().unwrap();
    let server = Server::start(dir.path()).await;
    let mut agent = Agent::connect(&server, 1).await;
    let with = |bytes: usize| shoes_vz_proto::fleet::AddInstanceRequest {
        runner_name: format!("r{bytes}"),
        setup_script: "#".repeat(bytes),
        ..Default::default()
    };
    let call = server.call_add(with(2 << 20), crate::common::TIMEOUT);
    assert_eq!(agent.take_create().await.setup_script.len(), 2 << 20);
    call.abort();
    let refused = answer(server.call_add(with((8 << 20) + 1), crate::common::TIMEOUT)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("setup_script has 8388609 bytes"), "{refused:?}");
    let refused = answer(server.call_add(with(17 << 20), crate::common::TIMEOUT)).await.unwrap_err();
    assert_eq!(refused.code(), Code::OutOfRange, "{refused:?}");
    server.stop().await;
}
