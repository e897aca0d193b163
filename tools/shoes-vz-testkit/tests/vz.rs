//! The whole system with `--hypervisor vz`: every process, and VZCore through the bridge, as on macOS. A stand-in replaces
//! Virtualization.framework; its guests are containers with a real sshd and guest agent.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use shoes_vz_proto::agent::EndKind;
use shoes_vz_testkit::{
    bins::vz_template,
    fleet::{Fleet, Options},
    hot, leftover, scenario,
    script::{Job, plain, sleeping},
};
use shoes_vz_vm::spec::VmSpec;

fn options() -> Options {
    Options {
        template: vz_template(),
        agent_args: ["--hypervisor", "vz"].map(String::from).to_vec(),
        ..Options::default()
    }
}

async fn fleet() -> Fleet {
    Fleet::start_with(options()).await
}

/// The test template with firmware that configures faults of the stand-in; on the volume of the runners, as required.
fn template_with_faults(dir: &Path, faults: &str) -> PathBuf {
    let template = dir.join("t");
    fs::create_dir(&template).unwrap();
    for name in ["Disk.img", "HardwareModel.json", "Template.json", "ssh_key"] {
        fs::copy(vz_template().join(name), template.join(name)).unwrap();
    }
    fs::write(template.join("AuxiliaryStorage"), faults).unwrap();
    template
}

#[tokio::test]
async fn a_job_runs_through_virtualization_framework_and_leaves_nothing() {
    let fleet = fleet().await;
    let job = Job::new("echo the-job-ran-on-$(hostname)");
    let added = fleet.add("vz-1", &job.setup_script("vz-1")).await.unwrap();

    fleet.assert_finishes_with_every_stage("vz-1").await;
    fleet.until_clean().await;
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn fault_26_a_running_vm_is_deleted_and_its_slots_next_vm_has_the_same_address_and_another_identity() {
    let fleet = fleet().await;
    let mut seen = Vec::new();
    for name in ["first", "second"] {
        let added = fleet.add(name, &sleeping()).await.unwrap();
        let bundle = fleet.only_bundle();
        let mac = VmSpec::read(&bundle).unwrap().mac_address.unwrap();
        seen.push((mac, fs::read(bundle.join("MachineIdentifier")).unwrap()));
        fleet.delete(&added.cloud_id).await.unwrap();
        fleet.until_clean().await;
    }
    assert_eq!(seen[0].0, seen[1].0, "one slot, one network address");
    assert_ne!(seen[0].1, seen[1].1, "each VM has another machine identifier");
    fleet.finish().await;
}

#[tokio::test]
async fn fault_16_two_guests_that_boot_together_have_a_channel_each() {
    scenario::two_guests_are_never_confused(options()).await;
}

#[tokio::test]
async fn fault_03_a_killed_agent_does_not_stop_the_job_and_the_next_agent_adopts_it() {
    scenario::a_job_survives_its_agent(options()).await;
}

#[tokio::test]
async fn pain_05_a_killed_vm_process_ends_its_guest_and_is_reported() {
    let fleet = fleet().await;
    let added = fleet.add("shot", &sleeping()).await.unwrap();
    let bundle = fleet.only_bundle();
    let vm = leftover::processes(&fleet.runners_path())
        .into_iter()
        .find(|pid| {
            let args = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            args.split(|b| *b == 0).any(|a| a == b"vm")
        })
        .expect("a VM process");
    kill(Pid::from_raw(vm), Signal::SIGKILL).unwrap();
    let end = fleet.until_ended("shot").await;
    assert_eq!(end.kind(), EndKind::VmDied, "{end:?}");
    assert!(end.reason.contains("signal 9"), "{end:?}");
    fleet.until_clean().await;
    assert!(!bundle.exists());
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn fault_21_a_guest_that_powers_off_is_distinguished_from_a_crash() {
    let fleet = fleet().await;
    let added = fleet.add("off", &plain("poweroff; sleep 600")).await.unwrap();
    let end = fleet.until_ended("off").await;
    assert!(end.kind() == EndKind::VmDied && end.reason.contains("powered"), "{end:?}");
    fleet.until_clean().await;
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn fault_12_deleting_while_the_vm_starts_cancels_it() {
    let dir = tempfile::tempdir().unwrap();
    let template = template_with_faults(dir.path(), r#"{"standin":{"hang":["start"]}}"#);
    scenario::deleting_while_it_boots_cancels_the_creation(Options { template, ..options() }).await;
}

#[tokio::test]
async fn pain_04_an_error_of_the_framework_reaches_the_caller_with_its_code_and_advice() {
    let mut options = options();
    let dir = tempfile::tempdir().unwrap();
    options.template = template_with_faults(dir.path(), r#"{"standin":{"fail":{"start":6}}}"#);
    let fleet = Fleet::start_with(options).await;
    let refused = fleet.add("third", &sleeping()).await.unwrap_err();
    for part in ["VZErrorDomain 6", "two macOS VMs"] {
        assert!(refused.message().contains(part), "{refused:?}");
    }
    fleet.until_clean().await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_template_on_another_volume_is_refused_before_anything_is_made() {
    let mut options = options();
    // /dev/shm is a separate volume on every Linux.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    options.template = template_with_faults(dir.path(), "{}");
    let fleet = Fleet::start_with(options).await;
    let refused = fleet.add("far", &sleeping()).await.unwrap_err();
    assert!(refused.message().contains("volume"), "{refused:?}");
    fleet.until_clean().await;
    fleet.finish().await;
}

#[tokio::test]
async fn macos_is_installed_from_a_restore_image_into_a_complete_template() {
    let dir = tempfile::tempdir().unwrap();
    let ipsw = dir.path().join("image.ipsw");
    // The format of restore images of the stand-in.
    let image = r#"{"build":"25F71","version":"26.5.0","minimumOS":[13,0,0],"minimumCPUs":2,"minimumMemory":4294967296}"#;
    fs::write(&ipsw, image).unwrap();
    let agent = shoes_vz_testkit::bins::Bins::find().path("shoes-vz-agent");
    let run = async |args: &[&str]| {
        let output = tokio::process::Command::new(&agent).arg("template").args(args).output().await.unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap(),
            String::from_utf8(output.stderr).unwrap(),
        )
    };
    let (ipsw, template) = (ipsw.to_str().unwrap(), dir.path().join("macos-26"));
    let output = template.to_str().unwrap();
    let (_, stdout, _) = run(&["restore-image", "--ipsw", ipsw]).await;
    assert!(stdout.contains("macOS 26.5.0 (25F71)"), "{stdout}");

    let install = ["install-macos", "--ipsw", ipsw, "--output", output, "--disk-size", "1GiB"];
    let (done, stdout, stderr) = run(&install).await;
    assert!(done && stderr.contains("installed 100 %"), "{stdout}{stderr}");
    let (complete, stdout, stderr) = run(&["check", output]).await;
    assert!(complete && stdout.contains("macos-26"), "{stdout}{stderr}");

    let (again, _, stderr) = run(&install).await;
    assert!(!again && stderr.contains("there already"), "{stderr}");
    fs::write(ipsw, "PK").unwrap();
    let (damaged, _, stderr) =
        run(&["install-macos", "--ipsw", ipsw, "--output", &format!("{output}2")]).await;
    assert!(!damaged && stderr.contains("VZErrorDomain"), "{stderr}");
}

#[tokio::test]
async fn a_runner_claims_a_hot_vm_and_another_one_replaces_it() {
    hot::a_runner_claims_a_hot_vm_and_another_one_replaces_it(options()).await;
}

#[tokio::test]
async fn clones_of_saved_states_share_nothing() {
    // A Mac runs at most two; containers share the network card.
    hot::clones_of_saved_states_share_nothing(options(), 2, &["mac"]).await;
}

#[tokio::test]
async fn an_unusable_state_costs_a_boot_and_is_replaced() {
    hot::an_unusable_state_costs_a_boot_and_is_replaced(options()).await;
}

#[tokio::test]
async fn hot_vms_outlive_their_agent() {
    hot::hot_vms_outlive_their_agent(options()).await;
}

#[tokio::test]
async fn a_template_of_the_go_implementation_works_unchanged_and_without_an_ssh_key() {
    let dir = tempfile::tempdir().unwrap();
    let (template, home) = (dir.path().join("t"), dir.path().join("home"));
    fs::create_dir(&template).unwrap();
    fs::create_dir_all(home.join(".ssh")).unwrap();
    for name in ["Disk.img", "HardwareModel.json", "AuxiliaryStorage"] {
        fs::copy(vz_template().join(name), template.join(name)).unwrap();
    }
    fs::copy(vz_template().join("ssh_key"), home.join(".ssh/id_ed25519")).unwrap();
    let fleet = Fleet::start_with(Options {
        template,
        agent_args: ["--hypervisor", "vz", "--ip-notify-port", "0"].map(String::from).to_vec(),
        agent_env: vec![("HOME".into(), home.into_os_string()), ("SSH_AUTH_SOCK".into(), "".into())],
        ..Options::default()
    })
    .await;
    assert!(fleet.logs().contains("offering the keys of this user, as ssh does"), "{}", fleet.logs());
    fleet.finish().await;
}
