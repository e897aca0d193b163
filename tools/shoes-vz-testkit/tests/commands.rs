//! The subcommands of the agent on live VMs, and calls through go-plugin.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::PathBuf, process::Stdio};

use nix::sys::signal::Signal;
use shoes_vz_testkit::{
    bins::repository,
    fleet::Fleet,
    go, leftover,
    script::{Job, sleeping},
};

/// Builds a Go program of the conformance module.
async fn go_program(fleet: &Fleet, package: &str) -> PathBuf {
    let program = fleet.path().join("go-program");
    let built = tokio::process::Command::new("go")
        .args(["build", "-o"])
        .arg(&program)
        .arg(package)
        .current_dir(repository().join("tools/shoes-vz-testkit/conformance"))
        .output()
        .await
        .expect("go runs");
    assert!(built.status.success(), "{}", text(&built.stderr));
    program
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn list_and_exec_reach_a_live_vm_and_exec_returns_the_exit_code() {
    let fleet = Fleet::start().await;
    let added = fleet.add("inspected", &sleeping()).await.unwrap();
    let bundle = fleet.only_bundle();
    let id = bundle.file_stem().unwrap().to_str().unwrap();

    let listed = fleet.agent_command("list", &[]).await;
    assert!(listed.status.success());
    assert!(text(&listed.stdout).contains(id) && text(&listed.stdout).contains("inspected"), "{listed:?}");

    let done = fleet.agent_command("exec", &[id, "uname", "-s"]).await;
    assert_eq!((done.status.code(), text(&done.stdout).as_str()), (Some(0), "Linux\n"), "{done:?}");
    let failed = fleet.agent_command("exec", &[id, "sh", "-c", "exit 7"]).await;
    assert_eq!(failed.status.code(), Some(7), "{failed:?}");

    let unknown = fleet.agent_command("exec", &["00000000-0000-4000-8000-000000000000", "true"]).await;
    assert!(!unknown.status.success());
    assert!(text(&unknown.stderr).contains("00000000-0000-4000-8000-000000000000"), "{unknown:?}");
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn the_delete_command_ends_a_vm_that_the_agent_runs() {
    let fleet = Fleet::start().await;
    fleet.add("unwanted", &sleeping()).await.unwrap();
    let bundle = fleet.only_bundle();
    let deleted = fleet.agent_command("delete", &[bundle.file_stem().unwrap().to_str().unwrap()]).await;
    assert!(deleted.status.success(), "{deleted:?}");
    fleet.until_ended("unwanted").await;
    fleet.until_clean().await;
    fleet.finish().await;
}

#[tokio::test]
async fn without_an_agent_commands_stop_start_and_delete_a_vm() {
    let mut fleet = Fleet::start().await;
    fleet.add("by-hand", &sleeping()).await.unwrap();
    let bundle = fleet.only_bundle();
    let id = bundle.file_stem().unwrap().to_str().unwrap().to_owned();
    fleet.end_agent(Signal::SIGKILL).await;

    let stopped = fleet.agent_command("stop", &[&id]).await;
    assert!(stopped.status.success(), "{stopped:?}");
    assert_eq!(leftover::processes(&fleet.runners_path()), Vec::<i32>::new());
    assert!(bundle.is_dir(), "stop keeps the bundle");
    let again = fleet.agent_command("stop", &[&id]).await;
    assert!(!again.status.success(), "a VM that is not running cannot be stopped: {again:?}");

    let started = fleet.agent_command("start", &[&id]).await;
    assert!(started.status.success(), "{started:?}");
    let done = fleet.agent_command("exec", &[&id, "echo", "back"]).await;
    assert_eq!(text(&done.stdout), "back\n", "{done:?}");

    let deleted = fleet.agent_command("delete", &[&id]).await;
    assert!(deleted.status.success(), "{deleted:?}");
    assert!(!bundle.exists());
    fleet.finish().await;
}

#[tokio::test]
async fn a_go_plugin_host_like_myshoes_adds_and_deletes() {
    if go::is_missing("a go-plugin host like myshoes adds and deletes") {
        return;
    }
    let fleet = Fleet::start().await;
    let host = go_program(&fleet, ".").await;
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

#[tokio::test]
async fn fault_23_the_parser_of_prometheus_reads_the_metrics_and_they_count_the_job() {
    if go::is_missing("the parser of Prometheus reads the metrics") {
        return;
    }
    let fleet = Fleet::start().await;
    let parser = go_program(&fleet, "./metrics").await;
    let added = fleet.add("counted", &Job::new("echo counted").setup_script("counted")).await.unwrap();
    fleet.until_ended("counted").await;
    fleet.delete(&added.cloud_id).await.unwrap();

    let metrics = fleet.metrics();
    let mut child = tokio::process::Command::new(&parser)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    tokio::io::AsyncWriteExt::write_all(&mut child.stdin.take().unwrap(), metrics.as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let families: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    for (name, kind, sum) in [
        ("shoesvz_agents_online", "GAUGE", 1.0),
        ("shoesvz_capacity_total_runners", "GAUGE", 2.0),
        ("shoesvz_capacity_available_runners", "GAUGE", 2.0),
        ("shoesvz_add_instance_duration_seconds", "HISTOGRAM", 1.0),
        ("shoesvz_add_instance_requests_total", "COUNTER", 1.0),
        ("shoesvz_delete_instance_requests_total", "COUNTER", 1.0),
        ("shoesvz_runner_startup_duration_seconds", "HISTOGRAM", 1.0),
    ] {
        assert_eq!(families[name]["type"], kind, "{name}: {families:#}");
        assert_eq!(families[name]["sum"], sum, "{name}: {families:#}");
    }
    fleet.finish().await;
}
