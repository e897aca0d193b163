//! Finds the runner's processes by their names.

use std::path::{Path, PathBuf};

use super::decide::Observation;
use crate::settings::RunnerProcesses;

/// A process named like a part of the runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// For a script, the script's name, not the interpreter's.
    pub name: String,
    /// The command line, with the interpreter.
    pub args: Vec<String>,
    pub cwd: Option<PathBuf>,
}

const LISTENER: &str = "Runner.Listener";
const WORKER: &str = "Runner.Worker";
const CONFIG: &str = "config.sh";
/// These names are so common that only a process in the runner's directory counts.
const WRAPPERS: [&str; 3] = ["run.sh", "run-helper.sh", "runsvc.sh"];

fn is_runner_part(name: &str) -> bool {
    name == LISTENER || name == WORKER || name == CONFIG || WRAPPERS.contains(&name)
}

/// What the processes alone show. `runner_paths` are the directories where a runner may be installed.
pub fn classify(processes: &[Process], runner_paths: &[PathBuf], which: RunnerProcesses) -> Observation {
    let mut seen = Observation::default();
    let in_runner_path = |p: &Process| {
        p.cwd.as_deref().is_some_and(|cwd| runner_paths.iter().any(|path| is_within(cwd, path)))
    };
    for process in processes {
        if which == RunnerProcesses::RunnerPath && !in_runner_path(process) {
            continue;
        }
        match process.name.as_str() {
            WORKER => seen.worker = true,
            LISTENER => match listener_command(&process.args) {
                // config.sh is a wrapper around `Runner.Listener configure`.
                Some("configure") => seen.configuring = true,
                Some("remove" | "warmup" | "--version" | "--commit" | "--help" | "-h" | "--check") => {}
                _ => seen.listener = true,
            },
            CONFIG if in_runner_path(process) => seen.configuring = true,
            name if WRAPPERS.contains(&name) && in_runner_path(process) => seen.wrapper = true,
            _ => {}
        }
    }
    seen
}

fn is_within(cwd: &Path, runner: &Path) -> bool {
    // macOS: /tmp is a link to /private/tmp, and the kernel reports the latter.
    cwd.starts_with(runner) || runner.canonicalize().is_ok_and(|real| cwd.starts_with(real))
}

fn listener_command(args: &[String]) -> Option<&str> {
    let own = args.iter().position(|a| base_name(a) == LISTENER)?;
    args.get(own + 1).map(String::as_str)
}

fn base_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Reads `/proc/*/stat`, and the other files only of processes whose name fits, because guests may be slow.
#[cfg(target_os = "linux")]
pub(crate) fn named_like_a_runner() -> Vec<Process> {
    let Ok(proc) = std::fs::read_dir("/proc") else { return Vec::new() };
    proc.flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit))
        .filter_map(|entry| {
            // Fails when the process has ended meanwhile.
            let stat = std::fs::read(entry.path().join("stat")).ok()?;
            let name = alive(&stat).filter(|name| is_runner_part(name))?.to_owned();
            let cmdline = std::fs::read(entry.path().join("cmdline")).ok()?;
            let args = cmdline.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
            Some(Process { name, args, cwd: std::fs::read_link(entry.path().join("cwd")).ok() })
        })
        .collect()
}

/// The name in `/proc/PID/stat` (`pid (name) state …`); `None` for a zombie. proc(5) cuts names to 15
/// bytes: exactly `Runner.Listener`.
#[cfg(target_os = "linux")]
fn alive(stat: &[u8]) -> Option<&str> {
    let open = stat.iter().position(|b| *b == b'(')?;
    let close = stat.iter().rposition(|b| *b == b')')?;
    let state = *stat.get(close + 2)?;
    if matches!(state, b'Z' | b'X') {
        return None;
    }
    std::str::from_utf8(stat.get(open + 1..close)?).ok()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn named_like_a_runner() -> Vec<Process> {
    use sysinfo::{ProcessRefreshKind, ProcessStatus, ProcessesToUpdate, System, UpdateKind};
    // Fails only on systems that the crate does not support.
    let Ok(mut system) = System::new() else { return Vec::new() };
    let kind = ProcessRefreshKind::nothing().with_cmd(UpdateKind::Always).with_cwd(UpdateKind::Always);
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, kind);
    let mut found = Vec::new();
    for process in system.processes().values().filter(|p| p.status() != ProcessStatus::Zombie) {
        let args: Vec<String> = process.cmd().iter().map(|a| a.to_string_lossy().into_owned()).collect();
        // A script's process has its interpreter's name; the script's name follows in the command line.
        let own = process.name().to_string_lossy();
        let name = std::iter::once(own.as_ref())
            .chain(args.iter().take(3).map(|a| base_name(a)))
            .find(|name| is_runner_part(name))
            .map(str::to_owned);
        if let Some(name) = name {
            found.push(Process { name, args, cwd: process.cwd().map(Path::to_owned) });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(name: &str, args: &[&str], cwd: &str) -> Process {
        Process { name: name.into(), args: args.iter().map(|a| (*a).into()).collect(), cwd: Some(cwd.into()) }
    }

    fn classified(processes: &[Process]) -> Observation {
        classify(processes, &["/tmp/runner".into()], RunnerProcesses::Anywhere)
    }

    #[test]
    fn a_listener_that_configures_does_not_listen() {
        let configures =
            process(LISTENER, &["./bin/Runner.Listener", "configure", "--url", "x"], "/tmp/runner");
        assert_eq!(classified(&[configures]), Observation { configuring: true, ..Observation::default() });
        let listens = process(LISTENER, &["/r/bin/Runner.Listener", "run", "--startuptype", "service"], "/");
        assert_eq!(classified(&[listens]), Observation { listener: true, ..Observation::default() });
        let asked = process(LISTENER, &["bin/Runner.Listener", "--version"], "/tmp/runner");
        assert_eq!(classified(&[asked]), Observation::default());
        let script = process(LISTENER, &["/bin/bash", "bin/Runner.Listener", "run"], "/tmp/runner");
        assert!(classified(&[script]).listener);
    }

    #[test]
    fn a_jobs_own_run_sh_is_not_the_runners() {
        assert!(classified(&[process("run.sh", &["bash", "run.sh"], "/tmp/runner")]).wrapper);
        assert!(!classified(&[process("run.sh", &["bash", "run.sh"], "/home/runner/project")]).wrapper);
    }

    #[test]
    fn another_runners_processes_can_be_left_out() {
        let home: &[PathBuf] = &["/tmp/runner".into()];
        let other = [
            process(LISTENER, &["bin/Runner.Listener", "run"], "/opt/runner"),
            process(WORKER, &[], "/opt/runner"),
        ];
        assert!(classify(&other, home, RunnerProcesses::Anywhere).listener);
        assert_eq!(classify(&other, home, RunnerProcesses::RunnerPath), Observation::default());
        let own = process(WORKER, &[], "/tmp/runner");
        assert!(classify(&[own], home, RunnerProcesses::RunnerPath).worker);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn names_are_read_whatever_they_hold_and_zombies_are_not_alive() {
        assert_eq!(alive(b"7 (Runner.Listener) S 1 7"), Some("Runner.Listener"));
        assert_eq!(alive(b"7 (a) b (c) R 1"), Some("a) b (c"));
        assert_eq!(alive(b"7 (Runner.Worker) Z 1"), None);
        assert_eq!(alive(b""), None);
    }
}
