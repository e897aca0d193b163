//! Guests that answer nothing any more, and those that only seem not to.

use std::time::Duration;

use shoes_vz_agent::runners::Runners;
use shoes_vz_model::{bundle::file, guest::RunnerActivity, id::RunnerId};
use shoes_vz_proto::agent::{EndKind, RunnerState};

use crate::{
    fake_vm::FakeVm,
    host::{Host, command, create, until, until_gone},
};

const SHORT: Duration = Duration::from_secs(1);

fn host(limit: Duration) -> Host {
    let mut host = Host::new();
    host.unresponsive_guest_limit = limit;
    host
}

/// A runner that works on a job.
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
    let (_, end) = until_gone(runners, id).await;
    assert_eq!(end.kind(), EndKind::Finished, "{end:?}");
}

#[tokio::test]
async fn pain_06_a_guest_that_hangs_in_its_job_is_removed_with_what_it_last_said_and_the_consoles_tail() {
    let host = host(SHORT);
    let runners = host.agent().await;
    let (id, vm) = working(&host, &runners).await;
    vm.until_asked(2).await;
    std::fs::write(host.bundle(id).join(file::CONSOLE_LOG), "rcu: INFO: rcu_sched self-detected stall\n")
        .unwrap();
    vm.silent(true);
    let (runner, end) = until_gone(&runners, id).await;
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
    assert!(vm.is_over());
    assert_eq!(host.entries(), Vec::<String>::new());
}

#[tokio::test]
async fn fault_22_a_guest_that_answers_again_before_the_limit_goes_on_however_often_it_stalls() {
    let host = host(Duration::from_secs(2));
    let runners = host.agent().await;
    let (id, vm) = working(&host, &runners).await;
    for _ in 0..3 {
        vm.silent(true);
        // In silence, each question is asked only once the one before it is given up: eight take 0.8 s.
        vm.until_asked(8).await;
        vm.silent(false);
        vm.until_asked(2).await;
    }
    finish(&runners, id, &vm).await;
}

#[tokio::test]
async fn a_paused_vm_is_not_silent() {
    let host = host(SHORT);
    let runners = host.agent().await;
    let (id, vm) = working(&host, &runners).await;
    vm.paused(true);
    vm.silent(true);
    // For what must not happen there is no event to wait for.
    let gone =
        tokio::time::timeout(2 * SHORT, until(&runners, id, |r| r.state() == RunnerState::Error)).await;
    assert!(gone.is_err(), "{gone:?}");
    vm.silent(false);
    vm.paused(false);
    vm.until_asked(1).await;
    finish(&runners, id, &vm).await;
}

#[tokio::test]
async fn a_quiet_guest_that_answers_is_not_silent() {
    let host = host(SHORT);
    let runners = host.agent().await;
    let (id, vm) = working(&host, &runners).await;
    // The limit twice over, and not one event.
    vm.until_asked(80).await;
    finish(&runners, id, &vm).await;
}

#[tokio::test]
async fn events_that_stay_open_and_tell_nothing_are_asked_for_anew() {
    let host = host(Duration::from_secs(2));
    let runners = host.agent().await;
    let (id, vm) = working(&host, &runners).await;
    vm.events_get_stuck();
    finish(&runners, id, &vm).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_guest_that_went_silent_while_no_agent_was_there_is_found_out_by_the_next_one() {
    let host = host(SHORT);
    let first = host.mortal_agent();
    let id = RunnerId::random();
    first.apply(command("1", create(id, "script")));
    until(&first.runners, id, |r| r.setup.as_ref().is_some_and(|s| s.started)).await;
    first.kill();
    let vm = host.vms.only();
    vm.silent(true);
    vm.hangs_up();
    let runners = host.agent().await;
    let (_, end) = until_gone(&runners, id).await;
    assert_eq!(end.kind(), EndKind::Unresponsive, "{end:?}");
    assert!(end.reason.contains("said nothing since this agent follows it"), "{end:?}");
}
