//! The supervisor: it outlives the guest agent, so that the script's exit code is never lost. Only std, one thread.

use std::{
    fs::File,
    io::Write,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Command, ExitCode, ExitStatus, Stdio},
};

use shoes_vz_process::files::{Readers, replace};

use super::files;

/// First argument that makes this program the supervisor of the directory that follows.
pub const SUPERVISE: &str = "setup-supervise";
/// Third argument that makes it the script's process.
pub const SCRIPT: &str = "script";

/// Runs `dir`'s script to its end. Stdin is the lock file, kept open for as long as this process lives.
pub fn run(dir: &Path) -> ExitCode {
    // Fails only for the leader of a process group. A new child is not one, and a leader would be detached already.
    let _ = nix::unistd::setsid();
    let code = match script(dir) {
        Ok(status) => exit_code(status),
        Err(error) => {
            if let Ok(mut log) = File::options().append(true).open(dir.join(files::LOG)) {
                let _ = writeln!(log, "shoes-vz: starting the setup script failed: {error}");
            }
            127
        }
    };
    let _ = std::fs::remove_file(dir.join(files::SCRIPT));
    match replace(&dir.join(files::EXIT), code.to_string().as_bytes(), Readers::Owner) {
        Ok(()) => ExitCode::SUCCESS,
        // The guest agent finds no exit code, and reports that the supervisor was killed.
        Err(_) => ExitCode::FAILURE,
    }
}

fn script(dir: &Path) -> std::io::Result<ExitStatus> {
    replace(&dir.join(files::STARTED), b"", Readers::Owner)?;
    let log = File::options().append(true).open(dir.join(files::LOG))?;
    // This program again, which becomes bash: so the script's process group is recorded before its first command.
    Command::new(this_program()?)
        .args([SUPERVISE.as_ref(), dir.as_os_str(), SCRIPT.as_ref()])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .process_group(0)
        .status()
}

/// The script's process: records its ID and becomes bash.
pub fn become_script(dir: &Path) -> ExitCode {
    let group = std::process::id().to_string();
    let error = match replace(&dir.join(files::STARTED), group.as_bytes(), Readers::Owner) {
        Ok(()) => Command::new("/bin/bash").arg(dir.join(files::SCRIPT)).exec(),
        Err(error) => error,
    };
    shoes_vz_process::say(format_args!("shoes-vz: running the setup script with /bin/bash failed: {error}"));
    ExitCode::from(127)
}

fn this_program() -> std::io::Result<PathBuf> {
    // After an upgrade the path would name another program.
    if cfg!(target_os = "linux") { Ok("/proc/self/exe".into()) } else { std::env::current_exe() }
}

pub(crate) fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
