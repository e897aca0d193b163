//! The way of a job, on real guests: from AddInstance to an empty host.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use shoes_vz_proto::{
    agent::{GuestRunnerState, RunnerStage},
    fleet::{DeleteInstanceRequest, RunnerView},
};
use shoes_vz_testkit::{
    fleet::{Fleet, Options},
    scenario,
    script::{Job, held, plain},
    template::{edit, linked_copy},
};

#[tokio::test]
async fn a_job_runs_on_a_vm_of_its_own_which_is_gone_afterwards() {
    let fleet = Fleet::start().await;
    let job = Job::new("echo the-job-ran-on-$(uname -s)");
    let added = fleet.add("job-1", &job.setup_script("job-1")).await.unwrap();
    assert!(added.cloud_id.starts_with("shoes-vz-"), "{added:?}");
    assert_eq!(added.shoes_type, "shoes-vz");

    fleet.finishes_measured("job-1").await;
    fleet.until_clean().await;

    // myshoes asks minutes later, and again: both succeed on the tombstone.
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn the_script_myshoes_sends_runs_to_its_end_with_the_templates_hooks_around_the_job() {
    let fleet = Fleet::start().await;
    // The job makes the hook after it wait twice: until this test has reached it, and until it has looked.
    let job = Job::new(concat!(
        "echo the-job >> /tmp/job-hooks.log; ",
        "echo 'read -r _ < /tmp/reached; read -r _ < /tmp/leave' ",
        "| sudo tee -a /myshoes-actions-runner-hook-job-completed.sh"
    ));
    // It gets no job until this test lets it have one.
    let job = job.with("--idle-seconds", "3600");
    fleet.add("myshoes-1", &job.setup_script("myshoes-1")).await.unwrap();
    let in_state = async |state: GuestRunnerState| {
        let there = |v: &RunnerView| {
            v.runner.as_ref().is_some_and(|r| r.end.is_some() || r.guest_runner_state() == state)
        };
        let runner = fleet.until("myshoes-1", there).await.runner.unwrap();
        assert_eq!(runner.guest_runner_state(), state, "{:?}", runner.end);
    };
    let id = fleet.only_runner_id();
    let in_guest = async |command: &str| {
        let done = fleet.agent_command("exec", &[&id, "bash", "-c", command]).await;
        assert!(done.status.success(), "{command}: {done:?}");
        String::from_utf8(done.stdout).unwrap()
    };

    in_state(GuestRunnerState::Idle).await;
    let registered = in_guest("cat /tmp/runner/.runner").await;
    let registered: serde_json::Value =
        serde_json::from_str(registered.trim_start_matches('\u{feff}')).unwrap();
    assert_eq!(registered["agentName"], "myshoes-1", "{registered}");
    assert_eq!(registered["ephemeral"], true, "{registered}");
    let moved = in_guest("ls /usr/local/etc; pgrep -fa RunnerService.js").await;
    assert!(!moved.contains("runner-v"), "the ready-made runner is moved, not copied: {moved}");
    assert!(moved.contains("./externals/node20/bin/node ./bin/RunnerService.js"), "{moved}");

    in_guest("mkfifo /tmp/reached /tmp/leave; pkill -fx 'sleep 3600'").await;
    in_state(GuestRunnerState::Running).await;
    let hooks = in_guest("echo > /tmp/reached; cat /tmp/job-hooks.log").await;
    assert_eq!(hooks, "hook: the job has started\nthe-job\nhook: the job has completed\n");
    in_guest("echo > /tmp/leave").await;
    fleet.finishes_measured("myshoes-1").await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_version_the_template_does_not_hold_is_named_and_nothing_is_downloaded() {
    let fleet = Fleet::start().await;
    let job = Job::new("true").with("--version", "v2.998.0");
    fleet.add("other-version", &job.setup_script("other-version")).await.unwrap();
    let end = fleet.until_ended("other-version").await;
    assert!(end.reason.contains("neither /usr/local/etc/runner-v2.998.0 nor"), "{end:?}");
    fleet.finish().await;
}

#[tokio::test]
async fn a_retry_with_the_same_name_gets_the_same_vm_even_while_it_boots() {
    let fleet = Fleet::start().await;
    let script = held();
    let (first, second) = tokio::join!(fleet.add("same", &script), fleet.add("same", &script));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.cloud_id, second.cloud_id);
    let third = fleet.add("same", &script).await.unwrap();
    assert_eq!(first.cloud_id, third.cloud_id);
    assert_eq!(fleet.runners().await.len(), 1);
    assert_eq!(shoes_vz_testkit::leftover::of(&fleet.runners_path()).bundles, 1);

    fleet.delete(&first.cloud_id).await.unwrap();
    let again = fleet.add("same", &script).await.unwrap();
    assert_ne!(first.cloud_id, again.cloud_id, "after its deletion the name is free for a new VM");
    fleet.delete(&again.cloud_id).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn fault_16_two_guests_that_boot_together_are_never_taken_for_each_other() {
    scenario::two_guests_are_never_taken_for_each_other(Options::default()).await;
}

#[tokio::test]
async fn fault_28_a_request_beyond_the_slots_waits_and_is_served_when_one_is_free() {
    let fleet = Fleet::start_with(Options { max_runners: 1, ..Options::default() }).await;
    let first = fleet.add("first", &held()).await.unwrap();
    let script = held();
    let mut second = Box::pin(fleet.add("second", &script));
    let pending = fleet.until("second", |v| !v.pending_reason.is_empty());
    let view = tokio::select! {
        view = pending => view,
        early = &mut second => panic!("there was no slot, and yet: {early:?}"),
    };
    assert_eq!(view.runner.unwrap().stage(), RunnerStage::Queue);
    let (deleted, second) = tokio::join!(fleet.delete(&first.cloud_id), second);
    deleted.unwrap();
    fleet.delete(&second.unwrap().cloud_id).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn fault_12_deleting_while_the_vm_boots_cancels_the_creation() {
    scenario::deleting_while_it_boots_cancels_the_creation(Options::default()).await;
}

#[tokio::test]
async fn a_cloud_id_that_never_was_is_not_found() {
    let fleet = Fleet::server_only(Options::default()).await;
    let request =
        DeleteInstanceRequest { cloud_id: shoes_vz_model::CloudId::random().to_string(), labels: vec![] };
    let refused = fleet.shoes_client().delete_instance(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound);
    fleet.finish().await;
}

#[tokio::test]
async fn fault_20_the_setup_script_is_in_no_command_line_and_no_log() {
    let fleet = Fleet::start().await;
    let secret = "AABBCC-registration-token-42";
    let script = plain(&format!("TOKEN={secret}; echo working; sleep 600"));
    let added = fleet.add("secretive", &script).await.unwrap();
    let log = fleet.only_bundle();
    {
        let started =
            |v: &RunnerView| v.runner.as_ref().is_some_and(|r| r.setup.as_ref().is_some_and(|s| s.started));
        let started = fleet.until("secretive", started);
        tokio::pin!(started);
        // All the while it is handed over, and once more when it runs.
        while tokio::select! { _ = &mut started => false, () = tokio::task::yield_now() => true } {
            in_no_command_line(secret);
        }
        in_no_command_line(secret);
    }
    for entry in std::fs::read_dir(&log).unwrap().flatten() {
        let text = std::fs::read(entry.path()).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&text).contains(secret), "in {:?}", entry.path());
    }
    assert!(!fleet.logs().contains(secret));
    fleet.delete(&added.cloud_id).await.unwrap();
    assert!(!fleet.logs().contains(secret));
    fleet.finish().await;
}

fn in_no_command_line(secret: &str) {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let args = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert!(!String::from_utf8_lossy(&args).contains(secret), "in that of {:?}", entry.path());
    }
}

#[tokio::test]
async fn a_guest_reaches_neither_the_host_nor_the_network() {
    let fleet = Fleet::start().await;
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.local_addr().unwrap().port();
    // The gateway is how QEMU's user-mode network would offer the host's loopback.
    let script = plain(&format!(
        "if timeout 5 bash -c 'exec 3<>/dev/tcp/10.0.2.2/{port}' 2>/dev/null; then echo reached; exit 9; fi; exit 7"
    ));
    let added = fleet.add("curious", &script).await.unwrap();
    let end = fleet.until_ended("curious").await;
    assert!(end.reason.contains("exited with code 7"), "{end:?}");
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn without_a_named_key_the_users_own_log_into_the_guest_as_ssh_would() {
    let dir = tempfile::tempdir().unwrap();
    let (template, home) = (dir.path().join("t"), dir.path().join("home"));
    linked_copy(&template);
    edit(&template, |metadata| drop(metadata.as_object_mut().unwrap().remove("ssh_key_file")));
    std::fs::create_dir_all(home.join(".ssh")).unwrap();
    std::fs::write(home.join(".ssh/id_rsa"), "not a key").unwrap();
    std::fs::copy(template.join("ssh_key"), home.join(".ssh/id_ed25519")).unwrap();
    std::fs::remove_file(template.join("ssh_key")).unwrap();
    let agent_env = [("HOME", home.as_os_str()), ("SSH_AUTH_SOCK", "".as_ref())];
    let agent_env = agent_env.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let fleet = Fleet::start_with(Options { template, agent_env, ..Options::default() }).await;
    let added = fleet.add("own-key", &held()).await.unwrap();
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.finish().await;
}
