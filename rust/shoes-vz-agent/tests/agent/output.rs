//! Commands of the host agent whose output cannot be written, or contains text from others.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Output, Stdio},
};

const ID: &str = "00000000-0000-4000-8000-000000000001";

/// A runners path with one stopped VM, whose runner name contains terminal control sequences.
fn runners() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let bundle = dir.path().join(format!("{ID}.bundle"));
    fs::create_dir(&bundle).unwrap();
    let metadata = serde_json::json!({
        "runner_id": ID, "created_at": "2026-01-02T03:04:05Z", "state": "running",
        "updated_at": "2026-01-02T03:04:06Z", "runner_name": "東京\u{1b}[2J\u{9b}31m-1",
    });
    fs::write(bundle.join("RuntimeMetadata.json"), metadata.to_string()).unwrap();
    dir
}

fn list(runners: &Path, more: &[&str], stdout: Stdio) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoes-vz-agent"));
    command.args(["list", "--runners-path"]).arg(runners).args(more);
    command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
    command.spawn().unwrap().wait_with_output().unwrap()
}

#[test]
fn a_list_that_cannot_be_written_fails_and_a_closed_pipe_is_no_failure() {
    let dir = runners();
    for more in [&[][..], &["--json"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = list(dir.path(), more, full.into());
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("writing to stdout failed") && stderr.contains("No space left"), "{stderr}");

        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = list(dir.path(), more, writer.into());
        assert_eq!(output.status.code(), Some(0), "{output:?}");
        assert!(output.stderr.is_empty(), "{output:?}");
    }
}

#[test]
fn a_list_shows_relative_times_and_no_terminal_control_sequences() {
    let dir = runners();
    let shown = String::from_utf8(list(dir.path(), &[], Stdio::piped()).stdout).unwrap();
    let rows: Vec<_> = shown.lines().collect();
    assert!(rows.len() == 2 && rows[1].starts_with(ID) && rows[1].contains(" d ago"), "{shown}");
    assert!(rows[1].ends_with("東京-1") && rows[1].contains("stopped"), "{shown}");

    let json = String::from_utf8(list(dir.path(), &["--json"], Stdio::piped()).stdout).unwrap();
    assert!(!json.contains(['\u{1b}', '\u{9b}']), "{json:?}");
    let rows: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(rows[0]["runner_name"], "東京\u{1b}[2J\u{9b}31m-1");
    assert_eq!(rows[0]["created_at"], "2026-01-02T03:04:05Z");
}
