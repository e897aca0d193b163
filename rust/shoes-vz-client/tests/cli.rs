//! The command line, as operators and scripts use it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use common::{Behavior, CLOUD_ID, FakeServer, Kind, TIMEOUT, host::command};
use serde_json::Value;
use shoes_vz_proto::{
    agent::{
        Agent, AgentCapacity, AgentStatus, EndKind, Runner, RunnerEnd, RunnerStage, RunnerState, Setup,
        StageTiming,
    },
    fleet::{AgentView, RunnerView},
};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tonic::Code;

async fn client(fake: &FakeServer, args: &[&str]) -> Output {
    let addr = fake.addr.to_string();
    run(command(&[("SHOESVZ_SERVER_ADDR", &addr)]).args(args)).await
}

async fn run(command: &mut tokio::process::Command) -> Output {
    // Not `output()`, which takes stdout and stderr whatever they were set to.
    let child = command.spawn().unwrap();
    tokio::time::timeout(TIMEOUT, child.wait_with_output()).await.expect("it ends").unwrap()
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"))
}

fn script(bytes: &[u8]) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    file
}

fn view(stage: RunnerStage, ended: &[RunnerStage]) -> RunnerView {
    let stages = ended
        .iter()
        .map(|s| StageTiming { stage: (*s).into(), started_at: None, duration_us: 12_300 })
        .collect();
    let state = RunnerState::Booting.into();
    let runner =
        Runner { runner_name: "one".into(), state, stage: stage.into(), stages, ..Runner::default() };
    RunnerView {
        cloud_id: CLOUD_ID.into(),
        agent_hostname: "mac-1".into(),
        runner: Some(runner),
        ..RunnerView::default()
    }
}

fn ended() -> RunnerView {
    let mut view = view(RunnerStage::Job, &[RunnerStage::Clone]);
    let end = RunnerEnd {
        kind: EndKind::Finished.into(),
        reason: "the runner exited".into(),
        ..RunnerEnd::default()
    };
    view.runner.as_mut().unwrap().end = Some(end);
    view
}

#[tokio::test]
async fn add_prints_the_cloud_id_and_sends_its_arguments() {
    let fake = FakeServer::start(Behavior::Answer("large")).await;
    let script = script(b"#!/bin/bash\n");
    let path = script.path().to_str().unwrap();
    let args = ["add", "--runner-name", "one", "--setup-script", path, "--resource-type", "2xlarge"];
    let output = client(&fake, &[&args[..], &["--label", "a", "--label", "b"]].concat()).await;
    assert_eq!(
        (output.status.code(), stdout(&output)),
        (Some(0), format!("{CLOUD_ID}\n").as_str()),
        "{output:?}"
    );
    let seen = fake.until_seen(1).await;
    assert_eq!(
        (seen.name.as_str(), seen.script.as_str(), seen.resource_type.as_str()),
        ("one", "#!/bin/bash\n", "2xlarge")
    );
    assert_eq!(seen.labels, ["a", "b"]);
    assert!(seen.timeout.unwrap() > Duration::from_secs(290), "the default is myshoes' five minutes");
}

#[tokio::test]
async fn add_json_prints_one_object_and_shows_the_stages_on_stderr() {
    let fake = FakeServer::start(Behavior::Answer("nano")).await;
    let over = [RunnerStage::Queue, RunnerStage::Clone, RunnerStage::Ssh];
    fake.set_runners(vec![view(RunnerStage::Start, &over[..2]), view(RunnerStage::Ssh, &over)]);
    let script = script(b"true");
    let args = ["--json", "add", "--runner-name", "one", "--setup-script", script.path().to_str().unwrap()];
    let output = client(&fake, &args).await;
    let added = json(&output);
    assert_eq!((&added["cloud_id"], &added["resource_type"]), (&CLOUD_ID.into(), &"nano".into()));
    assert!(added["add_instance_ms"].as_f64().unwrap() > 0.0);
    let shown: Vec<_> =
        stderr(&output).lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(shown, ["queue 12.3 ms", "clone 12.3 ms", "start …", "ssh 12.3 ms"]);
}

#[tokio::test]
async fn add_and_delete_work_with_a_go_server_that_has_no_fleet_service() {
    let fake = FakeServer::start_kind(Behavior::Answer(""), Kind::Go).await;
    let script = script(b"true");
    let args = ["add", "--runner-name", "one", "--setup-script", script.path().to_str().unwrap()];
    let output = client(&fake, &args).await;
    assert_eq!((output.status.code(), stderr(&output)), (Some(0), ""), "the missing service is not an error");
    let output = client(&fake, &["--json", "delete", CLOUD_ID]).await;
    assert_eq!(json(&output)["deleted"], true);
    assert_eq!(fake.until_seen(2).await.name, CLOUD_ID);
    for command in ["list", "agents", "watch"] {
        let output = client(&fake, &[command]).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("Go implementation"), "{command}: {output:?}");
    }
}

#[tokio::test]
async fn a_script_from_stdin_arrives_and_one_that_is_not_text_is_refused_with_its_line() {
    let fake = FakeServer::start(Behavior::Answer("")).await;
    let addr = fake.addr.to_string();
    let mut piped = command(&[("SHOESVZ_SERVER_ADDR", &addr)]);
    let mut child = piped
        .args(["add", "--runner-name", "one", "--setup-script", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"echo piped\n").await.unwrap();
    let output = tokio::time::timeout(TIMEOUT, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(fake.until_seen(1).await.script, "echo piped\n");

    let bad = script(b"#!/bin/bash\necho \xff\xfe\n");
    let path = bad.path().to_str().unwrap();
    let output = client(&fake, &["add", "--runner-name", "one", "--setup-script", path]).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(
        stderr(&output).contains(path) && stderr(&output).contains("not UTF-8: byte 17, on line 2"),
        "{output:?}"
    );
    assert_eq!(fake.seen().len(), 1, "nothing of it is sent");
}

#[tokio::test]
async fn every_mistake_is_reported_at_once_and_exits_with_two() {
    let args = ["add", "--runner-name", "", "--setup-script", "/nowhere/s.sh", "--resource-type", "huge"];
    let output = run(command(&[]).args(args).args(["--token-file", "/nowhere/token", "--json"])).await;
    assert_eq!(output.status.code(), Some(2));
    let reported = stderr(&output);
    for mistake in ["--server", "/nowhere/token", "--runner-name", "/nowhere/s.sh", "\"huge\""] {
        assert!(reported.contains(mistake), "{mistake}: {reported}");
    }
    assert_eq!(json(&output)["error"]["code"], "USAGE");
    let output = run(command(&[]).args(["add", "--runer-name", "x"])).await;
    assert_eq!(output.status.code(), Some(2), "a flag that does not exist");
}

#[tokio::test]
async fn a_refusal_exits_with_one_and_shows_its_code_and_message() {
    let fake = FakeServer::start(Behavior::Refuse(Code::ResourceExhausted, "no free slot".into())).await;
    let script = script(b"true");
    let args = ["--json", "add", "--runner-name", "one", "--setup-script", script.path().to_str().unwrap()];
    let output = client(&fake, &args).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("no free slot (RESOURCE_EXHAUSTED)"), "{output:?}");
    let error = &json(&output)["error"];
    assert_eq!((&error["code"], &error["message"]), (&"RESOURCE_EXHAUSTED".into(), &"no free slot".into()));
}

#[tokio::test]
async fn without_a_server_a_call_fails_within_its_timeout_and_names_the_address() {
    let fake = FakeServer::down(Behavior::Hang).await;
    let output = client(&fake, &["delete", CLOUD_ID, "--timeout", "500ms"]).await;
    assert_eq!(output.status.code(), Some(1));
    let reported = stderr(&output);
    assert!(reported.contains(&fake.addr.to_string()) && reported.contains("UNAVAILABLE"), "{reported}");
    assert_eq!(reported.matches("server unreachable; retrying").count(), 1, "it is logged once: {reported}");
}

#[tokio::test]
async fn list_shows_live_runners_and_with_all_also_ended_ones() {
    let fake = FakeServer::start(Behavior::Answer("")).await;
    assert_eq!(stdout(&client(&fake, &["list"]).await), "no runners\n");
    let mut other = ended();
    other.cloud_id = "shoes-vz-2".into();
    fake.set_runners(vec![view(RunnerStage::Guest, &[RunnerStage::Clone]), other]);
    let shown = client(&fake, &["list"]).await;
    assert!(stdout(&shown).contains("BOOTING") && stdout(&shown).contains("mac-1"), "{shown:?}");
    assert_eq!(stdout(&shown).lines().count(), 2);
    let all = json(&client(&fake, &["--json", "list", "--all"]).await);
    assert_eq!(all["runners"].as_array().unwrap().len(), 2);
    assert_eq!(all["runners"][0]["stages_ms"]["clone"], 12.3);
    assert_eq!(all["runners"][1]["end"]["kind"], "finished");
}

#[tokio::test]
async fn watch_prints_a_line_for_each_change_and_ends_with_the_runner() {
    let fake = FakeServer::start(Behavior::Answer("")).await;
    fake.set_runners(vec![
        view(RunnerStage::Clone, &[]),
        view(RunnerStage::Guest, &[RunnerStage::Clone]),
        ended(),
    ]);
    let output = client(&fake, &["--json", "watch", "--runner-name", "one"]).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let stages: Vec<Value> =
        stdout(&output).lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["stage"].clone()).collect();
    assert_eq!(stages, ["clone", "guest", "job"]);
    let output = client(&fake, &["watch", "--cloud-id", CLOUD_ID]).await;
    let last = stdout(&output).lines().last().unwrap();
    assert!(last.contains("ended") && last.contains("finished: the runner exited"), "{last}");
}

#[tokio::test]
async fn a_watch_without_a_matching_runner_says_so_at_once_and_once() {
    let mut fake = FakeServer::start(Behavior::Answer("")).await;
    fake.set_matching("0");
    let addr = fake.addr.to_string();
    for format in [&["--json"][..], &[]] {
        let mut watching = command(&[("SHOESVZ_SERVER_ADDR", &addr)]);
        let mut child = watching.args(["watch", "--runner-name", "late"]).args(format).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
        let first = tokio::time::timeout(TIMEOUT, stderr.next_line()).await.expect("a line").unwrap();
        assert_eq!(first.as_deref(), Some("no runner named \"late\" yet; waiting for one"));
        // A restart of the server causes a second watch, which has a match.
        fake.crash();
        fake.set_runners(vec![ended()]);
        fake.restart().await;
        let output = tokio::time::timeout(TIMEOUT, child.wait_with_output()).await.unwrap().unwrap();
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert_eq!(stdout(&output).lines().count(), 1, "{output:?}");
        while let Some(line) = stderr.next_line().await.unwrap() {
            assert!(!line.contains("no runner named"), "printed twice");
        }
        fake.set_runners(Vec::new());
    }
}

#[tokio::test]
async fn a_watch_continues_when_its_server_stops_cleanly_and_restarts() {
    let fake = FakeServer::start(Behavior::Answer("")).await;
    fake.set_runners(vec![view(RunnerStage::Setup, &[RunnerStage::Clone])]);
    let addr = fake.addr.to_string();
    let mut watching = command(&[("SHOESVZ_SERVER_ADDR", &addr)]);
    let mut child = watching.args(["watch", "--runner-name", "one"]).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let first = tokio::time::timeout(TIMEOUT, lines.next_line()).await.expect("it is shown").unwrap();
    assert!(first.is_some_and(|line| !line.contains("ended")));
    fake.set_runners(vec![ended()]);
    fake.end_watches();
    let last = tokio::time::timeout(TIMEOUT, lines.next_line()).await.expect("it watches again").unwrap();
    assert!(last.as_ref().is_some_and(|line| line.contains("ended")), "{last:?}");
    let status = tokio::time::timeout(TIMEOUT, child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[tokio::test]
async fn a_watch_of_a_failed_setup_script_shows_its_last_lines_indented_once() {
    let mut failed = view(RunnerStage::Setup, &[RunnerStage::Clone]);
    let runner = failed.runner.as_mut().unwrap();
    let tail = "+ ./config.sh\n\u{1b}[31mcurl: (6) no such host\u{1b}[0m\n";
    runner.setup = Some(Setup { exited: true, exit_code: 6, log_tail: tail.into(), ..Setup::default() });
    let reason = format!("the setup script ended with exit code 6; its last lines:\n{tail}");
    runner.error_message = reason.clone();
    let mut ended_view = failed.clone();
    let end = RunnerEnd { kind: EndKind::Failed.into(), reason, ..RunnerEnd::default() };
    ended_view.runner.as_mut().unwrap().end = Some(end);
    let fake = FakeServer::start(Behavior::Answer("")).await;
    fake.set_runners(vec![failed, ended_view]);
    let output = client(&fake, &["watch", "--runner-name", "one"]).await;
    let lines: Vec<_> = stdout(&output).lines().collect();
    assert!(
        lines[0].ends_with("the setup script ended with exit code 6: curl: (6) no such host"),
        "{output:?}"
    );
    assert_eq!(lines[1..3], ["    + ./config.sh", "    curl: (6) no such host"]);
    assert!(lines.len() == 4 && lines[3].contains("ended"), "{output:?}");
}

#[tokio::test]
async fn no_terminal_control_sequence_of_a_guest_or_server_reaches_the_terminal() {
    let hostile = "last: \u{1b}[2J\u{9b}31m\u{1b}]0;title\u{7}\u{202e}\nsecond\u{1b}[";
    let fake = FakeServer::start(Behavior::Refuse(Code::Internal, hostile.into())).await;
    let mut bad = view(RunnerStage::Setup, &[RunnerStage::Clone]);
    bad.agent_hostname = hostile.into();
    bad.pending_reason = hostile.into();
    bad.runner.as_mut().unwrap().error_message = hostile.into();
    let mut ended_view = bad.clone();
    let end = RunnerEnd { kind: EndKind::Failed.into(), reason: hostile.into(), ..RunnerEnd::default() };
    ended_view.runner.as_mut().unwrap().end = Some(end);
    fake.set_runners(vec![bad, ended_view]);
    let mut agent = agent_with(1);
    agent.unschedulable_reason = hostile.into();
    agent.agent.as_mut().unwrap().hostname = hostile.into();
    fake.set_agents(vec![agent]);
    let script = script(b"true");
    let add = ["add", "--runner-name", "one", "--setup-script", script.path().to_str().unwrap()];
    let json = [&["--json"], &add[..]].concat();
    for args in [
        &add[..],
        &json,
        &["list", "--all"],
        &["list", "--all", "--json"],
        &["agents"],
        &["agents", "--json"],
        &["watch", "--runner-name", "one"],
        &["drain", "mac-1", "--timeout", "300ms"],
        &["delete", CLOUD_ID],
    ] {
        let output = client(&fake, args).await;
        for text in [stdout(&output), stderr(&output)] {
            let control = text.chars().find(|c| (c.is_control() && *c != '\n') || *c == '\u{202e}');
            assert_eq!(control, None, "{args:?}: {text:?}");
            // The remainder of a partly removed sequence would be visible.
            assert!(
                args.contains(&"--json") || !(text.contains("31m") || text.contains("title")),
                "{args:?}: {text:?}"
            );
        }
    }
}

#[tokio::test]
async fn endless_input_and_what_is_not_a_file_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let files = [
        ("/dev/zero", "larger"),
        ("/", "a directory"),
        (fifo.to_str().unwrap(), "a FIFO"),
        ("/nowhere/f", "No such file"),
    ];
    for (path, expected) in files {
        for args in [
            &["add", "--runner-name", "one", "--server", "a:1", "--setup-script", path][..],
            &["list", "--server", "a:1", "--token-file", path],
            &["list", "--config", path],
        ] {
            let output = run(command(&[]).args(args)).await;
            assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
            assert!(
                stderr(&output).contains(path) && stderr(&output).contains(expected),
                "{args:?}: {output:?}"
            );
        }
    }
    // Also from standard input.
    let zeros = std::fs::File::open("/dev/zero").unwrap();
    let args = ["add", "--runner-name", "one", "--server", "a:1", "--setup-script", "-"];
    let output = run(command(&[]).args(args).stdin(zeros)).await;
    assert!(output.status.code() == Some(2) && stderr(&output).contains("16 MiB"), "{output:?}");
}

/// Every command that prints something.
fn printing_commands(script: &str) -> Vec<Vec<&str>> {
    let plain: [&[&str]; 9] = [
        &["add", "--runner-name", "one", "--setup-script", script],
        &["delete", CLOUD_ID],
        &["list"],
        &["watch", "--runner-name", "one"],
        &["agents"],
        &["cordon", "mac-1"],
        &["uncordon", "mac-1"],
        &["drain", "mac-1"],
        &["--help"],
    ];
    let json = plain.iter().filter(|args| args[0] != "--help").map(|args| [&["--json"], *args].concat());
    plain.iter().map(|args| args.to_vec()).chain(json).collect()
}

fn full() -> Stdio {
    Stdio::from(std::fs::File::options().write(true).open("/dev/full").unwrap())
}

#[tokio::test]
async fn a_full_stdout_is_a_failure_and_a_full_stderr_changes_nothing() {
    let fake = FakeServer::start(Behavior::Answer("nano")).await;
    let addr = fake.addr.to_string();
    let script = script(b"true");
    for args in printing_commands(script.path().to_str().unwrap()) {
        fake.set_runners(vec![view(RunnerStage::Guest, &[RunnerStage::Clone]), ended()]);
        fake.set_agents(vec![agent_with(0)]);
        let client = || {
            let mut client = command(&[("SHOESVZ_SERVER_ADDR", &addr)]);
            client.args(&args);
            client
        };
        let output = run(client().stdout(full())).await;
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
        assert!(stderr(&output).contains("writing to stdout failed: No space left"), "{args:?}: {output:?}");
        let output = run(client().stderr(full())).await;
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
        assert!(!output.stdout.is_empty(), "{args:?}");
        let output = run(client().stdout(full()).stderr(full())).await;
        assert_eq!(output.status.code(), Some(1), "{args:?}: {output:?}");
    }
    // Failures keep their exit codes.
    for (args, code) in [
        (&["list", "--timeout", "1ms", "--server", "127.0.0.1:1"][..], 1),
        (&["list", "--server", "x"], 2),
        (&["lsit"], 2),
        (&[], 2),
    ] {
        let output = run(command(&[]).args(args).stdout(full()).stderr(full())).await;
        assert_eq!(output.status.code(), Some(code), "{args:?}: {output:?}");
    }
}

#[tokio::test]
async fn a_reader_that_closes_stdout_early_is_not_a_failure() {
    let fake = FakeServer::start(Behavior::Answer("nano")).await;
    let addr = fake.addr.to_string();
    let script = script(b"true");
    for args in printing_commands(script.path().to_str().unwrap()) {
        fake.set_runners(vec![view(RunnerStage::Guest, &[RunnerStage::Clone]), ended()]);
        fake.set_agents(vec![agent_with(0)]);
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = run(command(&[("SHOESVZ_SERVER_ADDR", &addr)]).args(&args).stdout(writer)).await;
        assert_eq!(output.status.code(), Some(0), "{args:?}: {output:?}");
    }
}

#[tokio::test]
async fn agents_are_shown_with_their_runners() {
    let fake = FakeServer::start(Behavior::Answer("")).await;
    assert_eq!(stdout(&client(&fake, &["agents"]).await), "no agents\n");
    let capacity = AgentCapacity { max_runners: 2, cpu_cores: 8, memory_bytes: 1 << 34 };
    let agent = Agent {
        agent_id: "id".into(),
        hostname: "mac-1".into(),
        capacity: Some(capacity),
        status: AgentStatus::Online.into(),
    };
    fake.set_agents(vec![AgentView { agent: Some(agent), runners: 1, ..AgentView::default() }]);
    let shown = client(&fake, &["agents"]).await;
    assert!(stdout(&shown).contains("online") && stdout(&shown).contains("1/2"), "{shown:?}");
    assert_eq!(json(&client(&fake, &["agents", "--json"]).await)["agents"][0]["memory_bytes"], 1_u64 << 34);
}

/// An agent with this many runners left.
fn agent_with(runners: u32) -> AgentView {
    let agent = Agent { agent_id: "id-1".into(), hostname: "mac-1".into(), ..Agent::default() };
    AgentView { agent: Some(agent), runners, ..AgentView::default() }
}

#[tokio::test]
async fn an_agent_is_cordoned_with_a_reason_and_uncordoned() {
    let fake = FakeServer::start(Behavior::Answer("")).await;
    fake.set_agents(vec![agent_with(2)]);
    let output = client(&fake, &["cordon", "mac-1", "--reason", "new disk"]).await;
    assert_eq!(stdout(&output), "cordoned mac-1: 2 runners left\n", "{output:?}");
    let seen = fake.until_seen(1).await;
    assert_eq!((seen.method, seen.name.as_str(), seen.script.as_str()), ("CordonAgent", "mac-1", "new disk"));
    let shown = json(&client(&fake, &["--json", "cordon", "mac-1", "--reason", "r"]).await);
    assert_eq!((&shown["done"], &shown["agent"]["cordon"]["reason"]), (&"cordoned".into(), &"r".into()));
    assert_eq!(stdout(&client(&fake, &["uncordon", "mac-1"]).await), "uncordoned mac-1\n");
    assert_eq!(fake.until_seen(3).await.method, "UncordonAgent");

    fake.set_behavior(Behavior::Refuse(Code::FailedPrecondition, "2 agents have the hostname mac-1".into()));
    let output = client(&fake, &["cordon", "mac-1"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("2 agents have the hostname mac-1"), "{output:?}");
}

#[tokio::test]
async fn a_drain_shows_each_change_on_stderr_and_ends_when_the_agent_is_empty() {
    let fake = FakeServer::start(Behavior::Answer("")).await;
    fake.set_agents([2, 2, 1, 0].map(agent_with).to_vec());
    let output = client(&fake, &["drain", "mac-1", "--reason", "new disk"]).await;
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), "drained mac-1\n"), "{output:?}");
    assert_eq!(stderr(&output), "mac-1: 2 runners left\nmac-1: 1 runner left\nmac-1: no runners left\n");
    assert_eq!(fake.until_seen(1).await.script, "new disk");

    let output = client(&fake, &["--json", "drain", "mac-1", "--no-wait"]).await;
    assert_eq!(json(&output)["done"], "cordoned");
    assert_eq!(fake.until_seen(2).await.method, "CordonAgent");
}

#[tokio::test]
async fn a_drain_that_times_out_says_what_is_left_and_that_the_cordon_stays() {
    let fake = FakeServer::start(Behavior::Answer("")).await;
    fake.set_agents(vec![agent_with(1)]);
    let output = client(&fake, &["drain", "mac-1", "--timeout", "500ms"]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(stderr(&output).contains("mac-1: 1 runner left; it stays cordoned"), "{output:?}");
    let both = client(&fake, &["drain", "mac-1", "--wait", "--no-wait"]).await;
    assert_eq!(both.status.code(), Some(2));
}

#[tokio::test]
async fn a_drain_continues_after_a_restart_of_the_server_by_the_agents_id() {
    let mut fake = FakeServer::start(Behavior::Answer("")).await;
    fake.set_agents(vec![agent_with(1)]);
    let addr = fake.addr.to_string();
    let mut draining = command(&[("SHOESVZ_SERVER_ADDR", &addr)]);
    let mut child = draining.args(["drain", "mac-1", "--reason", "r"]).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap()).lines();
    let first = tokio::time::timeout(TIMEOUT, stderr.next_line()).await.unwrap().unwrap();
    assert_eq!(first.as_deref(), Some("mac-1: 1 runner left"));
    fake.crash();
    fake.set_agents(vec![agent_with(0)]);
    fake.restart().await;
    let output = tokio::time::timeout(TIMEOUT, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), "drained mac-1\n"), "{output:?}");
    let seen = fake.until_seen(2).await;
    assert_eq!((seen.name.as_str(), seen.script.as_str()), ("id-1", ""), "its reason is kept");
}

#[tokio::test]
async fn the_configuration_file_names_the_server_and_unknown_keys_are_refused() {
    let fake = FakeServer::start(Behavior::Answer("")).await;
    let config = script(format!("server = \"{}\"\n", fake.addr).as_bytes());
    let path = config.path().to_str().unwrap();
    let output = run(command(&[]).args(["--config", path, "list"])).await;
    assert_eq!((output.status.code(), stdout(&output)), (Some(0), "no runners\n"), "{output:?}");
    std::fs::write(config.path(), "server = \"a:1\"\ntokn_file = \"x\"\n").unwrap();
    let output = run(command(&[]).args(["--config", path, "list"])).await;
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("tokn_file"), "{output:?}");
}
