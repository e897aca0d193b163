//! The QEMU process: it dies with this one, and is never signalled once it is reaped.

use std::{
    io,
    process::{Child as StdChild, ChildStderr, Command, ExitStatus},
    sync::{Arc, Mutex, PoisonError},
    thread,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, waitid},
    },
    unistd::Pid,
};
use tokio::sync::oneshot;

/// A running process; dropping it kills it.
#[derive(Debug)]
pub(super) struct Child {
    killer: Killer,
    exit: oneshot::Receiver<io::Result<ExitStatus>>,
}

/// Can kill it.
#[derive(Debug, Clone)]
pub(super) struct Killer {
    pid: u32,
    /// False once reaped: from then on another process may have its number.
    unreaped: Arc<Mutex<bool>>,
}

impl Child {
    /// Starts `command` from a thread that lives as long as the child: its parent-death signal comes when the
    /// *thread* that forked it ends.
    pub(super) async fn spawn(mut command: Command) -> io::Result<(Self, Option<ChildStderr>)> {
        let (started, start) = oneshot::channel();
        let (exited, exit) = oneshot::channel();
        let unreaped = Arc::new(Mutex::new(true));
        let shared = unreaped.clone();
        thread::Builder::new().name("qemu-parent".into()).spawn(move || match command.spawn() {
            Ok(mut child) => {
                let stderr = child.stderr.take();
                let pid = child.id();
                if started.send(Ok((pid, stderr))).is_err() {
                    // The spawner was dropped meanwhile, so nothing else can end this child.
                    drop(child.kill());
                }
                // No task waits for the answer when the VM process is ending.
                drop(exited.send(reap(child, &shared)));
            }
            Err(e) => drop(started.send(Err(e))),
        })?;
        let (pid, stderr) = start.await.map_err(|_| {
            io::Error::other("the thread that starts QEMU ended, which is a bug in the VM process")
        })??;
        Ok((Self { killer: Killer { pid, unreaped }, exit }, stderr))
    }

    pub(super) fn pid(&self) -> u32 {
        self.killer.pid
    }

    pub(super) fn killer(&self) -> Killer {
        self.killer.clone()
    }

    /// May be dropped and called again until it has returned.
    pub(super) async fn exited(&mut self) -> io::Result<ExitStatus> {
        (&mut self.exit).await.map_err(|_| {
            io::Error::other("the thread that waits for QEMU ended, which is a bug in the VM process")
        })?
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.killer.kill();
    }
}

impl Killer {
    /// SIGKILL, unless it was reaped.
    pub(super) fn kill(&self) {
        let unreaped = self.unreaped.lock().unwrap_or_else(PoisonError::into_inner);
        if *unreaped
            && let Ok(pid) = i32::try_from(self.pid)
            && let Err(error) = kill(Pid::from_raw(pid), Signal::SIGKILL)
        {
            tracing::error!(pid, reason = %error, "killing QEMU failed");
        }
    }
}

fn reap(mut child: StdChild, unreaped: &Mutex<bool>) -> io::Result<ExitStatus> {
    let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
    // First wait without reaping, so that this child keeps its number until no killer can use it any more.
    while let Err(Errno::EINTR) = waitid(Id::Pid(pid), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {}
    let mut unreaped = unreaped.lock().unwrap_or_else(PoisonError::into_inner);
    *unreaped = false;
    child.wait()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::process::ExitStatusExt as _, process::Stdio};

    use super::*;

    #[tokio::test]
    async fn a_child_is_killed_by_its_killer_and_by_being_dropped() {
        let mut command = Command::new("sleep");
        command.arg("1000").stdin(Stdio::null());
        let (mut child, _) = Child::spawn(command).await.unwrap();
        child.killer().kill();
        assert_eq!(child.exited().await.unwrap().signal(), Some(9));
        child.killer().kill();

        let mut command = Command::new("sh");
        command.args(["-c", "echo up >&2; exec sleep 1000"]).stdin(Stdio::null()).stderr(Stdio::piped());
        let (child, stderr) = Child::spawn(command).await.unwrap();
        drop(child);
        // Its stderr ends only when it has exited.
        let stderr = tokio::task::spawn_blocking(move || io::read_to_string(stderr.unwrap()).unwrap());
        let stderr = stderr.await.unwrap();
        assert!(stderr.is_empty() || stderr == "up\n", "{stderr:?}");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_an_error() {
        let error = Child::spawn(Command::new("/nowhere/qemu")).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }
}
