//! The supervisor: outlives the guest agent, so that the script's exit code is never lost. Std only, one thread.

use std::{
    fs::File,
    io::Write,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Command, ExitCode, ExitStatus, Stdio},
};

use super::{Files, write_whole};

/// Runs `dir`'s script to its end. Stdin is the lock file, kept open for as long as this process lives.
pub fn run(dir: &Path) -> ExitCode {
    let files = Files(dir.to_owned());
    // Fails only for a process group's leader, which a fresh child is not; it would then be detached enough.
    let _ = nix::unistd::setsid();
    let code = match script(&files) {
        Ok(status) => exit_code(status),
        Err(error) => {
            if let Ok(mut log) = File::options().append(true).open(files.log()) {
                let _ = writeln!(log, "shoes-vz: running the setup script with /bin/bash: {error}");
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
    let mut child = Command::new("/bin/bash")
        .arg(files.script())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .spawn()?;
    // Only so that a guest agent can end a script whose supervisor was killed; the script runs on without it.
    let _ = write_whole(&files.started(), child.id().to_string().as_bytes());
    child.wait()
}

pub(crate) fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
