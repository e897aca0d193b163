//! The real hashicorp/go-plugin, started as myshoes starts it, against this plugin and a fake server.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod common;

use std::path::{Path, PathBuf};

use common::{BIN, CLOUD_ID, Does, Fake, PATIENCE};
use serde_json::Value;
use shoes_vz_testkit::go;
use tokio::{process::Command, sync::OnceCell};
use tonic::Code;

/// A first build downloads its modules; a deadline, never waited for.
const BUILD_PATIENCE: std::time::Duration = std::time::Duration::from_secs(300);

/// Builds the Go program, once for all tests here.
async fn host() -> &'static Path {
    static HOST: OnceCell<PathBuf> = OnceCell::const_new();
    HOST.get_or_init(async || {
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../shoes-vz-testkit/conformance");
        let built = Path::new(env!("CARGO_TARGET_TMPDIR")).join("go-plugin-host");
        let go = Command::new("go").args(["build", "-o"]).arg(&built).arg(".").current_dir(source).output();
        let output = tokio::time::timeout(BUILD_PATIENCE, go).await.expect("`go build` ends");
        let output = output.expect("`go` runs");
        assert!(output.status.success(), "go build: {}", String::from_utf8_lossy(&output.stderr));
        built
    })
    .await
}

/// Runs the host; gives its exit code and its words.
async fn run(fake: &Fake, args: &[&str]) -> (Option<i32>, Value) {
    let mut command = Command::new(host().await);
    command.args(["--plugin", BIN, "--server", &fake.addr.to_string()]).args(args).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, command.output()).await.expect("it ends").unwrap();
    let words = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    (output.status.code(), words)
}

/// go-plugin ended this plugin, which went by itself and left nothing.
fn assert_gone(call: &Value) {
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
    let fake = Fake::start(Does::Answers("large")).await;
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
    let (code, told) =
        run(&fake, &[&add[..], &["--label", "a", "--label", "b", "--delete", "added"]].concat()).await;
    assert_eq!(code, Some(0), "{told}");

    let (add, delete) = (&told["add"], &told["delete"]);
    assert_eq!((&add["cloud_id"], &add["shoes_type"]), (&CLOUD_ID.into(), &"shoes-vz".into()));
    assert_eq!((&add["ip_address"], &add["resource_type"]), (&"192.0.2.7".into(), &"large".into()));
    assert_gone(add);
    assert_gone(delete);
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
async fn go_sees_the_servers_codes_and_words() {
    if go::is_missing("Go sees the server's codes") {
        return;
    }
    let fake = Fake::start(Does::Answers("")).await;
    for (code, name) in [
        (Code::InvalidArgument, "InvalidArgument"),
        (Code::NotFound, "NotFound"),
        (Code::ResourceExhausted, "ResourceExhausted"),
        (Code::Unavailable, "Unavailable"),
        (Code::Internal, "Internal"),
    ] {
        fake.now_does(Does::Refuses(code, format!("words for {name}")));
        let (exit, told) = run(&fake, &["--delete", CLOUD_ID]).await;
        assert_eq!(exit, Some(1));
        let error = &told["delete"]["error"];
        assert_eq!((&error["code"], &error["message"]), (&name.into(), &format!("words for {name}").into()));
        assert_gone(&told["delete"]);
    }
}

#[tokio::test]
async fn an_unknown_resource_type_is_an_invalid_argument_for_go_too() {
    if go::is_missing("an unknown resource type is an invalid argument for Go too") {
        return;
    }
    let fake = Fake::start(Does::Answers("")).await;
    let (_, told) = run(&fake, &["--add-name", "myshoes-1", "--resource-type", "unknown"]).await;
    assert_eq!(told["add"]["error"]["code"], "InvalidArgument", "{told}");
    assert_eq!(fake.seen(), []);
}

#[tokio::test]
async fn a_deadline_of_gos_ends_a_call_that_hangs_and_the_server_hears_of_it() {
    if go::is_missing("a deadline of Go's ends a call that hangs") {
        return;
    }
    let fake = Fake::start(Does::Hangs).await;
    let (_, told) = run(&fake, &["--add-name", "myshoes-1", "--timeout", "1s"]).await;
    let add = &told["add"];
    assert_eq!(add["error"]["code"], "DeadlineExceeded", "{told}");
    assert!(
        add["error"]["message"].as_str().unwrap().contains(&fake.addr.to_string()),
        "our words, not Go's: {told}"
    );
    assert_gone(add);
    fake.until_abandoned().await;
}
