//! Calls from myshoes through the plugin to a server that answers, refuses, hangs, crashes and restarts.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use common::{Behavior, CLOUD_ID, FakeServer, TIMEOUT, host::Plugin};
use shoes_vz_proto::myshoes::{AddInstanceRequest, AddInstanceResponse, DeleteInstanceRequest, ResourceType};
use tokio::net::TcpListener;
use tonic::{Code, Request, Status};

fn add_request(resource_type: ResourceType) -> AddInstanceRequest {
    AddInstanceRequest {
        runner_name: "myshoes-1".into(),
        setup_script: "true".into(),
        resource_type: resource_type.into(),
        labels: vec!["self-hosted".into(), "macOS".into()],
    }
}

async fn add(plugin: &Plugin, deadline: Duration) -> Result<AddInstanceResponse, Status> {
    let mut request = Request::new(add_request(ResourceType::Small));
    request.set_timeout(deadline);
    plugin.shoes().await.add_instance(request).await.map(tonic::Response::into_inner)
}

async fn plugin_for(fake: &FakeServer) -> Plugin {
    Plugin::start(Some(&fake.addr.to_string())).await
}

#[tokio::test]
async fn both_calls_arrive_complete_and_return_their_answers() {
    let fake = FakeServer::start(Behavior::Answer("large")).await;
    let plugin = plugin_for(&fake).await;
    let mut request = Request::new(add_request(ResourceType::XLarge2));
    request.metadata_mut().insert("x-request-id", "from-the-caller".parse().unwrap());
    let answer = plugin.shoes().await.add_instance(request).await.unwrap().into_inner();
    assert_eq!((answer.cloud_id.as_str(), answer.shoes_type.as_str()), (CLOUD_ID, "shoes-vz"));
    assert_eq!(answer.ip_address, "192.0.2.7");
    assert_eq!(answer.resource_type(), ResourceType::Large, "the effective type, not the requested one");
    let seen = fake.until_seen(1).await;
    assert_eq!((seen.name.as_str(), seen.script.as_str()), ("myshoes-1", "true"));
    assert_eq!((seen.resource_type.as_str(), seen.labels.len()), ("2xlarge", 2));
    assert_eq!(seen.request_id.as_deref(), Some("from-the-caller"));

    let request = DeleteInstanceRequest { cloud_id: CLOUD_ID.into(), labels: vec!["macOS".into()] };
    plugin.shoes().await.delete_instance(request).await.unwrap();
    let seen = fake.until_seen(2).await;
    assert_eq!(
        (seen.method, seen.name.as_str(), seen.labels),
        ("DeleteInstance", CLOUD_ID, vec!["macOS".to_owned()])
    );
    assert_eq!(seen.request_id.map(|id| id.len()), Some(36), "a missing ID is generated");
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_go_server_that_names_no_resource_type_gives_the_requested_one() {
    let fake = FakeServer::start_kind(Behavior::Answer(""), common::Kind::Go).await;
    let plugin = plugin_for(&fake).await;
    assert_eq!(add(&plugin, TIMEOUT).await.unwrap().resource_type(), ResourceType::Small);
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_script_of_two_mebibytes_arrives_complete() {
    let fake = FakeServer::start(Behavior::Answer("small")).await;
    let plugin = plugin_for(&fake).await;
    let script: String = (0..(2 << 20) / 16).map(|n| format!("echo {n:>10}\n")).collect();
    assert_eq!(script.len(), 2 << 20);
    let request = AddInstanceRequest { setup_script: script.clone(), ..add_request(ResourceType::Nano) };
    plugin.shoes().await.add_instance(request).await.unwrap();
    assert!(fake.until_seen(1).await.script == script, "the script changed on its way");
    plugin.shut_down().await;
}

#[tokio::test]
async fn every_code_of_the_server_is_passed_through_with_its_message() {
    let fake = FakeServer::start(Behavior::Answer("")).await;
    let plugin = plugin_for(&fake).await;
    for number in 1..=16 {
        let code = Code::from_i32(number);
        let message = format!("message of the server for {number}: é%");
        fake.set_behavior(Behavior::Refuse(code, message.clone()));
        let refused = add(&plugin, TIMEOUT).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (code, message.as_str()));
    }
    assert_eq!(fake.seen().len(), 16, "a call that the server answered is not repeated");
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_resource_type_that_can_never_work_is_an_invalid_argument_and_reaches_no_server() {
    let fake = FakeServer::start(Behavior::Answer("")).await;
    let plugin = plugin_for(&fake).await;
    for (number, name) in [(10, "10"), (-1, "-1")] {
        let request = AddInstanceRequest { resource_type: number, ..add_request(ResourceType::Nano) };
        let refused = plugin.shoes().await.add_instance(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(name), "{refused:?}");
    }
    assert_eq!(fake.seen(), []);
    plugin.shut_down().await;
}

#[tokio::test]
async fn resource_type_0_is_passed_on_as_none() {
    let fake = FakeServer::start(Behavior::Answer("medium")).await;
    let plugin = plugin_for(&fake).await;
    let answer =
        plugin.shoes().await.add_instance(add_request(ResourceType::Unknown)).await.unwrap().into_inner();
    assert_eq!(answer.resource_type(), ResourceType::Medium);
    assert_eq!(fake.until_seen(1).await.resource_type, "");
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_call_made_while_the_server_is_down_succeeds_once_it_is_up() {
    let mut fake = FakeServer::down(Behavior::Answer("small")).await;
    let plugin = plugin_for(&fake).await;
    let called = add(&plugin, TIMEOUT);
    let (answer, ()) = tokio::join!(called, async {
        // The first attempt reaches another listener, which closes the connection.
        let wrong = TcpListener::bind(fake.addr).await.unwrap();
        drop(wrong.accept().await.unwrap());
        drop(wrong);
        fake.restart().await;
    });
    assert_eq!(answer.unwrap().cloud_id, CLOUD_ID);
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_call_is_repeated_with_the_same_name_and_id_after_the_server_crashed() {
    let mut fake = FakeServer::start(Behavior::Hang).await;
    let plugin = plugin_for(&fake).await;
    let called = add(&plugin, TIMEOUT);
    let (answer, (first, second)) = tokio::join!(called, async {
        let first = fake.until_seen(1).await;
        fake.crash();
        fake.set_behavior(Behavior::Answer("small"));
        fake.restart().await;
        (first, fake.until_seen(2).await)
    });
    assert_eq!(answer.unwrap().cloud_id, CLOUD_ID);
    assert_eq!((first.name, first.request_id), (second.name, second.request_id));
    assert!(second.timeout < first.timeout, "the repeated call has less time left");
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_server_that_never_comes_up_is_unavailable_with_a_reason_before_the_callers_deadline() {
    let fake = FakeServer::down(Behavior::Hang).await;
    let plugin = plugin_for(&fake).await;
    let started = Instant::now();
    let refused = add(&plugin, Duration::from_secs(2)).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(refused.code(), Code::Unavailable);
    let reason = refused.message();
    assert!(reason.contains(&fake.addr.to_string()) && reason.contains("refused"), "{reason}");
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_server_that_never_answers_is_a_deadline_exceeded_with_a_reason_before_the_callers_deadline() {
    let fake = FakeServer::start(Behavior::Hang).await;
    let plugin = plugin_for(&fake).await;
    let started = Instant::now();
    let refused = add(&plugin, Duration::from_secs(2)).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(refused.code(), Code::DeadlineExceeded);
    assert!(refused.message().contains(&fake.addr.to_string()), "{refused:?}");
    let timeout = fake.until_seen(1).await.timeout.expect("the server gets the deadline");
    assert!(timeout > Duration::from_millis(1500) && timeout <= Duration::from_secs(2), "{timeout:?}");
    fake.until_abandoned().await;
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_caller_that_cancels_also_cancels_the_call_to_the_server() {
    let fake = FakeServer::start(Behavior::Hang).await;
    let plugin = plugin_for(&fake).await;
    let mut shoes = plugin.shoes().await;
    let call = tokio::spawn(async move { shoes.add_instance(add_request(ResourceType::Nano)).await });
    fake.until_seen(1).await;
    call.abort();
    fake.until_abandoned().await;
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_shutdown_during_a_call_cancels_it_and_ends_at_once() {
    let fake = FakeServer::start(Behavior::Hang).await;
    let plugin = plugin_for(&fake).await;
    let mut shoes = plugin.shoes().await;
    let call = tokio::spawn(async move { shoes.add_instance(add_request(ResourceType::Nano)).await });
    fake.until_seen(1).await;
    let started = Instant::now();
    plugin.shut_down().await;
    assert!(started.elapsed() < Duration::from_secs(2), "the go-plugin host would have killed it");
    assert_eq!(call.await.unwrap().unwrap_err().code(), Code::Cancelled);
    fake.until_abandoned().await;
}

#[tokio::test]
async fn the_token_is_sent_with_every_call_and_an_unreadable_token_file_is_named() {
    let fake = FakeServer::start(Behavior::Answer("small")).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "s3cret\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let addr = fake.addr.to_string();
    let plugin = Plugin::start_with(Some(&addr), &[("SHOESVZ_TOKEN_FILE", path.to_str().unwrap())]).await;
    add(&plugin, TIMEOUT).await.unwrap();
    assert_eq!(fake.until_seen(1).await.authorization.as_deref(), Some("Bearer s3cret"));
    plugin.shut_down().await;

    let plugin = Plugin::start_with(Some(&addr), &[("SHOESVZ_TOKEN_FILE", "/nowhere/token")]).await;
    let refused = add(&plugin, TIMEOUT).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("/nowhere/token"), "{refused:?}");
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_plugin_without_a_server_says_which_variable_to_set() {
    let plugin = Plugin::start(None).await;
    let refused = add(&plugin, TIMEOUT).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "INVALID_ARGUMENT would delete the job");
    assert!(refused.message().contains("SHOESVZ_SERVER_ADDR"), "{refused:?}");
    plugin.shut_down().await;
}
