//! Commands that are run: one bash for each page, which keeps their variables, in a separate home and checkout.
//!
//! The only differences from what a reader types:
//! - ports, addresses, the template and the directories of a real host are replaced ([`Session::rewritten`]);
//! - `make` only checks the target (its outputs exist already: `bin/`, `target/template`);
//! - a server, an agent or a guest agent runs in the background, with or without `&`, and must become ready; a second start
//!   of the same program ends the first one; each must end with success at the end of the page;
//! - agents keep no hot VMs and save no states, so that the test of a page costs one boot.

use std::{
    fs,
    os::unix::{
        fs::{PermissionsExt as _, symlink},
        process::CommandExt as _,
    },
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill, killpg},
    unistd::Pid,
};
use shoes_vz_testkit::{
    bins::{Bins, repository, test_template},
    leftover, ports,
};
use tempfile::TempDir;

use crate::{
    page::{Page, Typed},
    parse,
};

/// For a whole page.
const TIMEOUT: Duration = Duration::from_secs(300);

/// Runs before the first command.
const PRELUDE: &str = r#"
record() { echo "$*" >> "$RECORD"; }
# The cloud ID of the newest runner.
cloud_id() { shoes-vz-client list --all --json | grep -o 'shoes-vz-[0-9a-f]\{8\}-[0-9a-f-]\{27\}' | tail -n 1; }
declare -A daemons=()
is_ready() { # program, file
    case $1 in
        shoes-vz-runner-agent) curl -sf "http://127.0.0.1:$GUEST_PORT/health" > /dev/null ;;
        *) [ -e "$2" ] ;;
    esac
}
until_ready() { # program, file
    local deadline=$((SECONDS + 60))
    while ! is_ready "$1" "$2"; do
        ((SECONDS < deadline)) || { echo "$1 was not ready within 60 s"; return 1; }
        kill -0 "${daemons[$1]}" 2> /dev/null || { wait "${daemons[$1]}"; echo "$1 ended: exit code $?"; return 1; }
        sleep 0.05
    done
}
end() { # program
    [ -n "${daemons[$1]:-}" ] || return 0
    kill "${daemons[$1]}" 2> /dev/null
    wait "${daemons[$1]}"
    local status=$?
    unset "daemons[$1]"
    return $status
}
"#;

struct Session {
    dir: TempDir,
    ports: Vec<(&'static str, u16)>,
    /// The leader of the process group.
    shell: Option<Pid>,
}

/// Runs the commands of a page; returns their number.
pub(crate) async fn run(page: &Page) -> Result<usize, String> {
    let blocks = page.blocks.iter().filter(|b| b.is_shell() && b.not_run.is_none());
    let typed: Vec<Typed> = blocks.flat_map(crate::Block::commands).collect();
    if typed.is_empty() {
        return Ok(0);
    }
    let mut session = Session::new();
    let script = session.script(&typed);
    let ended = session.run_script(&script).await;
    let record = fs::read_to_string(session.path("record")).unwrap_or_default();
    let results: Vec<(usize, i32)> = record
        .lines()
        .filter_map(|l| l.split_once(' '))
        .filter_map(|(at, status)| Some((at.parse().ok()?, status.parse().ok()?)))
        .collect();
    for (at, typed) in typed.iter().enumerate() {
        let place = format!("{}, line {}: {}", page.name, typed.line, typed.text);
        let output = session.output(&format!("out/{at}"));
        match results.iter().find(|(done, _)| *done == at) {
            None => {
                return Err(format!(
                    "{place}\ndid not end ({ended:?}); it printed:\n{output}\n{}",
                    session.logs()
                ));
            }
            Some((_, status)) if *status != typed.exit_code() => {
                return Err(format!(
                    "{place}\nended with exit code {status}; it printed:\n{output}\n{}",
                    session.logs()
                ));
            }
            Some(_) => {}
        }
    }
    for line in record.lines().filter_map(|l| l.strip_prefix("end ")) {
        // `end PROGRAM STATUS`. The guest agent may end by the signal, because it has nothing to clean up.
        if !line.ends_with(" 0") && line != "shoes-vz-runner-agent 143" {
            return Err(format!("{}: exit code on SIGTERM: {line}\n{}", page.name, session.logs()));
        }
    }
    Ok(typed.len())
}

impl Session {
    fn new() -> Self {
        // Short, since Unix socket paths are.
        let dir = tempfile::Builder::new().prefix("pg").tempdir().expect("a temporary directory");
        let ports = ["50051", "9090", "8080", "8081"].map(|literal| (literal, ports::fixed().port())).into();
        let session = Self { dir, ports, shell: None };
        for folder in ["out", "ready", "bin", "h", "c/bin", "c/target", "opt/runners", "state"] {
            fs::create_dir_all(session.path(folder)).expect("a directory");
        }
        fs::set_permissions(session.path("state"), fs::Permissions::from_mode(0o700))
            .expect("it is made private");
        let bins = Bins::find();
        for program in crate::programs::PROGRAMS {
            symlink(bins.path(program), session.path("c/bin").join(program)).expect("a link");
        }
        for entry in fs::read_dir(repository()).expect("the repository").flatten() {
            let name = entry.file_name();
            if !["target", "bin", ".git"].iter().any(|own| name == *own) {
                symlink(entry.path().canonicalize().expect("a path"), session.path("c").join(name))
                    .expect("a link");
            }
        }
        symlink(test_template(), session.path("c/target/template")).expect("a link");
        let make = session.path("bin/make");
        let real = std::env::var("PATH").unwrap_or_default();
        // With the real PATH, so that it does not call itself.
        fs::write(&make, format!("#!/bin/bash\nPATH='{real}'\n{}\n", parse::make()))
            .expect("a stand-in is written");
        fs::set_permissions(&make, fs::Permissions::from_mode(0o755)).expect("it is made executable");
        session
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Replaces ports, addresses and directories of a real host, and the cloud ID.
    fn rewritten(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (literal, port) in &self.ports {
            for before in [":", " ", "="] {
                text = text.replace(&format!("{before}{literal}"), &format!("{before}{port}"));
            }
        }
        let there = |name: &str| self.path(name).display().to_string();
        for (literal, with) in [
            ("/opt/myshoes/vz/templates/macos-26", there("c/target/template")),
            ("/opt/myshoes/vz/runners", there("opt/runners")),
            ("/tmp/runner", there("opt/guest-runner")),
            ("192.168.64.1", "127.0.0.1".into()),
            ("shoes-vz-…", "\"$(cloud_id)\"".into()),
        ] {
            text = text.replace(literal, &with);
        }
        text
    }

    fn script(&self, typed: &[Typed]) -> String {
        let mut script = String::from(PRELUDE);
        for (at, command) in typed.iter().enumerate() {
            let text = self.rewritten(&command.text);
            let out = self.path(&format!("out/{at}")).display().to_string();
            match daemon(&command.foreground()) {
                Some(program) => {
                    let ready = self.path(&format!("ready/{at}")).display().to_string();
                    // The guest agent has no ready file; its API shows when it is ready.
                    let variable = match program {
                        "shoes-vz-server" => "SHOESVZ_SERVER_READY_FILE",
                        "shoes-vz-agent" => "SHOESVZ_AGENT_READY_FILE",
                        _ => "NO_READY_FILE",
                    };
                    let foreground = self.rewritten(&command.foreground());
                    script.push_str(&format!(
                        "end {program} || record end {program} $?\nexport {variable}={ready}\n\
                         {foreground} > {out} 2>&1 < /dev/null &\ndaemons[{program}]=$!\n\
                         unset {variable}\nuntil_ready {program} {ready} >> {out}\nrecord {at} $?\n"
                    ));
                }
                None => {
                    script.push_str(&format!("{{\n{text}\n}} > {out} 2>&1 < /dev/null\nrecord {at} $?\n"))
                }
            }
        }
        for program in ["shoes-vz-agent", "shoes-vz-runner-agent", "shoes-vz-server"] {
            script.push_str(&format!("end {program}\nrecord end {program} $?\n"));
        }
        script
    }

    async fn run_script(&mut self, script: &str) -> Result<std::process::ExitStatus, String> {
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap_or_default());
        let guest_port =
            self.ports.iter().find(|(l, _)| *l == "8080").map(|(_, p)| p.to_string()).unwrap_or_default();
        let mut command = std::process::Command::new("bash");
        for (name, _) in std::env::vars_os().filter(|(n, _)| n.to_string_lossy().starts_with("SHOESVZ_")) {
            command.env_remove(name);
        }
        command
            .args(["-c", script])
            .current_dir(self.path("c"))
            .env("PATH", path)
            .env("HOME", self.path("h"))
            .env("RECORD", self.path("record"))
            .env("GUEST_PORT", guest_port)
            .env("SHOESVZ_AGENT_HOT", "none")
            .env("SHOESVZ_AGENT_SAVED_STATES", "off")
            // The machine may be nearly full.
            .env("SHOESVZ_AGENT_MIN_FREE_DISK", "0")
            .env("SHOESVZ_RUNNER_AGENT_STATE_DIR", self.path("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.path("shell.log")).expect("a log"))
            .process_group(0);
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn().expect("bash runs");
        self.shell = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        match tokio::time::timeout(TIMEOUT, child.wait()).await {
            Ok(ended) => ended.map_err(|e| e.to_string()),
            Err(_) => Err(format!("it took longer than {TIMEOUT:?}")),
        }
    }

    fn output(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(name)).unwrap_or_default()).into_owned()
    }

    /// The errors of the shell, and the ends of the outputs of all commands.
    fn logs(&self) -> String {
        let mut logs = format!("--- shell\n{}", self.output("shell.log"));
        let mut names: Vec<_> =
            fs::read_dir(self.path("out")).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
        names.sort();
        for name in names {
            let name = name.to_string_lossy().into_owned();
            let output = self.output(&format!("out/{name}"));
            let from = output.char_indices().rev().nth(3000).map_or(0, |(at, _)| at);
            logs.push_str(&format!("--- {name}\n{}\n", &output[from..]));
        }
        logs
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(shell) = self.shell {
            // After a failed page processes may be left.
            let _ = killpg(shell, Signal::SIGKILL);
        }
        for pid in leftover::processes(self.dir.path()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// The long-running program that this command starts.
fn daemon(foreground: &str) -> Option<&'static str> {
    let arguments: Vec<_> =
        foreground.split_whitespace().skip_while(|w| w.contains('=') && !w.starts_with('-')).collect();
    let program = arguments.first()?.rsplit('/').next()?;
    let first = arguments.get(1).copied().unwrap_or("run");
    if arguments.iter().any(|w| ["--help", "--version", "-h", "-V"].contains(w)) {
        return None;
    }
    match program {
        "shoes-vz-server" => Some("shoes-vz-server"),
        "shoes-vz-runner-agent" => Some("shoes-vz-runner-agent"),
        "shoes-vz-agent" if first == "run" || first.starts_with('-') => Some("shoes-vz-agent"),
        _ => None,
    }
}
