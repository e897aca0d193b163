//! Powers the guest off, as an unprivileged user. Each way is tried in turn:
//!
//! 1. Linux with shoes-vz-guest-init: writes `poweroff` to its pipe, which the runner's user may do;
//! 2. `shutdown` or `poweroff`, by `sudo -n` unless the user is root (runners have sudo without a password; `-n` never asks).

use std::{io::Write, os::unix::fs::OpenOptionsExt, path::Path, process::Stdio, time::Duration};

use nix::unistd::Uid;
use tokio::{process::Command, time::timeout};

/// shoes-vz-guest-init's pipe.
const INIT: &str = "/run/guest-init";
const DEADLINE: Duration = Duration::from_secs(20);

/// Returns how it was done, or everything that was tried.
pub(crate) async fn off() -> Result<String, String> {
    let mut tried = Vec::new();
    if cfg!(target_os = "linux") {
        match ask_init(Path::new(INIT)) {
            Ok(()) => return Ok("guest-init was asked to power off".into()),
            Err(error) => tried.push(format!("{INIT}: {error}")),
        }
    }
    let command: &[&str] =
        if cfg!(target_os = "macos") { &["/sbin/shutdown", "-h", "now"] } else { &["/sbin/poweroff"] };
    let command =
        if Uid::current().is_root() { command.to_vec() } else { [&["sudo", "-n"], command].concat() };
    match run(&command).await {
        Ok(()) => Ok(format!("{} was run", command.join(" "))),
        Err(error) => {
            tried.push(format!("{}: {error}", command.join(" ")));
            Err(format!("powering the guest off failed: {}", tried.join("; ")))
        }
    }
}

fn ask_init(pipe: &Path) -> std::io::Result<()> {
    // Fails at once if the pipe has no reader.
    let nonblock = nix::fcntl::OFlag::O_NONBLOCK.bits();
    std::fs::OpenOptions::new().write(true).custom_flags(nonblock).open(pipe)?.write_all(b"poweroff\n")
}

async fn run(command: &[&str]) -> Result<(), String> {
    let Some((program, args)) = command.split_first() else {
        return Err("there is no command to run".into());
    };
    let output = Command::new(program).args(args).stdin(Stdio::null()).kill_on_drop(true).output();
    match timeout(DEADLINE, output).await {
        Ok(Ok(output)) if output.status.success() => Ok(()),
        Ok(Ok(output)) => {
            Err(format!("{}: {}", output.status, shoes_vz_model::text::tail(&output.stderr, 3, 500)))
        }
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("it did not end within {} s", DEADLINE.as_secs())),
    }
}
