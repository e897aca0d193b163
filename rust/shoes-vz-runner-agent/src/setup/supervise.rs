//! The supervisor: outlives the guest agent, so that the script's exit code is never lost. Std only, one thread.

use std::{
    fs::File,
    io::Write,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus, Stdio},
};

use super::{Files, SUPERVISE, write_whole};

/// Runs `dir`'s script to its end. Stdin is the lock file, kept open for as long as this process lives.
pub fn run(dir: &Path) -> ExitCode {
    let files = Files(dir.to_owned());
    // Fails only for a process group's leader, which a fresh child is not; it would then be detached enough.
    let _ = nix::unistd::setsid();
    let code = match script(&files) {
        Ok(status) => exit_code(status),
        Err(error) => {
            if let Ok(mut log) = File::options().append(true).open(files.log()) {
                let _ = writeln!(log, "shoes-vz: starting the setup script: {error}");
            }
            127
        }
    };
    let _ = std::fs::remove_file(files.script());
    match write_whole(&files.exit(), code.to_string().as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        // The guest agent finds no exit code and says that the supervisor was lost.
        Err(_) => ExitCode::FAILURE,
    }
}

fn script(files: &Files) -> std::io::Result<ExitStatus> {
    write_whole(&files.started(), b"")?;
    let log = File::options().append(true).open(files.log())?;
    // This program once more, which becomes bash: so that the script's process is on record before its first command.
    Command::new(this_program()?)
        .args([SUPERVISE.as_ref(), files.0.as_os_str(), SCRIPT.as_ref()])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .status()
}

/// Third argument of the script's own process.
pub const SCRIPT: &str = "script";

/// The script's own process: says who it is and becomes bash.
pub fn become_script(dir: &Path) -> ExitCode {
    let files = Files(dir.to_owned());
    let error = match write_whole(&files.started(), std::process::id().to_string().as_bytes()) {
        Ok(()) => Command::new("/bin/bash").arg(files.script()).exec(),
        Err(error) => error,
    };
    shoes_vz_process::say(format_args!("shoes-vz: running the setup script with /bin/bash: {error}"));
    ExitCode::from(127)
}

fn this_program() -> std::io::Result<PathBuf> {
    // A path would name another program after an upgrade.
    if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe() }
}

pub(crate) fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
