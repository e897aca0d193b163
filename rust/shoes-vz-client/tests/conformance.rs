//! The real hashicorp/go-plugin, used as myshoes uses it, with this plugin and a fake server.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};

use common::{BIN, Behavior, CLOUD_ID, FakeServer, TIMEOUT};
use serde_json::Value;
use shoes_vz_testkit::go;
use tokio::{process::Command, sync::OnceCell};
use tonic::Code;

/// The first build downloads its modules.
const BUILD_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(300);

/// Builds the Go program, once for all tests here.
async fn host() -> &'static Path {
    static HOST: OnceCell<PathBuf> = OnceCell::const_new();
    HOST.get_or_init(async || {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tools/shoes-vz-testkit/conformance");
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-plugin-host");
        let go = Command::new("go").args(["build", "-o"]).arg(&built).arg(".").current_dir(source).output();
        let output = tokio::time::timeout(BUILD_TIMEOUT, go).await.expect("`go build` ends");
        let output = output.expect("`go` runs");
        assert!(output.status.success(), "go build: {}", String::from_utf8_lossy(&output.stderr));
        built
    })
    .await
}

/// Runs the host; returns its exit code and its output.
async fn run(fake: &FakeServer, args: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(host().await);
    command.args(["--plugin", BIN, "--server", &fake.addr.to_string()]).args(args).kill_on_drop(true);
    let output = tokio::time::timeout(TIMEOUT, command.output()).await.expect("it ends").unwrap();
    let output_json = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (output.status.code(), output_json)
}

/// Asserts that the plugin ended without being killed and left nothing behind.
fn assert_clean_exit(call: &Value) {
    for key in ["exited", "process_gone", "socket_removed"] {
        assert_eq!(call[key], true, "{key}: {call}");
    }
    assert!(call["kill_ms"].as_f64().unwrap() < 1900.0, "go-plugin had to kill it: {call}");
}

#[tokio::test]
async fn fault_27_both_calls_go_through_and_killing_the_plugin_leaves_nothing() {
    if go::is_missing("both calls go through the real go-plugin") {
        return;
    }
    let fake = FakeServer::start(Behavior::Answer("large")).await;
    let script = tempfile::NamedTempFile::new().unwrap();
    let text = "echo é\n".repeat(300_000);
    std::fs::write(script.path(), &text).unwrap();
    let add = [
        "--add-name",
        "myshoes-1",
        "--script",
        script.path().to_str().unwrap(),
        "--resource-type",
        "2xlarge",
    ];
    let (code, result) =
        run(&fake, &[&add[..], &["--label", "a", "--label", "b", "--delete", "added"]].concat()).await;
    assert_eq!(code, Some(0), "{result}");

    let (add, delete) = (&result["add"], &result["delete"]);
    assert_eq!((&add["cloud_id"], &add["shoes_type"]), (&CLOUD_ID.into(), &"shoes-vz".into()));
    assert_eq!((&add["ip_address"], &add["resource_type"]), (&"192.0.2.7".into(), &"large".into()));
    assert_clean_exit(add);
    assert_clean_exit(delete);
    assert_ne!(add["pid"], delete["pid"], "a new plugin for each call");

    let seen = fake.seen();
    assert_eq!((seen[0].method, seen[0].name.as_str()), ("AddInstance", "myshoes-1"));
    assert_eq!(
        (seen[0].resource_type.as_str(), &seen[0].labels[..]),
        ("2xlarge", &["a".to_owned(), "b".to_owned()][..])
    );
    assert!(seen[0].script == text, "the script changed on its way");
    assert_eq!((seen[1].method, seen[1].name.as_str()), ("DeleteInstance", CLOUD_ID));
    assert!(seen[0].timeout.unwrap().as_secs() >= 290, "Go's deadline is propagated");
}

#[tokio::test]
async fn go_gets_the_codes_and_messages_of_the_server() {
    if go::is_missing("Go gets the codes of the server") {
        return;
    }
    let fake = FakeServer::start(Behavior::Answer("")).await;
    for (code, name) in [
        (Code::InvalidArgument, "InvalidArgument"),
        (Code::NotFound, "NotFound"),
        (Code::ResourceExhausted, "ResourceExhausted"),
        (Code::Unavailable, "Unavailable"),
        (Code::Internal, "Internal"),
    ] {
        fake.set_behavior(Behavior::Refuse(code, format!("message for {name}")));
        let (exit, result) = run(&fake, &["--delete", CLOUD_ID]).await;
        assert_eq!(exit, Some(1));
        let error = &result["delete"]["error"];
        assert_eq!(
            (&error["code"], &error["message"]),
            (&name.into(), &format!("message for {name}").into())
        );
        assert_clean_exit(&result["delete"]);
    }
}

#[tokio::test]
async fn resource_type_0_means_none_and_returns_the_servers_default() {
    if go::is_missing("resource type 0 means none") {
        return;
    }
    let fake = FakeServer::start(Behavior::Answer("medium")).await;
    let (code, result) = run(&fake, &["--add-name", "myshoes-1", "--resource-type", "unknown"]).await;
    assert_eq!((code, &result["add"]["resource_type"]), (Some(0), &"medium".into()), "{result}");
    assert_eq!(fake.seen()[0].resource_type, "");
}

#[tokio::test]
async fn a_resource_type_beyond_myshoes_is_an_invalid_argument_for_go_too() {
    if go::is_missing("an unknown resource type is an invalid argument for Go too") {
        return;
    }
    let fake = FakeServer::start(Behavior::Answer("")).await;
    let (_, result) = run(&fake, &["--add-name", "myshoes-1", "--resource-type", "10"]).await;
    let error = &result["add"]["error"];
    assert_eq!(error["code"], "InvalidArgument", "{result}");
    assert!(
        error["message"].as_str().unwrap().contains("10")
            && error["message"].as_str().unwrap().contains("nano")
    );
    assert_eq!(fake.seen(), []);
}

/// The lines that go-plugin parsed from the plugin's log, and the lines that it copied unchanged.
async fn logged(fake: &FakeServer, args: &[&str]) -> (Vec<Value>, Vec<String>) {
    let log = tempfile::NamedTempFile::new().unwrap();
    let mut command = Command::new(host().await);
    command.args([
        "--plugin",
        BIN,
        "--server",
        &fake.addr.to_string(),
        "--delete",
        CLOUD_ID,
        "--timeout",
        "1s",
    ]);
    command.args(["--host-log", log.path().to_str().unwrap()]).args(args).kill_on_drop(true);
    let output = tokio::time::timeout(TIMEOUT, command.output()).await.expect("it ends").unwrap();
    let text = std::fs::read_to_string(log.path()).unwrap();
    let lines = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap_or_else(|e| panic!("{e}: {l}")));
    // A line in hclog's format keeps the name of its logger; others get another name from go-plugin.
    let names = ["shoes-vz-client", "plugin.shoes-vz-client"];
    let parsed = lines.filter(|line| line["@module"].as_str().is_some_and(|name| names.contains(&name)));
    let copied = String::from_utf8(output.stderr).unwrap();
    (parsed.collect(), copied.lines().map(str::to_owned).collect())
}

#[tokio::test]
async fn a_warning_reaches_the_hosts_logger_once_as_a_warning_with_its_fields() {
    if go::is_missing("a warning reaches the hosts logger once as a warning with its fields") {
        return;
    }
    let fake = FakeServer::down(Behavior::Hang).await;
    let (parsed, copied) = logged(&fake, &[]).await;
    assert_eq!(parsed.len(), 1, "{parsed:#?}");
    let warning = &parsed[0];
    assert_eq!(warning["@level"], "warn", "{warning}");
    assert_eq!(warning["@message"], "server unreachable; retrying");
    assert_eq!(warning["method"], "DeleteInstance");
    assert_eq!(warning["server"], fake.addr.to_string());
    assert!(warning["reason"].as_str().unwrap().contains("refused"), "{warning}");
    // The host chose to copy stderr to `ClientConfig.Stderr` as well.
    assert_eq!(copied.len(), 1, "{copied:?}");
}

#[tokio::test]
async fn at_the_default_level_a_call_that_works_logs_nothing_and_at_info_it_does() {
    if go::is_missing("at the default level a call that works logs nothing and at info it does") {
        return;
    }
    let fake = FakeServer::start(Behavior::Answer("")).await;
    let (parsed, copied) = logged(&fake, &[]).await;
    assert_eq!((parsed.len(), copied.len()), (0, 0), "{parsed:#?} {copied:?}");
    let (parsed, _) = logged(&fake, &["--plugin-log", "info"]).await;
    assert_eq!(
        (parsed.len(), &parsed[0]["@level"], &parsed[0]["cloud_id"]),
        (1, &"info".into(), &CLOUD_ID.into())
    );
    let (parsed, _) = logged(&fake, &["--plugin-log", "a=b=c"]).await;
    let message = parsed[0]["@message"].as_str().unwrap();
    assert!(parsed[0]["@level"] == "error" && message.contains("SHOESVZ_LOG"), "{parsed:#?}");
}

#[tokio::test]
async fn a_deadline_in_go_ends_a_call_that_hangs_and_cancels_it_on_the_server() {
    if go::is_missing("a deadline in Go ends a call that hangs") {
        return;
    }
    let fake = FakeServer::start(Behavior::Hang).await;
    let (_, result) = run(&fake, &["--add-name", "myshoes-1", "--timeout", "1s"]).await;
    let add = &result["add"];
    assert_eq!(add["error"]["code"], "DeadlineExceeded", "{result}");
    assert!(
        add["error"]["message"].as_str().unwrap().contains(&fake.addr.to_string()),
        "the reason comes from the plugin, not from Go: {result}"
    );
    assert_clean_exit(add);
    fake.until_abandoned().await;
}
