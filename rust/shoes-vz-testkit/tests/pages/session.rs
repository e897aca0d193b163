//! Commands that are run: one bash for each page, which keeps what they set, in a home and a checkout made for it.
//!
//! What is different from what a reader types, and nothing else:
//! - ports, addresses, the template and the directories of a real host are others ([`Session::rewritten`]);
//! - `make` is asked whether it has the target (what it would build is built: `bin/`, `target/template`);
//! - a server, an agent or a guest agent goes to the background, with or without `&`, and has to become ready; another
//!   one of the same program takes its place; each has to end well when the page is over;
//! - agents keep no VMs hot and save no states, so that a page's test costs one boot.

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

/// Longest a whole page may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// Before the first command.
const PRELUDE: &str = r#"
record() { echo "$*" >> "$RECORD"; }
# Every runner that is not over, by its cloud ID.
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
    /// The leader of what was started, and its group.
    shell: Option<Pid>,
}

/// Types a page's commands; how many there were, or what went wrong.
pub(crate) async fn run(page: &Page) -> Result<usize, String> {
    let blocks = page.blocks.iter().filter(|b| b.is_shell() && b.not_run.is_none());
    let typed: Vec<Typed> = blocks.flat_map(crate::Block::commands).collect();
    if typed.is_empty() {
        return Ok(0);
    }
    let mut session = Session::new();
    let script = session.script(&typed);
    let ended = session.type_in(&script).await;
    let record = fs::read_to_string(session.path("record")).unwrap_or_default();
    let results: Vec<(usize, i32)> = record
        .lines()
        .filter_map(|l| l.split_once(' '))
        .filter_map(|(at, status)| Some((at.parse().ok()?, status.parse().ok()?)))
        .collect();
    for (at, typed) in typed.iter().enumerate() {
        let place = format!("{}, line {}: {}", page.name, typed.line, typed.text);
        let said = session.said(&format!("out/{at}"));
        match results.iter().find(|(done, _)| *done == at) {
            None => {
                return Err(format!(
                    "{place}\ndid not end ({ended:?}); it printed:\n{said}\n{}",
                    session.logs()
                ));
            }
            Some((_, status)) if *status != typed.exit_code() => {
                return Err(format!(
                    "{place}\nended with exit code {status}; it printed:\n{said}\n{}",
                    session.logs()
                ));
            }
            Some(_) => {}
        }
    }
    for line in record.lines().filter_map(|l| l.strip_prefix("end ")) {
        // `end PROGRAM STATUS`. The guest agent may leave its end to the signal: there is nothing for it to put in order.
        if !line.ends_with(" 0") && line != "shoes-vz-runner-agent 143" {
            return Err(format!("{}: told to end, {line} (exit code)\n{}", page.name, session.logs()));
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
        // Itself out of the way.
        fs::write(&make, format!("#!/bin/bash\nPATH='{real}'\n{}\n", parse::make()))
            .expect("a stand-in is written");
        fs::set_permissions(&make, fs::Permissions::from_mode(0o755)).expect("it is made executable");
        session
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Ports, addresses and places of a real host, for this test's own; and a reader's own cloud ID.
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
                    // The guest agent has no such file; its API says when it is ready.
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

    async fn type_in(&mut self, script: &str) -> Result<std::process::ExitStatus, String> {
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
            // However full the machine is these tests run on.
            .env("SHOESVZ_AGENT_MIN_FREE_DISK", "0")
            .env("SHOESVZ_RUNNER_AGENT_STATE_DIR", self.path("state"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.path("shell.log")).expect("a log"))
            .process_group(0);
        let mut child = tokio::process::Command::from(command).kill_on_drop(true).spawn().expect("bash runs");
        self.shell = child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw);
        match tokio::time::timeout(PATIENCE, child.wait()).await {
            Ok(ended) => ended.map_err(|e| e.to_string()),
            Err(_) => Err(format!("it took longer than {PATIENCE:?}")),
        }
    }

    fn said(&self, name: &str) -> String {
        String::from_utf8_lossy(&fs::read(self.path(name)).unwrap_or_default()).into_owned()
    }

    /// What the shell itself said, and the ends of all commands' outputs.
    fn logs(&self) -> String {
        let mut logs = format!("--- shell\n{}", self.said("shell.log"));
        let mut names: Vec<_> =
            fs::read_dir(self.path("out")).into_iter().flatten().flatten().map(|e| e.file_name()).collect();
        names.sort();
        for name in names {
            let name = name.to_string_lossy().into_owned();
            let said = self.said(&format!("out/{name}"));
            let from = said.char_indices().rev().nth(3000).map_or(0, |(at, _)| at);
            logs.push_str(&format!("--- {name}\n{}\n", &said[from..]));
        }
        logs
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(shell) = self.shell {
            // Whatever it started and is still there; nothing, after a page that went well.
            let _ = killpg(shell, Signal::SIGKILL);
        }
        for pid in leftover::processes(self.dir.path()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// The program this command starts and that stays until it is ended.
fn daemon(foreground: &str) -> Option<&'static str> {
    let words: Vec<_> =
        foreground.split_whitespace().skip_while(|w| w.contains('=') && !w.starts_with('-')).collect();
    let program = words.first()?.rsplit('/').next()?;
    let first = words.get(1).copied().unwrap_or("run");
    if words.iter().any(|w| ["--help", "--version", "-h", "-V"].contains(w)) {
        return None;
    }
    match program {
        "shoes-vz-server" => Some("shoes-vz-server"),
        "shoes-vz-runner-agent" => Some("shoes-vz-runner-agent"),
        "shoes-vz-agent" if first == "run" || first.starts_with('-') => Some("shoes-vz-agent"),
        _ => None,
    }
}
