//! The agent's own subcommands on live VMs, and myshoes' way in through go-plugin.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::process::Output;

use nix::sys::signal::Signal;
use shoes_vz_testkit::{
    bins::repository,
    fleet::Fleet,
    leftover,
    script::{Job, held},
};

async fn agent(fleet: &Fleet, command: &str, args: &[&str]) -> Output {
    tokio::process::Command::new(fleet.bins().path("shoes-vz-agent"))
        .arg(command)
        .arg("--runners-path")
        .arg(fleet.runners_path())
        .args(args)
        .output()
        .await
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn list_and_exec_reach_a_live_vm_and_exec_hands_on_the_exit_code() {
    let fleet = Fleet::start().await;
    let added = fleet.add("inspected", &held()).await.unwrap();
    let bundle = fleet.only_bundle();
    let id = bundle.file_stem().unwrap().to_str().unwrap();

    let listed = agent(&fleet, "list", &[]).await;
    assert!(listed.status.success());
    assert!(text(&listed.stdout).contains(id) && text(&listed.stdout).contains("inspected"), "{listed:?}");

    let done = agent(&fleet, "exec", &[id, "uname", "-s"]).await;
    assert_eq!((done.status.code(), text(&done.stdout).as_str()), (Some(0), "Linux\n"), "{done:?}");
    let failed = agent(&fleet, "exec", &[id, "sh", "-c", "exit 7"]).await;
    assert_eq!(failed.status.code(), Some(7), "{failed:?}");

    let unknown = agent(&fleet, "exec", &["00000000-0000-4000-8000-000000000000", "true"]).await;
    assert!(!unknown.status.success());
    assert!(text(&unknown.stderr).contains("00000000-0000-4000-8000-000000000000"), "{unknown:?}");
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn the_operators_delete_ends_a_vm_the_agent_runs() {
    let fleet = Fleet::start().await;
    fleet.add("unwanted", &held()).await.unwrap();
    let bundle = fleet.only_bundle();
    let deleted = agent(&fleet, "delete", &[bundle.file_stem().unwrap().to_str().unwrap()]).await;
    assert!(deleted.status.success(), "{deleted:?}");
    fleet.until_ended("unwanted").await;
    fleet.until_clean().await;
    fleet.finish().await;
}

#[tokio::test]
async fn without_an_agent_a_vm_is_stopped_started_again_and_deleted_by_hand() {
    let mut fleet = Fleet::start().await;
    fleet.add("by-hand", &held()).await.unwrap();
    let bundle = fleet.only_bundle();
    let id = bundle.file_stem().unwrap().to_str().unwrap().to_owned();
    fleet.end_agent(Signal::SIGKILL).await;

    let stopped = agent(&fleet, "stop", &[&id]).await;
    assert!(stopped.status.success(), "{stopped:?}");
    assert_eq!(leftover::processes(&fleet.runners_path()), Vec::<i32>::new());
    assert!(bundle.is_dir(), "stop keeps the bundle");
    let again = agent(&fleet, "stop", &[&id]).await;
    assert!(!again.status.success(), "a VM that is not running cannot be stopped: {again:?}");

    let started = agent(&fleet, "start", &[&id]).await;
    assert!(started.status.success(), "{started:?}");
    let done = agent(&fleet, "exec", &[&id, "echo", "back"]).await;
    assert_eq!(text(&done.stdout), "back\n", "{done:?}");

    let deleted = agent(&fleet, "delete", &[&id]).await;
    assert!(deleted.status.success(), "{deleted:?}");
    assert!(!bundle.exists());
    fleet.finish().await;
}

#[tokio::test]
async fn myshoes_own_way_in_adds_and_deletes_through_go_plugin() {
    let fleet = Fleet::start().await;
    let host = fleet.path().join("go-plugin-host");
    let built = tokio::process::Command::new("go")
        .args(["build", "-o"])
        .arg(&host)
        .arg(".")
        .current_dir(repository().join("rust/shoes-vz-testkit/conformance"))
        .output()
        .await
        .expect("go is installed (`make setup`)");
    assert!(built.status.success(), "{}", text(&built.stderr));
    let script = fleet.path().join("script.sh");
    std::fs::write(&script, Job::new("echo through-myshoes").setup_script("from-myshoes")).unwrap();

    let call = async |args: &[&str]| {
        let output = tokio::process::Command::new(&host)
            .arg("--plugin")
            .arg(fleet.bins().path("shoes-vz-client"))
            .args(["--server", fleet.grpc_addr()])
            .args(args)
            .output()
            .await
            .unwrap();
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let added = call(&[
        "--add-name",
        "from-myshoes",
        "--script",
        script.to_str().unwrap(),
        "--resource-type",
        "nano",
        "--label",
        "self-hosted",
    ])
    .await;
    let cloud_id = added["add"]["cloud_id"].as_str().unwrap_or_else(|| panic!("{added}")).to_owned();
    fleet.until_ended("from-myshoes").await;
    call(&["--delete", &cloud_id]).await;
    fleet.finish().await;
}
