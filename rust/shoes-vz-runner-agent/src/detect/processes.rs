//! The runner's processes, told by their names.

use std::path::{Path, PathBuf};

use crate::settings::RunnerProcesses;

/// A process named like a part of the runner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its name; a script's is its own, not the interpreter's.
    pub name: String,
    /// Its command line, interpreter included.
    pub args: Vec<String>,
    /// Where it stands.
    pub cwd: Option<PathBuf>,
}

/// What they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sorted {
    /// A listener that listens.
    pub listener: bool,
    /// A worker.
    pub worker: bool,
    /// A configuration under way.
    pub configuring: bool,
    /// A script that keeps a listener running.
    pub wrapper: bool,
}

const LISTENER: &str = "Runner.Listener";
const WORKER: &str = "Runner.Worker";
const CONFIG: &str = "config.sh";
/// Names so common that only a process within the runner's directory counts.
const WRAPPERS: [&str; 3] = ["run.sh", "run-helper.sh", "runsvc.sh"];

fn is_interesting(name: &str) -> bool {
    name == LISTENER || name == WORKER || name == CONFIG || WRAPPERS.contains(&name)
}

/// Sorts processes; `runner_paths` are where a runner may live.
pub fn sort(processes: &[Process], runner_paths: &[PathBuf], which: RunnerProcesses) -> Sorted {
    let mut sorted = Sorted::default();
    let at_home = |p: &Process| {
        p.cwd.as_deref().is_some_and(|cwd| runner_paths.iter().any(|path| is_within(cwd, path)))
    };
    for process in processes {
        if which == RunnerProcesses::RunnerPath && !at_home(process) {
            continue;
        }
        match process.name.as_str() {
            WORKER => sorted.worker = true,
            LISTENER => match listener_command(&process.args) {
                // config.sh is a wrapper around `Runner.Listener configure`.
                Some("configure") => sorted.configuring = true,
                Some("remove" | "warmup" | "--version" | "--commit" | "--help" | "-h" | "--check") => {}
                _ => sorted.listener = true,
            },
            CONFIG if at_home(process) => sorted.configuring = true,
            name if WRAPPERS.contains(&name) && at_home(process) => sorted.wrapper = true,
            _ => {}
        }
    }
    sorted
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

/// Reads `/proc/*/stat`, and more only of those whose name fits: guests may be slow.
#[cfg(target_os = "linux")]
pub(crate) fn named_like_a_runner() -> Vec<Process> {
    let Ok(proc) = std::fs::read_dir("/proc") else { return Vec::new() };
    proc.flatten()
        .filter(|entry| entry.file_name().as_encoded_bytes().first().is_some_and(u8::is_ascii_digit))
        .filter_map(|entry| {
            // Gone meanwhile, mostly.
            let stat = std::fs::read(entry.path().join("stat")).ok()?;
            let name = alive(&stat).filter(|name| is_interesting(name))?.to_owned();
            let cmdline = std::fs::read(entry.path().join("cmdline")).ok()?;
            let args = cmdline.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
            Some(Process { name, args, cwd: std::fs::read_link(entry.path().join("cwd")).ok() })
        })
        .collect()
}

/// The name in `/proc/PID/stat` (`pid (name) state …`), of a process that is no zombie. proc(5) cuts names to 15
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
    // Fails only on systems it does not know.
    let Ok(mut system) = System::new() else { return Vec::new() };
    let kind = ProcessRefreshKind::nothing().with_cmd(UpdateKind::Always).with_cwd(UpdateKind::Always);
    system.refresh_processes_specifics(ProcessesToUpdate::All, true, kind);
    let mut found = Vec::new();
    for process in system.processes().values().filter(|p| p.status() != ProcessStatus::Zombie) {
        let args: Vec<String> = process.cmd().iter().map(|a| a.to_string_lossy().into_owned()).collect();
        // A script's process bears its interpreter's name; its own stands behind that in the command line.
        let own = process.name().to_string_lossy();
        let name = std::iter::once(own.as_ref())
            .chain(args.iter().take(3).map(|a| base_name(a)))
            .find(|name| is_interesting(name))
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

    fn sorted(processes: &[Process]) -> Sorted {
        sort(processes, &["/tmp/runner".into()], RunnerProcesses::Anywhere)
    }

    #[test]
    fn a_listener_that_configures_does_not_listen() {
        let configures =
            process(LISTENER, &["./bin/Runner.Listener", "configure", "--url", "x"], "/tmp/runner");
        assert_eq!(sorted(&[configures]), Sorted { configuring: true, ..Sorted::default() });
        let listens = process(LISTENER, &["/r/bin/Runner.Listener", "run", "--startuptype", "service"], "/");
        assert_eq!(sorted(&[listens]), Sorted { listener: true, ..Sorted::default() });
        let asked = process(LISTENER, &["bin/Runner.Listener", "--version"], "/tmp/runner");
        assert_eq!(sorted(&[asked]), Sorted::default());
        let script = process(LISTENER, &["/bin/bash", "bin/Runner.Listener", "run"], "/tmp/runner");
        assert!(sorted(&[script]).listener);
    }

    #[test]
    fn a_jobs_own_run_sh_is_not_the_runners() {
        assert!(sorted(&[process("run.sh", &["bash", "run.sh"], "/tmp/runner")]).wrapper);
        assert!(!sorted(&[process("run.sh", &["bash", "run.sh"], "/home/runner/project")]).wrapper);
    }

    #[test]
    fn another_runners_processes_can_be_left_out() {
        let home: &[PathBuf] = &["/tmp/runner".into()];
        let other = [
            process(LISTENER, &["bin/Runner.Listener", "run"], "/opt/runner"),
            process(WORKER, &[], "/opt/runner"),
        ];
        assert!(sort(&other, home, RunnerProcesses::Anywhere).listener);
        assert_eq!(sort(&other, home, RunnerProcesses::RunnerPath), Sorted::default());
        let own = process(WORKER, &[], "/tmp/runner");
        assert!(sort(&[own], home, RunnerProcesses::RunnerPath).worker);
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
