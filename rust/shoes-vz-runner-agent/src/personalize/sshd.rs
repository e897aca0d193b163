//! An sshd that runs all the time reads its keys again on SIGHUP: it unlinks its pid file, and writes it anew once it
//! listens with the new ones (sshd(8); OpenSSH's sshd.c, which also catches SIGHUP before it first writes that file).
//! One that is started for each connection has no pid file and reads its keys each time.

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

/// Returns once new connections meet the key that is on disk now.
pub(super) fn read_keys_again() -> Result<(), String> {
    let path = Path::new(PID_FILE);
    let changes = Changes::of(path).map_err(|e| format!("{PID_FILE} cannot be watched: {e}"))?;
    // One on its way may have read the old key already, but cannot be told before it has its pid file.
    let there = changes.until(|| path.exists() || !is_any_starting(Path::new("/proc")));
    if !there {
        return Err(format!("sshd was started, but does not listen after {} s", DEADLINE.as_secs()));
    }
    let Ok(text) = fs::read_to_string(path) else { return Ok(()) };
    let pid = text.trim().parse().map_err(|_| format!("{PID_FILE} holds no process id"))?;
    let look = || fs::metadata(path).map(|m| (m.ino(), m.mtime(), m.mtime_nsec())).ok();
    let before = look();
    kill(Pid::from_raw(pid), Signal::SIGHUP).map_err(|e| format!("telling sshd ({pid}): {e}"))?;
    match changes.until(|| look().is_some_and(|now| Some(now) != before)) {
        true => Ok(()),
        false => Err(format!("sshd ({pid}) does not listen anew {} s after SIGHUP", DEADLINE.as_secs())),
    }
}

/// Tells of changes in a file's directory.
struct Changes {
    told: mpsc::Receiver<notify::Result<notify::Event>>,
    _watcher: notify::RecommendedWatcher,
}

impl Changes {
    fn of(file: &Path) -> notify::Result<Self> {
        let (tell, told) = mpsc::channel();
        let mut watcher = notify::recommended_watcher(tell)?;
        let directory = file.parent().unwrap_or(Path::new("/"));
        watcher.watch(directory, notify::RecursiveMode::NonRecursive)?;
        Ok(Self { told, _watcher: watcher })
    }

    /// Whether it came to be so within the deadline; looks at once, then at each change.
    fn until(&self, so: impl Fn() -> bool) -> bool {
        let end = Instant::now() + DEADLINE;
        while !so() {
            match self.told.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return so(),
            }
        }
        true
    }
}

/// Whether an sshd is between its start and its listening.
fn is_any_starting(proc: &Path) -> bool {
    let read = |entry: io::Result<fs::DirEntry>| fs::read(entry.ok()?.path().join("cmdline")).ok();
    fs::read_dir(proc).is_ok_and(|entries| entries.filter_map(read).any(|cmdline| is_starting(&cmdline)))
}

/// Once it listens or serves somebody, an sshd calls itself `sshd: …`; `-i` is one for a single connection.
fn is_starting(cmdline: &[u8]) -> bool {
    let mut words = cmdline.split(|b| *b == 0);
    let program = words.next().unwrap_or_default();
    let name = program.rsplit(|b| *b == b'/').next().unwrap_or_default();
    name == b"sshd" && !words.any(|word| word == b"-i")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_sshd_is_starting_until_it_calls_itself_a_listener() {
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
    fn processes_are_found_by_what_they_were_started_as() {
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
    fn a_change_is_waited_for_and_what_is_so_already_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let changes = Changes::of(&file).unwrap();
        assert!(changes.until(|| true));
        let writer = file.clone();
        let writing = std::thread::spawn(move || fs::write(writer, "7").unwrap());
        assert!(changes.until(|| file.exists()));
        writing.join().unwrap();
    }
}
