//! The programs that the first process starts, and the collection of its exited children.

use std::{
    os::unix::process::CommandExt,
    process::{Child, Command},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
};

use nix::{
    errno::Errno,
    sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    unistd::Pid,
};

use super::{event::Event, log::error};

/// User and group ID of the runner.
pub(super) const RUNNER: u32 = 1000;
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The socket that sshd reports its readiness to.
pub(super) const NOTIFY: &str = "/run/guest-init.notify";
pub(super) const GUEST_AGENT: &str = "/usr/local/bin/shoes-vz-runner-agent";

pub(super) fn sshd() -> Command {
    let mut command = Command::new("/usr/sbin/sshd");
    // -e: errors go to the console. -r: the program is not loaded again for each connection.
    command.args(["-D", "-e", "-r"]).env_clear().env("PATH", PATH).env("NOTIFY_SOCKET", NOTIFY);
    command
}

pub(super) fn guest_agent() -> Command {
    let mut command = Command::new(GUEST_AGENT);
    command
        .env_clear()
        .envs([
            ("PATH", PATH),
            ("HOME", "/home/runner"),
            ("USER", "runner"),
            ("LOGNAME", "runner"),
            ("SHELL", "/bin/bash"),
            ("LANG", "C.UTF-8"),
        ])
        .current_dir("/home/runner")
        .uid(RUNNER)
        .gid(RUNNER);
    command
}

/// Starts children that [`reap`] collects.
#[derive(Clone)]
pub(super) struct Spawner {
    /// Held while a child is started, so that the reaper cannot collect one that `Command` still waits for.
    fork: Arc<Mutex<()>>,
    /// Wakes the reaper: there are children again.
    wake: mpsc::Sender<()>,
}

impl Spawner {
    /// With the receiver for [`reap`].
    pub(super) fn new() -> (Self, mpsc::Receiver<()>) {
        let (wake, spawned) = mpsc::channel();
        (Self { fork: Arc::default(), wake }, spawned)
    }

    pub(super) fn spawn(&self, command: &mut Command) -> std::io::Result<Child> {
        let starting = lock(&self.fork);
        let started = command.spawn();
        drop(starting);
        self.wake_reaper();
        started
    }

    /// Makes the reaper look again, and report when there is no child.
    pub(super) fn wake_reaper(&self) {
        // The reaper lives as long as this process.
        let _ = self.wake.send(());
    }
}

/// Reports each child that exits; without children, waits for `spawned`.
pub(super) fn reap(spawner: &Spawner, spawned: &mpsc::Receiver<()>, events: &mpsc::Sender<Event>) {
    loop {
        match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Ok(_) => {
                let _no_child_is_being_started = lock(&spawner.fork);
                while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                    let (pid, how) = match status {
                        WaitStatus::Exited(pid, code) => (pid, format!("exit code {code}")),
                        WaitStatus::Signaled(pid, signal, _) => (pid, format!("killed by {signal}")),
                        _ => break,
                    };
                    let _ = events.send(Event::Exited(pid, how));
                }
            }
            Err(Errno::ECHILD) => {
                let _ = events.send(Event::NoChildren);
                if spawned.recv().is_err() {
                    return;
                }
            }
            Err(Errno::EINTR) => {}
            Err(e) => return error(&format!("waiting for children failed: {e}")),
        }
    }
}

fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
