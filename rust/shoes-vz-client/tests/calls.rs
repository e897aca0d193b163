//! myshoes' calls through the plugin to a server that answers, refuses, hangs, dies and comes back.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::{
    os::unix::fs::PermissionsExt as _,
    time::{Duration, Instant},
};

use common::{CLOUD_ID, Does, Fake, PATIENCE, host::Plugin};
use shoes_vz_proto::myshoes::{AddInstanceRequest, AddInstanceResponse, DeleteInstanceRequest, ResourceType};
use tokio::net::TcpListener;
use tonic::{Code, Request, Status};

fn asks(resource_type: ResourceType) -> AddInstanceRequest {
    AddInstanceRequest {
        runner_name: "myshoes-1".into(),
        setup_script: "true".into(),
        resource_type: resource_type.into(),
        labels: vec!["self-hosted".into(), "macOS".into()],
    }
}

async fn add(plugin: &Plugin, deadline: Duration) -> Result<AddInstanceResponse, Status> {
    let mut request = Request::new(asks(ResourceType::Small));
    request.set_timeout(deadline);
    plugin.shoes().await.add_instance(request).await.map(tonic::Response::into_inner)
}

async fn with_plugin(fake: &Fake) -> Plugin {
    Plugin::start(Some(&fake.addr.to_string())).await
}

#[tokio::test]
async fn both_calls_arrive_whole_and_their_answers_come_back() {
    let fake = Fake::start(Does::Answers("large")).await;
    let plugin = with_plugin(&fake).await;
    let mut request = Request::new(asks(ResourceType::XLarge2));
    request.metadata_mut().insert("x-request-id", "from-the-caller".parse().unwrap());
    let answer = plugin.shoes().await.add_instance(request).await.unwrap().into_inner();
    assert_eq!((answer.cloud_id.as_str(), answer.shoes_type.as_str()), (CLOUD_ID, "shoes-vz"));
    assert_eq!(answer.ip_address, "192.0.2.7");
    assert_eq!(answer.resource_type(), ResourceType::Large, "the effective type, not the one asked for");
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
    assert_eq!(seen.request_id.map(|id| id.len()), Some(36), "an id is made where none came");
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_go_server_that_names_no_resource_type_gave_the_one_asked_for() {
    let fake = Fake::start_kind(Does::Answers(""), common::Kind::Go).await;
    let plugin = with_plugin(&fake).await;
    assert_eq!(add(&plugin, PATIENCE).await.unwrap().resource_type(), ResourceType::Small);
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_script_of_two_mebibytes_arrives_whole() {
    let fake = Fake::start(Does::Answers("small")).await;
    let plugin = with_plugin(&fake).await;
    let script: String = (0..(2 << 20) / 16).map(|n| format!("echo {n:>10}\n")).collect();
    assert_eq!(script.len(), 2 << 20);
    let request = AddInstanceRequest { setup_script: script.clone(), ..asks(ResourceType::Nano) };
    plugin.shoes().await.add_instance(request).await.unwrap();
    assert!(fake.until_seen(1).await.script == script, "the script changed on its way");
    plugin.shut_down().await;
}

#[tokio::test]
async fn every_code_the_server_answers_with_is_passed_through_with_its_words() {
    let fake = Fake::start(Does::Answers("")).await;
    let plugin = with_plugin(&fake).await;
    for number in 1..=16 {
        let code = Code::from_i32(number);
        let words = format!("the server's words for {number}: é%");
        fake.now_does(Does::Refuses(code, words.clone()));
        let refused = add(&plugin, PATIENCE).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (code, words.as_str()));
    }
    assert_eq!(fake.seen().len(), 16, "a server's own answer is not asked for again");
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_resource_type_that_can_never_work_is_an_invalid_argument_and_reaches_no_server() {
    let fake = Fake::start(Does::Answers("")).await;
    let plugin = with_plugin(&fake).await;
    for (number, name) in [(10, "10"), (-1, "-1")] {
        let request = AddInstanceRequest { resource_type: number, ..asks(ResourceType::Nano) };
        let refused = plugin.shoes().await.add_instance(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(name), "{refused:?}");
    }
    assert_eq!(fake.seen(), []);
    plugin.shut_down().await;
}

#[tokio::test]
async fn resource_type_0_is_passed_on_as_none_named() {
    let fake = Fake::start(Does::Answers("medium")).await;
    let plugin = with_plugin(&fake).await;
    let answer = plugin.shoes().await.add_instance(asks(ResourceType::Unknown)).await.unwrap().into_inner();
    assert_eq!(answer.resource_type(), ResourceType::Medium);
    assert_eq!(fake.until_seen(1).await.resource_type, "");
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_call_made_while_the_server_is_down_succeeds_once_it_is_up() {
    let mut fake = Fake::down(Does::Answers("small")).await;
    let plugin = with_plugin(&fake).await;
    let called = add(&plugin, PATIENCE);
    let (answer, ()) = tokio::join!(called, async {
        // The first try finds somebody who hangs up on it.
        let wrong = TcpListener::bind(fake.addr).await.unwrap();
        drop(wrong.accept().await.unwrap());
        drop(wrong);
        fake.restart().await;
    });
    assert_eq!(answer.unwrap().cloud_id, CLOUD_ID);
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_server_that_dies_during_the_call_is_asked_again_with_the_same_name_and_id() {
    let mut fake = Fake::start(Does::Hangs).await;
    let plugin = with_plugin(&fake).await;
    let called = add(&plugin, PATIENCE);
    let (answer, (first, second)) = tokio::join!(called, async {
        let first = fake.until_seen(1).await;
        fake.crash();
        fake.now_does(Does::Answers("small"));
        fake.restart().await;
        (first, fake.until_seen(2).await)
    });
    assert_eq!(answer.unwrap().cloud_id, CLOUD_ID);
    assert_eq!((first.name, first.request_id), (second.name, second.request_id));
    assert!(second.timeout < first.timeout, "what is left of the deadline shrinks");
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_server_that_never_comes_is_unavailable_in_words_before_the_callers_deadline() {
    let fake = Fake::down(Does::Hangs).await;
    let plugin = with_plugin(&fake).await;
    let started = Instant::now();
    let refused = add(&plugin, Duration::from_secs(2)).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(refused.code(), Code::Unavailable);
    let words = refused.message();
    assert!(words.contains(&fake.addr.to_string()) && words.contains("refused"), "{words}");
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_server_that_never_answers_is_a_deadline_exceeded_in_words_before_the_callers_deadline() {
    let fake = Fake::start(Does::Hangs).await;
    let plugin = with_plugin(&fake).await;
    let started = Instant::now();
    let refused = add(&plugin, Duration::from_secs(2)).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(refused.code(), Code::DeadlineExceeded);
    assert!(refused.message().contains(&fake.addr.to_string()), "{refused:?}");
    let told = fake.until_seen(1).await.timeout.expect("the server is told the deadline");
    assert!(told > Duration::from_millis(1500) && told <= Duration::from_secs(2), "{told:?}");
    fake.until_abandoned().await;
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_caller_that_goes_takes_its_call_to_the_server_along() {
    let fake = Fake::start(Does::Hangs).await;
    let plugin = with_plugin(&fake).await;
    let mut shoes = plugin.shoes().await;
    let call = tokio::spawn(async move { shoes.add_instance(asks(ResourceType::Nano)).await });
    fake.until_seen(1).await;
    call.abort();
    fake.until_abandoned().await;
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_shutdown_during_a_call_cancels_it_and_ends_at_once() {
    let fake = Fake::start(Does::Hangs).await;
    let plugin = with_plugin(&fake).await;
    let mut shoes = plugin.shoes().await;
    let call = tokio::spawn(async move { shoes.add_instance(asks(ResourceType::Nano)).await });
    fake.until_seen(1).await;
    let started = Instant::now();
    plugin.shut_down().await;
    assert!(started.elapsed() < Duration::from_secs(2), "go-plugin's host would have killed it");
    assert_eq!(call.await.unwrap().unwrap_err().code(), Code::Cancelled);
    fake.until_abandoned().await;
}

#[tokio::test]
async fn the_token_goes_with_every_call_and_an_unreadable_one_is_told_by_name() {
    let fake = Fake::start(Does::Answers("small")).await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, "s3cret\n").unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    let addr = fake.addr.to_string();
    let plugin = Plugin::start_with(Some(&addr), &[("SHOESVZ_TOKEN_FILE", path.to_str().unwrap())]).await;
    add(&plugin, PATIENCE).await.unwrap();
    assert_eq!(fake.until_seen(1).await.authorization.as_deref(), Some("Bearer s3cret"));
    plugin.shut_down().await;

    let plugin = Plugin::start_with(Some(&addr), &[("SHOESVZ_TOKEN_FILE", "/nowhere/token")]).await;
    let refused = add(&plugin, PATIENCE).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("/nowhere/token"), "{refused:?}");
    plugin.shut_down().await;
}

#[tokio::test]
async fn a_plugin_that_was_told_no_server_says_which_variable_to_set() {
    let plugin = Plugin::start(None).await;
    let refused = add(&plugin, PATIENCE).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "INVALID_ARGUMENT would delete the job");
    assert!(refused.message().contains("SHOESVZ_SERVER_ADDR"), "{refused:?}");
    plugin.shut_down().await;
}
