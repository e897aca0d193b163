//! The life cycle of one runner, and every way in which it ends.

use std::{sync::atomic::Ordering, time::Duration};

use shoes_vz_agent::runners::Runners;
use shoes_vz_model::{bundle::file, guest::RunnerActivity, id::RunnerId};
use shoes_vz_proto::{
    agent::{EndKind, Runner, RunnerState},
    vm::VmEndKind,
};

use crate::{
    fake_vm::FakeVm,
    host::{Host, MIN_FREE_DISK, command, create, until, until_ended, until_logged},
};

const SCRIPT: &str = "#!/bin/bash\necho a secret token\n";

async fn until_state(runners: &Runners, id: RunnerId, state: RunnerState) -> Runner {
    until(runners, id, |r| r.state() == state).await
}

/// A runner whose guest has the setup script.
async fn set_up(host: &Host, runners: &Runners) -> (RunnerId, FakeVm) {
    let id = RunnerId::random();
    assert_eq!(runners.apply(command("c", create(id, SCRIPT))).reason, "");
    until_state(runners, id, RunnerState::SshReady).await;
    let vm = host.vms.only();
    vm.until_set_up().await;
    until(runners, id, |r| r.setup.as_ref().is_some_and(|s| s.started)).await;
    (id, vm)
}

fn stages(runner: &Runner) -> Vec<&'static str> {
    runner
        .stages
        .iter()
        .map(|s| shoes_vz_proto::convert::stage_from_wire(s.stage).unwrap().as_str())
        .collect()
}

#[tokio::test]
async fn fault_21_a_runner_goes_from_command_to_finished_through_every_stage_and_leaves_nothing() {
    let host = Host::new();
    let runners = host.agent().await;
    let (id, vm) = set_up(&host, &runners).await;
    assert_eq!(vm.scripts(), [(id.to_string(), SCRIPT.into())]);
    for entry in std::fs::read_dir(host.bundle(id)).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&bytes).contains("a secret token"), "the script is in {path:?}");
    }
    vm.runner(RunnerActivity::Idle);
    until_state(&runners, id, RunnerState::Running).await;
    vm.runner(RunnerActivity::Running);
    vm.print("working\n");
    until(&runners, id, |r| r.guest_runner_state == RunnerActivity::Running as i32).await;
    vm.runner(RunnerActivity::Finished);
    vm.script_exits(0);
    let (runner, end) = until_ended(&runners, id).await;
    assert_eq!(end.kind(), EndKind::Finished, "{end:?}");
    assert_eq!(stages(&runner), ["clone", "start", "guest", "ssh", "setup", "job", "teardown"]);
    assert!(vm.has_ended());
    assert_eq!(host.entries(), Vec::<String>::new());
    // Both slots are free again.
    for n in 0..2 {
        assert_eq!(runners.apply(command(&format!("again-{n}"), create(RunnerId::random(), ""))).reason, "");
    }
}

#[tokio::test]
async fn fault_12_a_delete_overtakes_a_guest_that_never_comes_up() {
    let host = Host::new();
    host.vms.boots.send_replace(false);
    let runners = host.agent().await;
    let id = RunnerId::random();
    runners.apply(command("1", create(id, SCRIPT)));
    until_state(&runners, id, RunnerState::Booting).await;
    assert_eq!(runners.apply(command("2", id)).reason, "");
    let (_, end) = until_ended(&runners, id).await;
    assert_eq!(end.kind(), EndKind::Deleted, "{end:?}");
    assert_eq!(host.entries(), Vec::<String>::new());
}

#[tokio::test]
async fn fault_12_a_delete_while_the_vm_process_starts_leaves_no_vm() {
    let host = Host::new();
    host.vms.launches.forget_permits(usize::MAX);
    let runners = host.agent().await;
    let id = RunnerId::random();
    runners.apply(command("1", create(id, SCRIPT)));
    until_state(&runners, id, RunnerState::Booting).await;
    runners.apply(command("2", id));
    until_state(&runners, id, RunnerState::TearingDown).await;
    host.vms.launches.add_permits(1);
    let (_, end) = until_ended(&runners, id).await;
    assert_eq!(end.kind(), EndKind::Deleted, "{end:?}");
    assert!(host.vms.only().has_ended(), "a VM that started after the delete is ended");
    assert_eq!(host.entries(), Vec::<String>::new());
}

#[tokio::test]
async fn fault_07_a_vm_whose_stop_hangs_does_not_delay_the_other_slot() {
    let host = Host::new();
    let runners = host.agent().await;
    let (hung, vm) = set_up(&host, &runners).await;
    vm.set_stuck(true);
    assert_eq!(runners.apply(command("delete-hung", hung)).reason, "");
    until_state(&runners, hung, RunnerState::TearingDown).await;
    let other = RunnerId::random();
    assert_eq!(runners.apply(command("create", create(other, SCRIPT))).reason, "");
    until_state(&runners, other, RunnerState::SshReady).await;
    assert_eq!(runners.apply(command("delete", other)).reason, "");
    let (_, end) = until_ended(&runners, other).await;
    assert_eq!(end.kind(), EndKind::Deleted, "{end:?}");
    let waiting = runners.agent().board.get(hung).unwrap();
    assert_eq!((waiting.state(), waiting.end), (RunnerState::TearingDown, None), "its VM still stops");
    vm.set_stuck(false);
    let (_, end) = until_ended(&runners, hung).await;
    assert_eq!(end.kind(), EndKind::Deleted, "{end:?}");
    assert_eq!(host.entries(), Vec::<String>::new());
}

#[tokio::test]
async fn pain_03_a_guest_that_never_has_an_address_gets_its_script_and_runs() {
    let host = Host::new();
    let runners = host.agent().await;
    let (id, vm) = set_up(&host, &runners).await;
    vm.runner(RunnerActivity::Running);
    let runner = until_state(&runners, id, RunnerState::Running).await;
    assert_eq!((runner.ip_address.as_str(), vm.scripts().len()), ("", 1));
    assert!(runners.agent().host.notices.is_none(), "no listener waits for an address");
}

#[tokio::test]
async fn fault_24_what_the_setup_script_prints_is_on_the_host_while_it_still_runs() {
    let host = Host::new();
    let runners = host.agent().await;
    let (id, vm) = set_up(&host, &runners).await;
    for (print, whole) in [("one\n", "one\n"), ("two\n", "one\ntwo\n")] {
        vm.print(print);
        until_logged(&host, id, whole).await;
    }
    assert!(!runners.agent().board.get(id).unwrap().setup.unwrap().exited);
}

#[tokio::test]
async fn fault_22_a_guest_that_is_not_ready_in_time_fails_with_its_stage_and_the_consoles_last_lines() {
    let mut host = Host::new();
    host.start_deadline = Duration::from_millis(300);
    host.vms.boots.send_replace(false);
    host.vms.launches.forget_permits(usize::MAX);
    let runners = host.agent().await;
    let id = RunnerId::random();
    runners.apply(command("1", create(id, SCRIPT)));
    until_state(&runners, id, RunnerState::Booting).await;
    std::fs::write(host.bundle(id).join(file::CONSOLE_LOG), "Kernel panic - not syncing\n").unwrap();
    host.vms.launches.add_permits(1);
    let (runner, end) = until_ended(&runners, id).await;
    assert_eq!(end.kind(), EndKind::Failed, "{end:?}");
    for word in ["start deadline of 300 ms", "stage guest", "Kernel panic - not syncing"] {
        assert!(end.reason.contains(word), "{word:?} is not in {end:?}");
    }
    assert_eq!(runner.error_message, end.reason);
    assert_eq!(host.entries(), Vec::<String>::new());
}

#[tokio::test]
async fn fault_18_a_guest_with_another_host_key_fails_at_once_and_gets_no_script() {
    let mut host = Host::new();
    host.vms.host_key = 9;
    let runners = host.agent().await;
    let id = RunnerId::random();
    runners.apply(command("1", create(id, SCRIPT)));
    let (_, end) = until_ended(&runners, id).await;
    assert_eq!(end.kind(), EndKind::Failed, "{end:?}");
    assert!(end.reason.contains("host key"), "{end:?}");
    assert_eq!(host.vms.only().scripts(), []);
}

#[tokio::test]
async fn fault_22_a_script_that_fails_ends_with_its_code_and_its_last_fifty_lines() {
    let host = Host::new();
    let runners = host.agent().await;
    let (id, vm) = set_up(&host, &runners).await;
    vm.print(&(1..=200).map(|n| format!("line-{n}\n")).collect::<String>());
    vm.script_exits(3);
    let (runner, end) = until_ended(&runners, id).await;
    assert_eq!(end.kind(), EndKind::Failed, "{end:?}");
    assert_eq!(end.reason, "setup script exited with code 3; last line: \"line-200\"");
    let setup = runner.setup.unwrap();
    let lines: Vec<_> = setup.log_tail.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[49]), (50, "line-151", "line-200"));
    assert_eq!((setup.exited, setup.exit_code), (true, 3));
}

#[tokio::test]
async fn pain_06_a_script_that_starts_no_runner_expires_after_the_registration_deadline() {
    let mut host = Host::new();
    host.registration_deadline = Duration::from_millis(100);
    host.max_runners = 1;
    let runners = host.agent().await;
    let (id, vm) = set_up(&host, &runners).await;
    vm.script_exits(0);
    let (_, end) = until_ended(&runners, id).await;
    assert_eq!(end.kind(), EndKind::Expired, "{end:?}");
    assert!(end.reason.contains("--registration-deadline"), "{end:?}");
    assert!(vm.has_ended());
    assert_eq!(host.entries(), Vec::<String>::new());
    assert_eq!(runners.apply(command("next", create(RunnerId::random(), ""))).reason, "", "the slot is free");
}

#[tokio::test]
async fn fault_21_a_vm_that_outlives_its_time_expires_even_in_the_middle_of_a_job() {
    let mut host = Host::new();
    host.max_runners = 1;
    let runners = host.agent().await;
    let id = RunnerId::random();
    runners.apply(command(
        "1",
        shoes_vz_proto::agent::CreateRunnerCommand { max_lifetime_seconds: 1, ..create(id, SCRIPT) },
    ));
    until_state(&runners, id, RunnerState::SshReady).await;
    let vm = host.vms.only();
    vm.runner(RunnerActivity::Running);
    let (_, end) = until_ended(&runners, id).await;
    assert_eq!(end.kind(), EndKind::Expired, "{end:?}");
    assert!(end.reason.contains("maximum lifetime of 1.0 s"), "{end:?}");
    assert!(vm.has_ended());
    assert_eq!(host.entries(), Vec::<String>::new());
    assert_eq!(runners.apply(command("next", create(RunnerId::random(), ""))).reason, "", "the slot is free");
}

#[tokio::test]
async fn fault_21_a_runner_whose_vm_dies_ends_with_the_reason_of_the_vm() {
    let host = Host::new();
    let runners = host.agent().await;
    let (id, vm) = set_up(&host, &runners).await;
    vm.end(VmEndKind::GuestPanic, "the guest's kernel panicked");
    let (runner, end) = until_ended(&runners, id).await;
    assert_eq!(end.kind(), EndKind::VmDied, "{end:?}");
    assert!(end.reason.contains("the guest's kernel panicked"), "{end:?}");
    assert_eq!(runner.state(), RunnerState::Error);
    assert_eq!(host.entries(), Vec::<String>::new());
}

#[tokio::test]
async fn a_vm_that_the_operator_ended_is_reported_as_deleted() {
    let host = Host::new();
    let runners = host.agent().await;
    let (id, vm) = set_up(&host, &runners).await;
    // As `shoes-vz-agent delete` does: end the VM, remove the bundle.
    vm.end(VmEndKind::Requested, "stopped as asked");
    shoes_vz_vm::clone::remove_bundle(&host.bundle(id)).unwrap();
    let (_, end) = until_ended(&runners, id).await;
    assert_eq!(end.kind(), EndKind::Deleted, "{end:?}");
    assert_eq!(host.entries(), Vec::<String>::new());
}

#[tokio::test]
async fn pain_07_a_failed_clone_leaves_nothing_and_frees_its_slot() {
    let mut host = Host::new();
    host.max_runners = 1;
    let runners = host.agent().await;
    std::fs::remove_file(host.dir.path().join("t/Disk.img")).unwrap();
    let id = RunnerId::random();
    runners.apply(command("1", create(id, SCRIPT)));
    let (_, end) = until_ended(&runners, id).await;
    assert_eq!(end.kind(), EndKind::Failed, "{end:?}");
    assert!(end.reason.contains("Disk.img"), "{end:?}");
    assert_eq!(host.entries(), Vec::<String>::new());
    assert_eq!(runners.apply(command("2", create(RunnerId::random(), SCRIPT))).reason, "");
}

#[tokio::test]
async fn fault_10_a_command_sent_twice_is_applied_once_and_a_full_host_refuses() {
    let mut host = Host::new();
    host.max_runners = 1;
    let runners = host.agent().await;
    let id = RunnerId::random();
    let first = command("1", create(id, SCRIPT));
    for _ in 0..2 {
        assert_eq!(runners.apply(first.clone()).reason, "");
    }
    assert_eq!(runners.apply(command("another-id", create(id, SCRIPT))).reason, "");
    until_state(&runners, id, RunnerState::SshReady).await;
    assert_eq!(host.vms.all().len(), 1);
    let one_too_many = command("2", create(RunnerId::random(), SCRIPT));
    let refused = runners.apply(one_too_many.clone());
    assert!(refused.reason.contains("all 1 slots"), "{refused:?}");
    runners.apply(command("3", id));
    until_ended(&runners, id).await;
    assert_eq!(runners.apply(one_too_many), refused, "the same command has the same result");
}

#[tokio::test]
async fn an_invalid_command_is_refused_with_the_reason() {
    let host = Host::new();
    let runners = host.agent().await;
    let bad = |change: fn(&mut shoes_vz_proto::agent::CreateRunnerCommand)| {
        let mut bad = create(RunnerId::random(), SCRIPT);
        change(&mut bad);
        runners.apply(command("", bad)).reason
    };
    assert!(bad(|c| c.runner_id = "../../etc".into()).contains("../../etc"));
    assert!(bad(|c| c.runner_name.clear()).contains("runner name"));
    assert!(bad(|c| c.template = "other".into()).contains("\"other\""));
    assert_eq!(host.entries(), Vec::<String>::new());
}

#[tokio::test]
async fn a_host_short_of_disk_refuses_a_runner_with_the_reason_until_there_is_space_again() {
    let host = Host::new();
    let runners = host.agent().await;
    host.free_disk.store(MIN_FREE_DISK - 1, Ordering::Relaxed);
    let id = RunnerId::random();
    let refused = runners.apply(command("1", create(id, SCRIPT)));
    assert!(refused.try_elsewhere && refused.reason.contains("--min-free-disk"), "{refused:?}");
    assert!(refused.reason.contains(host.runners_path().to_str().unwrap()), "{refused:?}");
    assert_eq!(host.entries(), Vec::<String>::new());
    assert_eq!(runners.agent().board.get(id), None);

    host.free_disk.store(MIN_FREE_DISK * 2, Ordering::Relaxed);
    assert_eq!(
        runners.apply(command("1", create(id, SCRIPT))).reason,
        "",
        "the same command may be sent again"
    );
    until_state(&runners, id, RunnerState::SshReady).await;
    host.free_disk.store(0, Ordering::Relaxed);
    assert_eq!(
        runners.apply(command("1", create(id, SCRIPT))).reason,
        "",
        "a runner that exists already needs no further space"
    );
}

#[tokio::test]
async fn control_sequences_that_a_guest_prints_do_not_reach_a_terminal() {
    let host = Host::new();
    let runners = host.agent().await;
    let (id, vm) = set_up(&host, &runners).await;
    vm.print("fetching\r\n\u{1b}]0;owned\u{7}\u{1b}[31mcurl: \u{1b}[1mnot found\u{1b}[0m\u{8}\n\n");
    vm.script_exits(1);
    let (runner, end) = until_ended(&runners, id).await;
    assert_eq!(end.reason, "setup script exited with code 1; last line: \"curl: not found\"");
    assert_eq!(runner.error_message, end.reason);
    assert_eq!(runner.setup.unwrap().log_tail.trim_end(), "fetching\ncurl: not found");
}
