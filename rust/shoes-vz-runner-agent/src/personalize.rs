//! Gives a restored guest its own identity (`POST /personalize`), and prepares one for the save of its state
//! (`POST /prepare-save`).
//!
//! Most of it needs root. There are two ways:
//! 1. Linux with shoes-vz-guest-init: its socket, which the runner's user may use; it runs the helper, and replaces sshd;
//! 2. the helper itself, `shoes-vz-runner-agent personalize`, by `sudo -n` unless the guest agent is root.
//!
//! The helper gets the personalization, which holds secrets, on stdin, never on a command line.

pub mod helper;
mod keys;
#[cfg(target_os = "linux")]
mod sshd;

use std::{io, path::PathBuf, process::Stdio, time::Duration};

use nix::unistd::Uid;
use shoes_vz_model::guest::{Personalization, Personalized};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    process::Command,
    time::timeout,
};

/// Longest answer of init, which is one line.
const MAX_ANSWER: u64 = 64 << 10;
/// The hidden subcommand.
pub const HELPER: &str = "personalize";
/// shoes-vz-guest-init's socket.
const INIT: &str = "/run/guest-init.sock";
/// A restored guest has nothing else to do: one that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(20);

/// Does what needs root.
#[derive(Debug, Clone)]
pub struct PrivilegedHelper {
    init: PathBuf,
    command: Vec<PathBuf>,
    /// The runner's, where its authorized_keys is.
    home: PathBuf,
}

impl PrivilegedHelper {
    pub(crate) fn of_this_guest(home: PathBuf) -> Self {
        let program = std::env::current_exe().unwrap_or_else(|_| "shoes-vz-runner-agent".into());
        let sudo: &[&str] = if Uid::effective().is_root() { &[] } else { &["sudo", "-n"] };
        let command = sudo.iter().map(PathBuf::from).chain([program, HELPER.into()]).collect();
        Self { init: INIT.into(), command, home }
    }

    /// For tests.
    pub fn new(init: PathBuf, command: Vec<PathBuf>, home: PathBuf) -> Self {
        Self { init, command, home }
    }

    /// Applies every given part. The error is the reason, and never contains any of them.
    pub async fn personalize(&self, personalization: &Personalization) -> Result<Personalized, String> {
        let for_root = Personalization { authorized_key: String::new(), ..personalization.clone() };
        let personalized = match for_root == Personalization::default() {
            true => Personalized::default(),
            false => self.personalize_as_root(&for_root).await?,
        };
        // Last, so that a guest whose personalization failed accepts no new login. Not by root: the file is the runner's.
        if !personalization.authorized_key.is_empty() {
            keys::authorize(&self.home, &personalization.authorized_key)
                .map_err(|e| format!("writing the runner's authorized_keys failed: {e}"))?;
        }
        Ok(personalized)
    }

    async fn personalize_as_root(&self, personalization: &Personalization) -> Result<Personalized, String> {
        // Cannot fail for strings and a number.
        let request = serde_json::to_vec(personalization).unwrap_or_default();
        let answer = match self.init.exists() {
            true => self.ask_init(b"R", &request).await,
            false => self.run_helper(&request).await,
        }?;
        helper::parse_answer(&answer)
    }

    /// Prepares for a restore, where this guest's init can.
    pub async fn prepare_save(&self) -> Result<(), String> {
        match self.init.exists() {
            true => self.ask_init(b"P", b"").await.and_then(|answer| helper::parse_answer(&answer)).map(drop),
            // Other guests start sshd for each connection, or make it read its keys again.
            false => Ok(()),
        }
    }

    async fn ask_init(&self, kind: &[u8], request: &[u8]) -> Result<Vec<u8>, String> {
        let asked = async {
            let mut stream = UnixStream::connect(&self.init).await?;
            stream.write_all(kind).await?;
            stream.write_all(request).await?;
            stream.shutdown().await?;
            let mut answer = Vec::new();
            stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
            Ok::<_, io::Error>(answer)
        };
        match timeout(DEADLINE, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                Err(format!("requesting it from the guest's init at {} failed: {error}", self.init.display()))
            }
            Err(_) => Err(format!("the guest's init did not answer within {} s", DEADLINE.as_secs())),
        }
    }

    async fn run_helper(&self, request: &[u8]) -> Result<Vec<u8>, String> {
        let Some((program, args)) = self.command.split_first() else {
            return Err("there is no helper to run".into());
        };
        let failed =
            |error: &dyn std::fmt::Display| format!("running the helper {program:?} as root failed: {error}");
        let run = async {
            let mut child = Command::new(program)
                .args(args)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .kill_on_drop(true)
                .spawn()?;
            if let Some(mut stdin) = child.stdin.take() {
                stdin.write_all(request).await?;
            }
            child.wait_with_output().await
        };
        match timeout(DEADLINE, run).await {
            Ok(Ok(output)) if !output.stdout.is_empty() => Ok(output.stdout),
            Ok(Ok(output)) => {
                let stderr = shoes_vz_model::text::tail(&output.stderr, 3, 500);
                Err(failed(&format!("{}: {stderr}", output.status)))
            }
            Ok(Err(error)) => Err(failed(&error)),
            Err(_) => Err(failed(&format!("it did not end within {} s", DEADLINE.as_secs()))),
        }
    }
}
