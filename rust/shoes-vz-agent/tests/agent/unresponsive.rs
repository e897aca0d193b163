//! Guests that no longer answer, and guests that only seem unresponsive.

use std::time::Duration;

use shoes_vz_agent::runners::Runners;
use shoes_vz_model::{bundle::file, guest::RunnerActivity, id::RunnerId};
use shoes_vz_proto::agent::{EndKind, RunnerState};

use crate::{
    fake_vm::FakeVm,
    host::{Host, command, create, until, until_ended},
};

const SHORT: Duration = Duration::from_secs(1);

fn host(limit: Duration) -> Host {
    let mut host = Host::new();
    host.unresponsive_guest_limit = limit;
    host
}

/// A runner that executes a job.
async fn working(host: &Host, runners: &Runners) -> (RunnerId, FakeVm) {
    let id = RunnerId::random();
    assert_eq!(runners.apply(command("c", create(id, "script"))).reason, "");
    until(runners, id, |r| r.setup.as_ref().is_some_and(|s| s.started)).await;
    let vm = host.vms.only();
    vm.runner(RunnerActivity::Running);
    until(runners, id, |r| r.guest_runner_state == RunnerActivity::Running as i32).await;
    (id, vm)
}

async fn finish(runners: &Runners, id: RunnerId, vm: &FakeVm) {
    vm.runner(RunnerActivity::Finished);
    vm.script_exits(0);
    let (_, end) = until_ended(runners, id).await;
    assert_eq!(end.kind(), EndKind::Finished, "{end:?}");
}

#[tokio::test]
async fn pain_06_a_guest_that_hangs_in_its_job_is_removed_with_its_last_status_and_the_consoles_tail() {
    let host = host(SHORT);
    let runners = host.agent().await;
    let (id, vm) = working(&host, &runners).await;
    vm.until_queried(2).await;
    std::fs::write(host.bundle(id).join(file::CONSOLE_LOG), "rcu: INFO: rcu_sched self-detected stall\n")
        .unwrap();
    vm.set_unresponsive(true);
    let (runner, end) = until_ended(&runners, id).await;
    assert_eq!(end.kind(), EndKind::Unresponsive, "{end:?}");
    for word in [
        "stage job",
        "--unresponsive-guest-limit",
        "works on a job",
        "the setup script runs",
        "self-detected stall",
    ] {
        assert!(end.reason.contains(word), "{word:?} is not in {end:?}");
    }
    assert_eq!((runner.state(), &runner.error_message), (RunnerState::Error, &end.reason));
    assert!(vm.has_ended());
    assert_eq!(host.entries(), Vec::<String>::new());
}

#[tokio::test]
async fn fault_22_a_guest_that_answers_again_before_the_limit_goes_on_however_often_it_stalls() {
    let host = host(Duration::from_secs(2));
    let runners = host.agent().await;
    let (id, vm) = working(&host, &runners).await;
    for _ in 0..3 {
        vm.set_unresponsive(true);
        // While the guest is unresponsive, each query waits for the timeout of the one before: eight take 0.8 s.
        vm.until_queried(8).await;
        vm.set_unresponsive(false);
        vm.until_queried(2).await;
    }
    finish(&runners, id, &vm).await;
}

#[tokio::test]
async fn a_paused_vm_is_not_unresponsive() {
    let host = host(SHORT);
    let runners = host.agent().await;
    let (id, vm) = working(&host, &runners).await;
    vm.set_paused(true);
    vm.set_unresponsive(true);
    // There is no event for something that must not happen.
    let failed =
        tokio::time::timeout(2 * SHORT, until(&runners, id, |r| r.state() == RunnerState::Error)).await;
    assert!(failed.is_err(), "{failed:?}");
    vm.set_unresponsive(false);
    vm.set_paused(false);
    vm.until_queried(1).await;
    finish(&runners, id, &vm).await;
}

#[tokio::test]
async fn a_guest_that_answers_without_events_is_not_unresponsive() {
    let host = host(SHORT);
    let runners = host.agent().await;
    let (id, vm) = working(&host, &runners).await;
    // Twice the limit without any event.
    vm.until_queried(80).await;
    finish(&runners, id, &vm).await;
}

#[tokio::test]
async fn a_stalled_event_stream_is_reopened() {
    let host = host(Duration::from_secs(2));
    let runners = host.agent().await;
    let (id, vm) = working(&host, &runners).await;
    vm.stall_events();
    finish(&runners, id, &vm).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_agent_detects_a_guest_that_became_unresponsive_while_no_agent_ran() {
    let host = host(SHORT);
    let first = host.killable_agent();
    let id = RunnerId::random();
    first.apply(command("1", create(id, "script")));
    until(&first.runners, id, |r| r.setup.as_ref().is_some_and(|s| s.started)).await;
    first.kill();
    let vm = host.vms.only();
    vm.set_unresponsive(true);
    vm.close_channel();
    let runners = host.agent().await;
    let (_, end) = until_ended(&runners, id).await;
    assert_eq!(end.kind(), EndKind::Unresponsive, "{end:?}");
    assert!(end.reason.contains("it has not answered this agent once"), "{end:?}");
}
