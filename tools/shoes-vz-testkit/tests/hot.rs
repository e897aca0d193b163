//! Hot VMs and saved states, with real processes and real QEMU guests.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use shoes_vz_model::state::StartPath;
use shoes_vz_testkit::{
    fleet::{Fleet, Options},
    hot, leftover,
    script::sleeping,
    template,
};

fn args(args: &[&str]) -> Options {
    Options { agent_args: args.iter().map(|a| (*a).to_owned()).collect(), ..Options::default() }
}

#[tokio::test]
async fn a_runner_claims_a_hot_vm_and_another_one_replaces_it() {
    hot::a_runner_claims_a_hot_vm_and_another_one_replaces_it(Options::default()).await;
}

#[tokio::test]
async fn eight_clones_of_saved_states_share_nothing() {
    if hot::qemu_cannot_save("clones of saved states share nothing") {
        return;
    }
    hot::clones_of_saved_states_share_nothing(Options::default(), 8, &[]).await;
}

#[tokio::test]
async fn an_unusable_state_costs_a_boot_and_is_replaced() {
    if hot::qemu_cannot_save("an unusable state costs a boot") {
        return;
    }
    hot::an_unusable_state_costs_a_boot_and_is_replaced(Options::default()).await;
}

#[tokio::test]
async fn hot_vms_outlive_their_agent() {
    hot::hot_vms_outlive_their_agent(Options::default()).await;
}

#[tokio::test]
async fn a_state_of_another_memory_size_costs_a_boot() {
    if hot::qemu_cannot_save("a state of another memory size costs a boot") {
        return;
    }
    let dir = tempfile::Builder::new().prefix("svzt").tempdir().unwrap();
    template::linked_copy(dir.path());
    let options = |states: &str| Options {
        max_runners: 1,
        template: dir.path().to_owned(),
        ..args(&["--hot", "none", "--saved-states", states])
    };
    let mut fleet = Fleet::server_only(options("use")).await;
    fleet.warm().await;
    template::edit(dir.path(), |meta| meta["min_memory_bytes"] = (640_u64 << 20).into());
    fleet.start_agent().await;
    let added = fleet.add("larger", &sleeping()).await.unwrap();
    assert_eq!(fleet.until_started("larger").await.1, StartPath::Cold);
    assert!(fleet.logs().contains("kind=\"memory\""), "{}", fleet.logs());
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn a_hot_vm_that_hangs_is_never_handed_over() {
    let mut fleet =
        Fleet::start_with(Options { max_runners: 2, ..args(&["--hot", "1", "--saved-states", "off"]) }).await;
    fleet.until_hot(1).await;
    let hot: Vec<i32> = leftover::processes(&fleet.runners_path());
    for pid in &hot {
        kill(Pid::from_raw(*pid), Signal::SIGSTOP).unwrap();
    }
    let added = fleet.add("not-that-one", &sleeping()).await.unwrap();
    // By the faster path: a cold start, or the next hot VM.
    fleet.until_started("not-that-one").await;
    assert!(fleet.logs().contains("hot VM failed its last check"), "{}", fleet.logs());
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.until_hot(1).await;
    assert!(
        leftover::processes(&fleet.runners_path()).iter().all(|pid| !hot.contains(pid)),
        "it was removed"
    );
    fleet.end_agent_and_hot_vms().await;
    fleet.finish().await;
}

#[tokio::test]
async fn paused_hot_vms_know_the_time_once_they_are_claimed() {
    let mut fleet = Fleet::start_with(Options {
        max_runners: 1,
        ..args(&["--hot", "all", "--hot-idle", "paused", "--saved-states", "off"])
    })
    .await;
    fleet.until_hot(1).await;
    // The guest does not see this time pass.
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    let added = fleet.add("woken", &sleeping()).await.unwrap();
    assert_eq!(fleet.until_started("woken").await.1, StartPath::Hot);
    let before = std::time::SystemTime::now();
    let date = fleet.agent_command("exec", &[&fleet.only_runner_id(), "date", "+%s"]).await;
    let guests: u64 = String::from_utf8(date.stdout).unwrap().trim().parse().unwrap();
    let ours = before.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(guests.abs_diff(ours) <= 1, "the guest has {guests}, the host {ours}");
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.until_hot(1).await;
    fleet.end_agent_and_hot_vms().await;
    fleet.finish().await;
}

/// The QEMU of this host, except that it refuses to save a VM with the error of QEMU 7.2 in Debian 12.
fn qemu_without_file_migration(dir: &Path) {
    let name = format!("qemu-system-{}", std::env::consts::ARCH);
    let path = std::env::var_os("PATH").unwrap();
    let real = std::env::split_paths(&path).map(|dir| dir.join(&name)).find(|path| path.exists()).unwrap();
    let script = format!(
        r#"#!/bin/sh
case "$*" in *"-machine none"*)
    echo '{{"QMP": {{"version": {{"qemu": {{"micro": 22, "minor": 2, "major": 7}}}}, "capabilities": ["oob"]}}}}'
    echo '{{"id": "save", "error": {{"class": "GenericError", "desc": "a valid migration protocol is expected"}}}}'
    exec cat > /dev/null ;;
esac
exec {real:?} "$@"
"#
    );
    fs::write(dir.join(&name), script).unwrap();
    fs::set_permissions(dir.join(&name), fs::Permissions::from_mode(0o755)).unwrap();
}

#[tokio::test]
async fn with_a_qemu_too_old_for_saved_states_guests_boot_and_hot_vms_work_and_the_reason_is_given() {
    let dir = tempfile::Builder::new().prefix("svzq").tempdir().unwrap();
    qemu_without_file_migration(dir.path());
    let options = |states: &str| Options {
        max_runners: 1,
        agent_programs: Some(dir.path().to_owned()),
        ..args(&["--hot", "all", "--saved-states", states])
    };
    let mut fleet = Fleet::server_only(options("auto")).await;
    // An explicit request is refused, with the reason and the remedy.
    let warm = fleet.try_warm().await;
    let error = String::from_utf8_lossy(&warm.stderr).into_owned();
    assert!(!warm.status.success(), "{warm:?}");
    for part in ["no state can be saved on this host", "QEMU 7.2.22", "QEMU 8.2 or newer", "make setup-qemu"]
    {
        assert!(error.contains(part), "{part}: {error}");
    }
    fleet.start_agent().await;
    fleet.until_hot(1).await;
    assert!(fleet.logs().contains("saved states unavailable"), "{}", fleet.logs());
    let added = fleet.add("on-an-old-qemu", &sleeping()).await.unwrap();
    assert_eq!(fleet.until_started("on-an-old-qemu").await.1, StartPath::Hot);
    fleet.delete(&added.cloud_id).await.unwrap();
    assert!(hot::fallbacks(&fleet, "unsupported").await > 0, "the boot is counted\n{}", fleet.logs());
    assert!(!fleet.runners_path().join(".saved-states/slot-0").exists(), "nothing was saved");
    fleet.until_hot(1).await;
    fleet.end_agent_and_hot_vms().await;
    fleet.finish().await;
}

#[tokio::test]
async fn an_agent_that_must_use_saved_states_does_not_start_with_a_qemu_too_old_for_them() {
    let dir = tempfile::Builder::new().prefix("svzq").tempdir().unwrap();
    qemu_without_file_migration(dir.path());
    let mut fleet = Fleet::server_only(Options {
        max_runners: 1,
        agent_programs: Some(dir.path().to_owned()),
        ..args(&["--hot", "none", "--saved-states", "use"])
    })
    .await;
    fleet.spawn_agent();
    let error = fleet.agent_fails_to_start().await;
    assert!(error.contains("ended with"), "{error}");
    assert!(error.contains("--saved-states use:") && error.contains("or use --saved-states auto"), "{error}");
    fleet.finish().await;
}
