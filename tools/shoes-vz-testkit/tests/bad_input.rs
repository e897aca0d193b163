//! Bad input causes a clear error and leaves nothing behind.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{path::Path, process::Stdio, time::Duration};

use nix::sys::signal::Signal;
use shoes_vz_proto::{agent::EndKind, fleet::AddInstanceRequest};
use shoes_vz_testkit::{
    bins::{Bins, test_template},
    fleet::{Fleet, Options, TIMEOUT},
    leftover::{self, LeftOver},
    script::{plain, sleeping},
    template::{edit, linked_copy, replace},
};
use tonic::Code;

/// Runs `shoes-vz-agent run` with arguments that it must refuse; returns its output.
async fn refused_agent(args: &[&str], template: &Path, runners: &Path) -> String {
    let dir = tempfile::tempdir().unwrap();
    let output = tokio::process::Command::new(Bins::find().path("shoes-vz-agent"))
        .args(["run", "--server", "127.0.0.1:1", "--state-dir"])
        .arg(dir.path().join("state"))
        .arg("--template-path")
        .arg(template)
        .arg("--runners-path")
        .arg(runners)
        .args(args)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output =
        tokio::time::timeout(Duration::from_secs(30), output).await.expect("the agent ends").unwrap();
    assert!(!output.status.success());
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn a_template_without_its_disk_or_kernel_is_refused_with_all_that_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let (template, runners) = (dir.path().join("t"), dir.path().join("r"));
    std::fs::create_dir(&runners).unwrap();
    linked_copy(&template);
    std::fs::remove_file(template.join("Disk.img")).unwrap();
    std::fs::remove_file(template.join("kernel")).unwrap();
    let reason = refused_agent(&[], &template, &runners).await;
    assert!(reason.contains("Disk.img") && reason.contains("kernel"), "{reason}");
    assert_eq!(leftover::of(&runners), LeftOver::NONE);
}

#[tokio::test]
async fn a_missing_template_is_refused_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let reason = refused_agent(&[], "/nowhere/at/all".as_ref(), dir.path()).await;
    assert!(reason.contains("/nowhere/at/all"), "{reason}");
}

#[tokio::test]
async fn max_runners_zero_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let reason = refused_agent(&["--max-runners", "0"], &test_template(), dir.path()).await;
    assert!(reason.contains("max-runners"), "{reason}");
}

#[tokio::test]
async fn every_mistake_in_the_settings_is_reported_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("agent.toml");
    std::fs::write(&config, "max_runers = 2\n").unwrap();
    let reason =
        refused_agent(&["--max-runners", "0", "--ssh-key", "/no/key"], "/nowhere".as_ref(), dir.path()).await;
    for mistake in ["max-runners", "/nowhere", "/no/key"] {
        assert!(reason.contains(mistake), "{mistake} is not in: {reason}");
    }
    let reason =
        refused_agent(&["--config", config.to_str().unwrap()], "/nowhere".as_ref(), dir.path()).await;
    assert!(reason.contains("max_runers"), "{reason}");
}

#[tokio::test]
async fn a_server_whose_port_is_taken_says_which() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let dir = tempfile::tempdir().unwrap();
    for flag in ["--grpc-addr", "--metrics-addr"] {
        let other = if flag == "--grpc-addr" { "--metrics-addr" } else { "--grpc-addr" };
        let output = tokio::process::Command::new(Bins::find().path("shoes-vz-server"))
            .args([flag, &addr, other, "127.0.0.1:0", "--state-dir"])
            .arg(dir.path())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(30), output).await.expect("it ends").unwrap();
        let reason =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{reason}");
        assert!(reason.contains(&addr), "{reason}");
    }
}

#[tokio::test]
async fn a_second_agent_on_the_same_runners_path_is_refused() {
    let fleet = Fleet::start().await;
    let reason = refused_agent(&[], &test_template(), &fleet.runners_path()).await;
    assert!(reason.contains(fleet.runners_path().to_str().unwrap()), "{reason}");
    fleet.finish().await;
}

#[tokio::test]
async fn an_unknown_resource_type_is_refused_a_label_that_no_agent_offers_waits_and_both_are_named() {
    let fleet = Fleet::start().await;
    let add = async |resource_type: &str, label: &str| {
        let request = AddInstanceRequest {
            runner_name: "odd".into(),
            setup_script: sleeping(),
            resource_type: resource_type.into(),
            labels: vec![label.into()],
        };
        let mut request = tonic::Request::new(request);
        request.set_timeout(std::time::Duration::from_secs(2));
        fleet.shoes_client().add_instance(request).await.unwrap_err()
    };
    for (resource_type, label, code, named) in [
        ("gigantic", "self-hosted", Code::InvalidArgument, "gigantic"),
        ("nano", "windows-11", Code::ResourceExhausted, "windows-11"),
    ] {
        let refused = add(resource_type, label).await;
        assert_eq!(refused.code(), code, "{refused:?}");
        assert!(refused.message().contains(named), "{refused:?}");
    }
    let waiting = fleet.runners().await;
    assert_eq!(waiting.len(), 1, "it keeps its place for a retry");
    fleet.delete(&waiting[0].cloud_id).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn a_setup_script_that_fails_is_an_error_with_its_code_and_its_last_fifty_lines() {
    let fleet = Fleet::start().await;
    let script = plain("for i in $(seq 1 200); do echo line-$i; done; exit 3");
    let added = fleet.add("failing", &script).await.unwrap();
    let view = fleet.ended_view("failing").await;
    let runner = view.runner.unwrap();
    let end = runner.end.unwrap();
    assert_eq!(end.kind(), EndKind::Failed, "{end:?}");
    assert!(end.reason.contains('3'), "{end:?}");
    let setup = runner.setup.unwrap();
    assert_eq!((setup.exited, setup.exit_code), (true, 3));
    let lines: Vec<_> = setup.log_tail.lines().collect();
    assert_eq!((lines.len(), lines[0], lines[49]), (50, "line-151", "line-200"));
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn a_script_of_two_mebibytes_arrives_complete() {
    let fleet = Fleet::start().await;
    let padding = "# 0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\n".repeat(32 << 10);
    let script = plain(&format!("{padding}wc -c < \"$0\"; exit 4"));
    assert!(script.len() > 2 << 20);
    let added = fleet.add("long", &script).await.unwrap();
    let view = fleet.ended_view("long").await;
    let setup = view.runner.unwrap().setup.unwrap();
    assert_eq!((setup.exit_code, setup.log_tail.trim()), (4, script.len().to_string().as_str()));
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn output_that_is_not_utf8_does_no_harm() {
    let fleet = Fleet::start().await;
    let added = fleet.add("latin", &plain("printf 'caf\\xe9 \\xff\\xfe\\n'; exit 5")).await.unwrap();
    let view = fleet.ended_view("latin").await;
    let setup = view.runner.unwrap().setup.unwrap();
    assert_eq!((setup.exit_code, setup.log_tail.as_str()), (5, "caf\u{fffd} \u{fffd}\u{fffd}"));
    fleet.delete(&added.cloud_id).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn pain_14_a_guest_that_never_boots_fails_at_its_deadline_with_the_last_lines_of_the_console() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("t");
    linked_copy(&template);
    // A kernel without init panics, and with `panic=0` and without a panic device it then hangs.
    replace(&template.join("initrd"), b"not an archive");
    edit(&template, |metadata| metadata["kernel_cmdline"] = "console=ttyS0 panic=0".into());
    let agent_args = vec!["--start-deadline".into(), "15s".into()];
    let fleet = Fleet::start_with(Options { template, agent_args, ..Options::default() }).await;
    let refused = fleet.add("stuck", &sleeping()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal, "{refused:?}");
    let reason = refused.message();
    assert!(reason.contains("15.0 s") && reason.contains("Kernel panic"), "{reason}");
    fleet.until_clean().await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_guest_whose_disk_is_not_a_file_system_fails_at_once_with_the_last_lines_of_the_console() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("t");
    linked_copy(&template);
    replace(&template.join("Disk.img"), b"");
    std::fs::File::options().write(true).open(template.join("Disk.img")).unwrap().set_len(64 << 20).unwrap();
    let fleet = Fleet::start_with(Options { template, ..Options::default() }).await;
    let refused = fleet.add("blank", &sleeping()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal, "{refused:?}");
    assert!(refused.message().contains("/dev/vda"), "{refused:?}");
    fleet.until_clean().await;
    fleet.finish().await;
}

#[tokio::test]
async fn a_client_without_a_server_fails_in_time_and_one_whose_server_returns_succeeds() {
    let mut fleet = Fleet::start().await;
    fleet.end_server(Signal::SIGTERM).await;
    let script = fleet.path().join("script.sh");
    std::fs::write(&script, sleeping()).unwrap();
    let client = |timeout: &str| {
        let mut command = tokio::process::Command::new(fleet.bins().path("shoes-vz-client"));
        command
            .args([
                "--server",
                fleet.grpc_addr(),
                "--json",
                "add",
                "--runner-name",
                "waiting",
                "--timeout",
                timeout,
            ])
            .args(["--resource-type", "nano", "--setup-script"])
            .arg(&script)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        command
    };
    let output =
        tokio::time::timeout(Duration::from_secs(20), client("3s").output()).await.expect("in time").unwrap();
    let reason = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{reason}");
    assert!(reason.contains(fleet.grpc_addr()), "{reason}");

    let waiting = client("120s").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    fleet.start_server().await;
    let output = tokio::time::timeout(TIMEOUT, waiting.wait_with_output()).await.expect("in time").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let added: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    fleet.delete(added["cloud_id"].as_str().unwrap()).await.unwrap();
    fleet.finish().await;
}

#[tokio::test]
async fn a_template_of_the_go_implementation_on_a_linux_host_is_refused_and_its_missing_key_is_not_a_mistake()
{
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("t");
    std::fs::create_dir(&template).unwrap();
    std::fs::write(template.join("Disk.img"), vec![0; 4096]).unwrap();
    std::fs::write(template.join("AuxiliaryStorage"), "a").unwrap();
    std::fs::write(template.join("HardwareModel.json"), r#"{"hardwareModel":"AAAA"}"#).unwrap();
    let runners = dir.path().join("r");
    let reason = refused_agent(&["--hypervisor", "qemu"], &template, &runners).await;
    assert!(reason.contains("qemu runs Linux guests, and the template is for macOS"), "{reason}");
    assert!(!reason.contains("ssh-key"), "{reason}");
}
