//! A long-lived process under test with its log. It is killed when its owner is dropped.

use std::{
    fs::{self, File},
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::process::{Child, Command};

#[derive(Debug)]
pub struct Daemon {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command`, its output appended to `log`.
    pub fn start(name: &'static str, command: &mut Command, log: &Path) -> io::Result<Self> {
        let out = File::options().create(true).append(true).open(log)?;
        Self::start_into(name, command, log, out.into())
    }

    /// Starts `command`, its stdout and stderr both `out`.
    pub fn start_into(
        name: &'static str,
        command: &mut Command,
        log: &Path,
        out: OwnedFd,
    ) -> io::Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("starting {name}: {e}")))?;
        Ok(Self { name, child, log: log.to_owned() })
    }

    /// Waits until the process has written the file `ready`; returns its content. Fails at once when the process ends.
    pub async fn ready(&mut self, ready: &Path, deadline: Duration) -> Result<String, String> {
        let end = tokio::time::Instant::now() + deadline;
        loop {
            if let Ok(text) = fs::read_to_string(ready) {
                return Ok(text);
            }
            if let Ok(status) = tokio::time::timeout(Duration::from_millis(10), self.child.wait()).await {
                return Err(format!(
                    "{} ended with {status:?} before it was ready:\n{}",
                    self.name,
                    self.log()
                ));
            }
            if tokio::time::Instant::now() > end {
                return Err(format!("{} was not ready within {deadline:?}:\n{}", self.name, self.log()));
            }
        }
    }

    /// `None` once the process has ended.
    pub fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Everything printed so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// Sends `signal` and waits for the end.
    pub async fn end(&mut self, signal: Signal) -> io::Result<ExitStatus> {
        if let Some(pid) = self.child.id() {
            kill(Pid::from_raw(i32::try_from(pid).map_err(io::Error::other)?), signal)?;
        }
        tokio::time::timeout(Duration::from_secs(30), self.child.wait())
            .await
            .map_err(|_| io::Error::other(format!("{} did not end within 30 s of {signal}", self.name)))?
    }
}
