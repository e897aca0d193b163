//! An sshd that runs permanently reads its keys again on SIGHUP: it unlinks its pid file, and writes it again once it
//! listens with the new ones (sshd(8); OpenSSH's sshd.c, which also catches SIGHUP before it first writes that file).
//! An sshd that is started for each connection has no pid file, and reads its keys each time.

use std::{
    fs, io,
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::mpsc::{self, RecvTimeoutError},
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use notify::Watcher as _;

const PID_FILE: &str = "/run/sshd.pid";
const DEADLINE: Duration = Duration::from_secs(10);

/// Returns once new connections get the key that is on disk now.
pub(super) fn reload_keys() -> Result<(), String> {
    let path = Path::new(PID_FILE);
    let changes = Changes::of(path).map_err(|e| format!("watching {PID_FILE} failed: {e}"))?;
    // An sshd that is starting may have read the old key already, but its pid is not known before it has its pid file.
    let has_started = changes.wait_until(|| path.exists() || !is_any_starting(Path::new("/proc")));
    if !has_started {
        return Err(format!("sshd is starting, but did not listen within {} s", DEADLINE.as_secs()));
    }
    let Ok(text) = fs::read_to_string(path) else { return Ok(()) };
    let pid = text.trim().parse().map_err(|_| format!("{PID_FILE} does not hold a process ID"))?;
    let version = || fs::metadata(path).map(|m| (m.ino(), m.mtime(), m.mtime_nsec())).ok();
    let before = version();
    kill(Pid::from_raw(pid), Signal::SIGHUP)
        .map_err(|e| format!("sending SIGHUP to sshd ({pid}) failed: {e}"))?;
    match changes.wait_until(|| version().is_some_and(|now| Some(now) != before)) {
        true => Ok(()),
        false => {
            Err(format!("sshd ({pid}) did not listen again within {} s after SIGHUP", DEADLINE.as_secs()))
        }
    }
}

/// Changes in a file's directory.
struct Changes {
    events: mpsc::Receiver<notify::Result<notify::Event>>,
    _watcher: notify::RecommendedWatcher,
}

impl Changes {
    fn of(file: &Path) -> notify::Result<Self> {
        let (sender, events) = mpsc::channel();
        let mut watcher = notify::recommended_watcher(sender)?;
        let directory = file.parent().unwrap_or(Path::new("/"));
        watcher.watch(directory, notify::RecursiveMode::NonRecursive)?;
        Ok(Self { events, _watcher: watcher })
    }

    /// Whether `condition` becomes true within the deadline. Evaluates it at once, then at each change.
    fn wait_until(&self, condition: impl Fn() -> bool) -> bool {
        let end = Instant::now() + DEADLINE;
        while !condition() {
            match self.events.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return condition(),
            }
        }
        true
    }
}

/// Whether an sshd has started but does not listen yet.
fn is_any_starting(proc: &Path) -> bool {
    let read = |entry: io::Result<fs::DirEntry>| fs::read(entry.ok()?.path().join("cmdline")).ok();
    fs::read_dir(proc).is_ok_and(|entries| entries.filter_map(read).any(|cmdline| is_starting(&cmdline)))
}

/// Once it listens or serves a connection, sshd renames itself to `sshd: …`. `-i` is an sshd for a single connection.
fn is_starting(cmdline: &[u8]) -> bool {
    let mut args = cmdline.split(|b| *b == 0);
    let program = args.next().unwrap_or_default();
    let name = program.rsplit(|b| *b == b'/').next().unwrap_or_default();
    name == b"sshd" && !args.any(|arg| arg == b"-i")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_sshd_is_starting_until_it_renames_itself_to_a_listener() {
        assert!(is_starting(b"/usr/sbin/sshd\0-D\0-e\0"));
        assert!(is_starting(b"sshd\0"));
        for other in [
            &b"sshd: /usr/sbin/sshd -D -e [listener] 0 of 10-100 startups\0"[..],
            b"sshd: runner [priv]\0",
            b"/usr/sbin/sshd\0-i\0",
            b"/bin/bash\0-c\0/usr/sbin/sshd\0",
            b"/usr/sbin/sshd-keygen\0",
            b"",
        ] {
            assert!(!is_starting(other), "{}", String::from_utf8_lossy(other));
        }
    }

    #[test]
    fn processes_are_found_by_their_command_lines() {
        let proc = tempfile::tempdir().unwrap();
        let process = |pid: &str, cmdline: &str| {
            fs::create_dir(proc.path().join(pid)).unwrap();
            fs::write(proc.path().join(pid).join("cmdline"), cmdline).unwrap();
        };
        process("1", "/sbin/init\0");
        fs::write(proc.path().join("uptime"), "1 1").unwrap();
        assert!(!is_any_starting(proc.path()));
        process("7", "/usr/sbin/sshd\0-D\0");
        assert!(is_any_starting(proc.path()));
    }

    #[test]
    fn a_change_is_waited_for_unless_the_condition_holds_already() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let changes = Changes::of(&file).unwrap();
        assert!(changes.wait_until(|| true));
        let writer = file.clone();
        let writing = std::thread::spawn(move || fs::write(writer, "7").unwrap());
        assert!(changes.wait_until(|| file.exists()));
        writing.join().unwrap();
    }
}
