//! Whether a hypervisor can save a VM at all, detected by asking it to.
//!
//! A save writes a VM's devices to a file by QEMU's migration to `file:…`, and leaves the memory out of it
//! (`x-ignore-shared`), because the memory is a file already. QEMU has `file:` since 8.2 (`MigrationAddressType` in its schema);
//! Debian 12's 7.2 and Ubuntu 22.04's 6.2 refuse it. The probe saves an
//! empty machine (`-machine none`), which takes 30 ms: a version number shows neither what a distribution backported nor
//! what it left out.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use serde::Deserialize;

use crate::temporary::Temporary;

/// More than enough on a busy host; a QEMU that does not answer for so long cannot save either.
const DEADLINE_SECONDS: u32 = 10;
const PROBE: &str = "saved-state-probe";
const NEEDED: &str = "saved states need QEMU 8.2 or newer (on Debian 12: `make setup-qemu`)";

/// Whether `program` can save VMs; else the reason, and what to do. `dir` holds the probe's file meanwhile.
pub(super) fn of_qemu(program: &Path, dir: &Path) -> Result<(), String> {
    let file = Temporary {
        path: dir.join(format!("{PROBE}.{}", std::process::id())),
        failure: "removing the file of the saved state probe failed",
    };
    // A QEMU that cannot save makes no file.
    let answer = ask(program, &file.path)?;
    match answer.failure {
        None if answer.saves => Ok(()),
        None => {
            Err(format!("{program:?} did not answer a request to save a VM{}; {NEEDED}", answer.version()))
        }
        Some(ref reason) => {
            Err(format!("{program:?}{} refused to save a VM ({reason}); {NEEDED}", answer.version()))
        }
    }
}

#[derive(Debug, Default)]
struct Answer {
    /// Its version.
    greeting: Option<String>,
    saves: bool,
    failure: Option<String>,
}

impl Answer {
    fn version(&self) -> String {
        self.greeting.as_ref().map(|version| format!(" (QEMU {version})")).unwrap_or_default()
    }
}

/// A line of QMP, reduced to what matters here.
#[derive(Deserialize)]
struct Line {
    #[serde(rename = "QMP")]
    greeting: Option<serde_json::Value>,
    id: Option<String>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

fn ask(program: &Path, file: &Path) -> Result<Answer, String> {
    let capabilities = ["events", "x-ignore-shared"];
    let capabilities = capabilities.map(|name| serde_json::json!({"capability": name, "state": true}));
    let commands = [
        serde_json::json!({"execute": "qmp_capabilities", "id": "hello"}),
        serde_json::json!({"execute": "migrate-set-capabilities", "id": "prepare",
            "arguments": {"capabilities": capabilities}}),
        serde_json::json!({"execute": "migrate", "id": "save",
            "arguments": {"uri": format!("file:{}", file.display())}}),
        serde_json::json!({"execute": "quit", "id": "quit"}),
    ];
    // coreutils' timeout ends a QEMU that hangs, even if this process is killed meanwhile.
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", &DEADLINE_SECONDS.to_string()]).arg(program);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-machine", "none", "-S"]);
    command.args(["-accel", "tcg", "-qmp", "stdio"]);
    let cannot = |what: &str, error: &dyn std::fmt::Display| format!("{what} {program:?} failed ({error})");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| cannot("starting timeout(1) for", &e))?;
    let text: String = commands.iter().map(|command| format!("{command}\n")).collect();
    // Far less than a pipe holds. A QEMU that has ended already gives the reason on its stderr.
    let written = child.stdin.take().map(|mut stdin| std::io::Write::write_all(&mut stdin, text.as_bytes()));
    let output = child.wait_with_output().map_err(|e| cannot("reading the answers of", &e))?;
    let mut answer = read(&output.stdout);
    if answer.greeting.is_none() {
        let stderr = shoes_vz_model::text::tail(&output.stderr, 3, 500);
        let unwritten = written.and_then(Result::err).map(|e| format!(", {e}")).unwrap_or_default();
        answer.failure = Some(format!("it ended with {}{unwritten}: {stderr}", output.status));
    }
    Ok(answer)
}

fn read(stdout: &[u8]) -> Answer {
    let mut answer = Answer::default();
    for line in stdout.split(|b| *b == b'\n') {
        // Any other output is neither a greeting nor an answer.
        let Ok(line) = serde_json::from_slice::<Line>(line) else { continue };
        if let Some(greeting) = line.greeting {
            let part = |name: &str| greeting["version"]["qemu"][name].as_u64().unwrap_or_default();
            answer.greeting = Some(format!("{}.{}.{}", part("major"), part("minor"), part("micro")));
        }
        match (line.id.as_deref(), line.error) {
            (_, Some(refusal)) => answer.failure = answer.failure.or(Some(refusal.desc)),
            (Some("save"), None) => answer.saves = true,
            _ => {}
        }
    }
    answer
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _, path::PathBuf};

    use super::*;

    /// A program that answers as a QEMU would.
    fn qemu(dir: &Path, answers: &[&str]) -> PathBuf {
        let path = dir.join("qemu");
        fs::write(dir.join("answers"), answers.join("\n") + "\n").unwrap();
        fs::write(&path, format!("#!/bin/sh\ncat {:?}\ncat > /dev/null\n", dir.join("answers"))).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    const HELLO_7_2: &str =
        r#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": ["oob"]}}"#;

    #[test]
    fn debian_12s_qemu_cannot_save_and_the_error_says_what_to_do() {
        let dir = tempfile::tempdir().unwrap();
        // As qemu-system-x86 1:7.2+dfsg-7+deb12u18 answers.
        let qemu = qemu(
            dir.path(),
            &[
                HELLO_7_2,
                r#"{"return": {}, "id": "hello"}"#,
                r#"{"return": {}, "id": "prepare"}"#,
                r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "MIGRATION", "data": {"status": "failed"}}"#,
                r#"{"id": "save", "error": {"class": "GenericError", "desc": "Parameter 'uri' expects a valid migration protocol"}}"#,
                r#"{"return": {}, "id": "quit"}"#,
            ],
        );
        let reason = of_qemu(&qemu, dir.path()).unwrap_err();
        for part in
            ["(QEMU 7.2.22)", "expects a valid migration protocol", "QEMU 8.2 or newer", "make setup-qemu"]
        {
            assert!(reason.contains(part), "{part}: {reason}");
        }
    }

    #[test]
    fn a_qemu_that_accepts_the_save_can() {
        let dir = tempfile::tempdir().unwrap();
        let qemu = qemu(
            dir.path(),
            &[HELLO_7_2, r#"{"return": {}, "id": "prepare"}"#, r#"{"return": {}, "id": "save"}"#],
        );
        assert_eq!(of_qemu(&qemu, dir.path()), Ok(()));
    }

    #[test]
    fn a_capability_that_was_removed_is_a_reason_too() {
        let dir = tempfile::tempdir().unwrap();
        let refused =
            r#"{"id": "prepare", "error": {"class": "GenericError", "desc": "x-ignore-shared is unknown"}}"#;
        let qemu = qemu(dir.path(), &[HELLO_7_2, refused, r#"{"return": {}, "id": "save"}"#]);
        assert!(of_qemu(&qemu, dir.path()).unwrap_err().contains("x-ignore-shared is unknown"));
    }

    #[test]
    fn the_reason_of_a_qemu_that_does_not_start_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = qemu(dir.path(), &[]);
        fs::write(&path, "#!/bin/sh\necho 'no machine none' >&2\nexit 1\n").unwrap();
        let reason = of_qemu(&path, dir.path()).unwrap_err();
        assert!(reason.contains("no machine none") && reason.contains("exit status: 1"), "{reason}");
        let reason = of_qemu(Path::new("/nowhere/qemu"), dir.path()).unwrap_err();
        assert!(reason.contains("/nowhere/qemu"), "{reason}");
    }

    #[test]
    fn this_hosts_qemu_is_asked_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let program = crate::arch::Arch::of_this_host().unwrap().program();
        let answer = of_qemu(Path::new(program), dir.path());
        assert!(answer.as_ref().err().is_none_or(|reason| reason.contains("refuses to save")), "{answer:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the probe's file is removed");
    }
}
