//! Agents that are killed at any moment, and how the next agent continues.

use shoes_vz_model::{
    bundle::{RuntimeMetadata, file},
    guest::RunnerActivity,
    id::RunnerId,
};
use shoes_vz_proto::{
    agent::{EndKind, RunnerStage, RunnerState},
    vm::VmEndKind,
};

use crate::host::{Host, TIMEOUT, command, create, until, until_ended, until_logged};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fault_03_a_job_survives_its_agent_and_the_next_one_brings_it_to_its_end() {
    let host = Host::new();
    let first = host.killable_agent();
    let id = RunnerId::random();
    first.apply(command("1", create(id, "script")));
    until(&first.runners, id, |r| r.state() == RunnerState::SshReady).await;
    let vm = host.vms.only();
    vm.until_set_up().await;
    vm.runner(RunnerActivity::Running);
    vm.print("one\n");
    until_logged(&host, id, "one\n").await;
    until(&first.runners, id, |r| r.state() == RunnerState::Running).await;
    first.kill();

    vm.print("two\n");
    let runners = host.agent().await;
    let adopted = until(&runners, id, |r| r.guest_runner_state == RunnerActivity::Running as i32).await;
    assert_eq!(adopted.state(), RunnerState::Running);
    assert_eq!(vm.scripts().len(), 1, "the script is not handed over again");
    vm.print("three\n");
    until_logged(&host, id, "one\ntwo\nthree\n").await;
    vm.runner(RunnerActivity::Finished);
    vm.script_exits(0);
    let (runner, end) = until_ended(&runners, id).await;
    assert_eq!(end.kind(), EndKind::Finished, "{end:?}");
    assert_eq!(runner.stages.len(), 7, "the stages before the restart are kept: {:?}", runner.stages);
    assert_eq!(host.entries(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_that_did_not_see_a_job_reports_with_the_end_that_there_was_one() {
    let host = Host::new();
    let first = host.killable_agent();
    let id = RunnerId::random();
    first.apply(command("1", create(id, "script")));
    until(&first.runners, id, |r| r.state() == RunnerState::SshReady).await;
    let vm = host.vms.only();
    vm.until_set_up().await;
    vm.runner(RunnerActivity::Idle);
    let idle = until(&first.runners, id, |r| r.state() == RunnerState::Running).await;
    assert!(!idle.job_seen, "it had no job yet");
    vm.runner(RunnerActivity::Running);
    until(&first.runners, id, |r| r.job_seen).await;
    first.kill();

    vm.runner(RunnerActivity::Finished);
    vm.script_exits(0);
    let runners = host.agent().await;
    let (runner, end) = until_ended(&runners, id).await;
    assert_eq!(end.kind(), EndKind::Finished, "{end:?}");
    assert!(runner.job_seen, "otherwise the server creates a second VM for it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_boot_survives_its_agent_and_the_next_one_hands_over_the_script() {
    let host = Host::new();
    host.vms.boots.send_replace(false);
    let first = host.killable_agent();
    let id = RunnerId::random();
    first.apply(command("1", create(id, "the script")));
    until(&first.runners, id, |r| r.stage == shoes_vz_proto::agent::RunnerStage::Guest as i32).await;
    first.kill();

    let runners = host.agent().await;
    let vm = host.vms.only();
    vm.boot();
    until(&runners, id, |r| r.setup.as_ref().is_some_and(|s| s.started)).await;
    assert_eq!(vm.scripts(), [(id.to_string(), "the script".into())]);
    runners.apply(command("2", id));
    until_ended(&runners, id).await;
}

#[tokio::test]
async fn fault_03_a_bundle_without_a_vm_is_removed_and_reported_and_a_foreign_directory_is_left_alone() {
    let host = Host::new();
    let dead = |end: Option<&str>, log: bool| {
        let id = RunnerId::random();
        std::fs::create_dir(host.bundle(id)).unwrap();
        let metadata = serde_json::json!({
            "runner_id": id, "created_at": "2026-01-02T03:04:05Z", "updated_at": "2026-01-02T03:04:05Z",
            "state": "running", "runner_name": "name", "cloud_id": "shoes-vz-x", "phase": "ready",
        });
        serde_json::from_value::<RuntimeMetadata>(metadata.clone()).unwrap();
        std::fs::write(host.bundle(id).join(file::METADATA), metadata.to_string()).unwrap();
        if let Some(end) = end {
            std::fs::write(host.bundle(id).join(file::VM_END), end).unwrap();
        }
        if log {
            std::fs::write(host.bundle(id).join(file::VM_LOG), "").unwrap();
        }
        id
    };
    let panicked = dead(Some(r#"{"kind":"guest_panic","reason":"the kernel panicked"}"#), true);
    let vanished = dead(None, true);
    let not_started = dead(None, false);
    std::fs::create_dir(host.runners_path().join("photos")).unwrap();

    let runners = host.agent().await;
    for (id, kind, reason) in [
        (panicked, EndKind::VmDied, "the kernel panicked"),
        (vanished, EndKind::VmDied, "left no reason"),
        (not_started, EndKind::Failed, "before the VM was started"),
    ] {
        let (runner, end) = until_ended(&runners, id).await;
        assert_eq!(end.kind(), kind, "{end:?}");
        assert!(end.reason.contains(reason), "{end:?}");
        assert_eq!(runner.cloud_id, "shoes-vz-x");
    }
    assert_eq!(host.entries(), ["photos"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_is_reported_again_after_a_restart_until_the_server_acknowledges_it() {
    let host = Host::new();
    let first = host.killable_agent();
    let id = RunnerId::random();
    first.apply(command("1", create(id, "script")));
    until(&first.runners, id, |r| r.state() == RunnerState::SshReady).await;
    host.vms.only().end(VmEndKind::HypervisorKilled, "killed by signal 9");
    let (before, _) = until_ended(&first.runners, id).await;
    first.kill();

    let runners = host.agent().await;
    let (again, end) = until_ended(&runners, id).await;
    assert!(end.reason.contains("killed by signal 9"), "{end:?}");
    assert_eq!(again, before);
    runners.acknowledge(&[id]);
    assert_eq!(runners.agent().board.get(id), None);
    let third = host.agent().await;
    assert_eq!(third.agent().board.get(id), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_acknowledged_id_does_not_end_a_live_runner() {
    let host = Host::new();
    let runners = host.agent().await;
    let id = RunnerId::random();
    runners.apply(command("1", create(id, "script")));
    until(&runners, id, |r| r.state() == RunnerState::SshReady).await;
    runners.acknowledge(&[id]);
    assert!(runners.agent().board.get(id).is_some());
    host.vms.only().vanish();
    let (_, end) = until_ended(&runners, id).await;
    assert_eq!(end.kind(), EndKind::VmDied, "{end:?}");
    assert!(end.reason.contains("VM process"), "{end:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_guest_whose_agent_died_is_personalized_by_the_next_one_before_it_is_ready() {
    let host = Host::new();
    host.vms.boots.send_replace(false);
    let first = host.killable_agent();
    let id = RunnerId::random();
    first.apply(command("1", create(id, "script")));
    until(&first.runners, id, |r| r.stage() == RunnerStage::Guest).await;
    first.kill();
    let vm = host.vms.only();
    vm.restored();
    vm.boot();

    let runners = host.agent().await;
    let (_, end) = until_ended(&runners, id).await;
    // The fake guest does not know the request.
    assert!(end.kind() == EndKind::Failed && end.reason.contains("personalizing the guest"), "{end:?}");
    assert!(vm.scripts().is_empty() && vm.has_ended());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_that_was_decided_before_a_restart_stays_as_it_was_decided() {
    let host = Host::new();
    let first = host.killable_agent();
    let id = RunnerId::random();
    first.apply(command("1", create(id, "script")));
    until(&first.runners, id, |r| r.state() == RunnerState::SshReady).await;
    let vm = host.vms.only();
    vm.set_stuck(true);
    first.apply(command("2", id));
    until(&first.runners, id, |r| r.state() == RunnerState::TearingDown).await;
    let ends = &first.runners.agent().ends;
    let kept = async {
        while ends.get(id).is_none() {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, kept).await.expect("the end is kept before the VM is stopped");
    let decided = ends.get(id).unwrap().end.unwrap();
    first.kill();
    vm.set_stuck(false);

    let runners = host.agent().await;
    let (_, end) = until_ended(&runners, id).await;
    assert_eq!(end, decided, "also its stage and its time");
}
