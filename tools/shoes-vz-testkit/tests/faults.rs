//! Killed processes, crashing guests, restarting servers: jobs continue, ends have reasons, nothing is left.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use shoes_vz_proto::agent::{EndKind, RunnerEnd};
use shoes_vz_testkit::{
    fleet::{Fleet, Options, TIMEOUT},
    leftover, scenario,
    script::{Job, sleeping},
};

#[tokio::test]
async fn fault_03_a_killed_agent_does_not_stop_the_job_and_the_next_agent_follows_it_to_its_end() {
    scenario::a_job_survives_its_agent(Options::default()).await;
}

#[tokio::test]
async fn fault_03_a_job_that_ends_while_the_agent_is_down_is_found_finished_by_the_next_agent() {
    let mut fleet = Fleet::start().await;
    let job = Job::new("sleep 5; echo done-alone");
    let added = fleet.add("alone", &job.setup_script("alone")).await.unwrap();
    fleet.until_running("alone").await;
    fleet.end_agent(Signal::SIGKILL).await;
    // Longer than the job: what the next agent finds is a finished runner.
    tokio::time::sleep(std::time::Duration::from_secs(8)).await;
    fleet.start_agent().await;
    let end = fleet.until_ended("alone").await;
    assert_eq!(end.kind(), EndKind::Finished, "{end:?}");
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn fault_01_two_jobs_run_on_while_the_server_is_killed_and_both_finish() {
    let mut fleet = Fleet::start().await;
    let job = Job::new("until [ -e /tmp/go ]; do sleep 0.1; done; echo done");
    let scripts = ["one", "two"].map(|name| job.setup_script(name));
    let (one, two) = tokio::join!(fleet.add("one", &scripts[0]), fleet.add("two", &scripts[1]));
    let (one, two) = (one.unwrap(), two.unwrap());
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        ids.push(fleet.until_running(name).await.runner.unwrap().runner_id);
    }
    let vms = leftover::processes(&fleet.runners_path());
    fleet.end_server(Signal::SIGKILL).await;
    // One job ends while the server is down, the other one later.
    release(&fleet, &ids[0]).await;
    fleet.start_server().await;
    assert_eq!(fleet.until_ended("one").await.kind(), EndKind::Finished);
    let still = leftover::processes(&fleet.runners_path());
    assert!(!still.is_empty() && still.iter().all(|pid| vms.contains(pid)), "{still:?} of {vms:?}");
    fleet.until_running("two").await;
    release(&fleet, &ids[1]).await;
    assert_eq!(fleet.until_ended("two").await.kind(), EndKind::Finished);
    fleet.until_clean().await;
    for added in [one, two] {
        fleet.delete(&added.cloud_id).await.unwrap();
    }
    fleet.finish().await;
}

/// Releases a job that waits for `/tmp/go`.
async fn release(fleet: &Fleet, runner_id: &str) {
    let touched = fleet.agent_command("exec", &[runner_id, "touch", "/tmp/go"]).await;
    assert!(touched.status.success(), "{touched:?}");
}

#[tokio::test]
async fn fault_01_a_server_killed_during_a_job_knows_the_runner_after_its_restart_and_deletes_it() {
    let mut fleet = Fleet::start().await;
    let job = Job::new("sleep 600");
    let added = fleet.add("steady", &job.setup_script("steady")).await.unwrap();
    fleet.until_running("steady").await;
    fleet.end_server(Signal::SIGKILL).await;
    fleet.start_server().await;
    fleet.until_running("steady").await;
    let again = fleet.add("steady", &job.setup_script("steady")).await.unwrap();
    assert_eq!(again.cloud_id, added.cloud_id);
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn fault_02_an_agent_without_a_server_logs_it_once_and_recovers() {
    let mut fleet = Fleet::server_only(Options::default()).await;
    fleet.end_server(Signal::SIGTERM).await;
    fleet.spawn_agent();
    let logged = async {
        while !fleet.logs().contains("unreachable") {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, logged).await.expect("the agent logs that the server is unreachable");
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(fleet.logs().matches("unreachable").count(), 1, "{}", fleet.logs());
    fleet.start_server().await;
    fleet.agent_ready().await;
    let added = fleet.add("late", &sleeping()).await.unwrap();
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.finish().await;
}

/// Runs `action`, which ends the only VM; returns the end that the server reports.
async fn end_after(name: &str, action: impl AsyncFnOnce(&Fleet)) -> RunnerEnd {
    end_in(Options::default(), name, action).await
}

async fn end_in(options: Options, name: &str, action: impl AsyncFnOnce(&Fleet)) -> RunnerEnd {
    let fleet = Fleet::start_with(options).await;
    let added = fleet.add(name, &sleeping()).await.unwrap();
    action(&fleet).await;
    let end = fleet.until_ended(name).await;
    fleet.until_clean().await;
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.finish().await;
    end
}

#[tokio::test]
async fn fault_21_a_killed_hypervisor_is_recognized() {
    let end = end_after("shot", async |fleet| kill(qemu_of(fleet), Signal::SIGKILL).unwrap()).await;
    assert_eq!(end.kind(), EndKind::VmDied, "{end:?}");
    assert!(end.reason.contains("signal 9") || end.reason.contains("SIGKILL"), "{end:?}");
}

#[tokio::test]
async fn pain_05_a_killed_vm_process_takes_its_hypervisor_with_it_and_is_recognized() {
    let end = end_after("orphaned", async |fleet| {
        let qemu = qemu_of(fleet);
        let vm: Vec<_> =
            leftover::processes(&fleet.runners_path()).into_iter().filter(|p| *p != qemu.as_raw()).collect();
        assert_eq!(vm.len(), 1, "{vm:?}");
        kill(Pid::from_raw(vm[0]), Signal::SIGKILL).unwrap();
    })
    .await;
    assert_eq!(end.kind(), EndKind::VmDied, "{end:?}");
    assert!(end.reason.contains("VM process"), "{end:?}");
}

#[tokio::test]
async fn fault_21_a_guest_that_powers_off_is_recognized() {
    let end = end_after("tired", async |fleet| guest_init(fleet, "poweroff").await).await;
    assert_eq!(end.kind(), EndKind::VmDied, "{end:?}");
    assert!(end.reason.contains("powered itself off"), "{end:?}");
}

#[tokio::test]
async fn fault_21_a_guest_that_reboots_is_recognized() {
    let end = end_after("restless", async |fleet| guest_init(fleet, "reboot").await).await;
    assert_eq!(end.kind(), EndKind::VmDied, "{end:?}");
    assert!(end.reason.contains("reset") || end.reason.contains("reboot"), "{end:?}");
}

#[tokio::test]
async fn fault_21_a_guest_whose_kernel_panics_is_recognized() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("t");
    shoes_vz_testkit::template::linked_copy(&template);
    shoes_vz_testkit::template::edit(&template, |metadata| {
        let line = metadata["kernel_cmdline"].as_str().unwrap_or_default();
        metadata["kernel_cmdline"] = format!("{line} shoesvz.test=1").into();
    });
    let options = Options { template, ..Options::default() };
    let end = end_in(options, "panicking", async |fleet| guest_init(fleet, "panic").await).await;
    assert_eq!(end.kind(), EndKind::VmDied, "{end:?}");
    assert!(end.reason.contains("panic"), "{end:?}");
}

fn qemu_of(fleet: &Fleet) -> Pid {
    let pids: Vec<_> = leftover::processes(&fleet.runners_path())
        .into_iter()
        .filter(|pid| {
            std::fs::read_to_string(format!("/proc/{pid}/comm"))
                .is_ok_and(|comm| comm.starts_with("qemu-system"))
        })
        .collect();
    assert_eq!(pids.len(), 1, "{pids:?}");
    Pid::from_raw(pids[0])
}

/// Asks the init process of the guest to end the guest.
async fn guest_init(fleet: &Fleet, action: &str) {
    let (id, command) = (fleet.only_runner_id(), format!("echo {action} > /run/guest-init"));
    // The guest may end before the command returns, so its result means nothing.
    let _ = fleet.agent_command("exec", &[&id, "sh", "-c", &command]).await;
}

#[tokio::test]
async fn a_job_ends_and_frees_its_slot_although_the_reader_of_the_agents_log_has_ended() {
    let mut fleet = Fleet::server_only(Options { max_runners: 1, ..Options::default() }).await;
    let (reading, writing) = std::io::pipe().unwrap();
    let mut reader = tokio::process::Command::new("cat")
        .stdin(reading)
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    fleet.spawn_agent_into(writing.into());
    fleet.agent_ready().await;
    let pid = fleet.agent_pid();
    let job = Job::new("until [ -e /tmp/go ]; do sleep 0.1; done; echo done");
    let added = fleet.add("piped", &job.setup_script("piped")).await.unwrap();
    let id = fleet.until_running("piped").await.runner.unwrap().runner_id;
    reader.kill().await.unwrap();
    release(&fleet, &id).await;
    let end = fleet.until_ended("piped").await;
    assert_eq!(end.kind(), EndKind::Finished, "{end:?}");
    fleet.until_clean().await;
    assert_eq!(fleet.agent_pid(), pid, "the agent was not restarted");
    fleet.delete(&added.cloud_id).await.unwrap();
    // The only slot is free.
    let next = fleet.add("next", &sleeping()).await.unwrap();
    fleet.delete(&next.cloud_id).await.unwrap();
    fleet.finish().await;
}
