//! A job on real guests, from AddInstance to an empty host.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use shoes_vz_proto::{
    agent::{GuestRunnerState, RunnerStage},
    fleet::{DeleteInstanceRequest, RunnerView},
};
use shoes_vz_testkit::{
    fleet::{Fleet, Options},
    scenario,
    script::{Job, plain, sleeping},
    template::{edit, linked_copy},
};

#[tokio::test]
async fn a_job_runs_on_a_separate_vm_which_is_removed_afterwards() {
    let fleet = Fleet::start().await;
    let job = Job::new("echo the-job-ran-on-$(uname -s)");
    let added = fleet.add("job-1", &job.setup_script("job-1")).await.unwrap();
    assert!(added.cloud_id.starts_with("shoes-vz-"), "{added:?}");
    assert_eq!(added.shoes_type, "shoes-vz");

    fleet.assert_finishes_with_every_stage("job-1").await;
    fleet.until_clean().await;

    // myshoes deletes minutes later, possibly twice: the tombstone makes both succeed.
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn the_script_myshoes_sends_runs_to_its_end_with_the_templates_hooks_around_the_job() {
    let fleet = Fleet::start().await;
    // The job makes its completed hook wait twice: until this test is ready, and until this test has read the log.
    let job = Job::new(concat!(
        "echo the-job >> /tmp/job-hooks.log; ",
        "echo 'read -r _ < /tmp/reached; read -r _ < /tmp/leave' ",
        "| sudo tee -a /myshoes-actions-runner-hook-job-completed.sh"
    ));
    // The runner gets no job until this test ends its wait.
    let job = job.with("--idle-seconds", "3600");
    fleet.add("myshoes-1", &job.setup_script("myshoes-1")).await.unwrap();
    let in_state = async |state: GuestRunnerState| {
        let reached = |v: &RunnerView| {
            v.runner.as_ref().is_some_and(|r| r.end.is_some() || r.guest_runner_state() == state)
        };
        let runner = fleet.until("myshoes-1", reached).await.runner.unwrap();
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
    assert!(!moved.contains("runner-v"), "the prepared runner is moved, not copied: {moved}");
    assert!(moved.contains("./externals/node20/bin/node ./bin/RunnerService.js"), "{moved}");

    in_guest("mkfifo /tmp/reached /tmp/leave; pkill -fx 'sleep 3600'").await;
    in_state(GuestRunnerState::Running).await;
    let hooks = in_guest("echo > /tmp/reached; cat /tmp/job-hooks.log").await;
    assert_eq!(hooks, "hook: the job has started\nthe-job\nhook: the job has completed\n");
    in_guest("echo > /tmp/leave").await;
    fleet.assert_finishes_with_every_stage("myshoes-1").await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_version_missing_in_the_template_is_named_and_nothing_is_downloaded() {
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
    let script = sleeping();
    let (first, second) = tokio::join!(fleet.add("same", &script), fleet.add("same", &script));
    let (first, second) = (first.unwrap(), second.unwrap());
    assert_eq!(first.cloud_id, second.cloud_id);
    let third = fleet.add("same", &script).await.unwrap();
    assert_eq!(first.cloud_id, third.cloud_id);
    assert_eq!(fleet.runners().await.len(), 1);
    assert_eq!(shoes_vz_testkit::leftover::of(&fleet.runners_path()).bundles, 1);

    fleet.delete(&first.cloud_id).await.unwrap();
    let again = fleet.add("same", &script).await.unwrap();
    assert_ne!(first.cloud_id, again.cloud_id, "after its deletion the name gets a new VM");
    fleet.delete(&again.cloud_id).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn fault_16_two_guests_that_boot_together_are_never_confused() {
    scenario::two_guests_are_never_confused(Options::default()).await;
}

#[tokio::test]
async fn fault_28_a_request_beyond_the_slots_waits_and_is_served_when_one_is_free() {
    let fleet = Fleet::start_with(Options { max_runners: 1, ..Options::default() }).await;
    let first = fleet.add("first", &sleeping()).await.unwrap();
    let script = sleeping();
    let mut second = Box::pin(fleet.add("second", &script));
    let pending = fleet.until("second", |v| !v.pending_reason.is_empty());
    let view = tokio::select! {
        view = pending => view,
        early = &mut second => panic!("answered without a free slot: {early:?}"),
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
async fn an_unknown_cloud_id_is_not_found() {
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
        // While it is delivered, and again while it runs.
        while tokio::select! { _ = &mut started => false, () = tokio::task::yield_now() => true } {
            assert_in_no_command_line(secret);
        }
        assert_in_no_command_line(secret);
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

fn assert_in_no_command_line(secret: &str) {
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let args = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        assert!(
            !String::from_utf8_lossy(&args).contains(secret),
            "in the command line of {:?}",
            entry.path()
        );
    }
}

#[tokio::test]
async fn a_guest_reaches_neither_the_host_nor_the_network() {
    let fleet = Fleet::start().await;
    let host = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = host.local_addr().unwrap().port();
    // The user-mode network of QEMU would offer the loopback of the host at the gateway.
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
async fn without_a_configured_key_the_keys_of_the_user_log_into_the_guest_as_with_ssh() {
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
    let added = fleet.add("own-key", &sleeping()).await.unwrap();
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.finish().await;
}
