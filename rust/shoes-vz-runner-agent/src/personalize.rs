//! Making a restored guest unlike every other clone of its state (`POST /personalize`), and getting one ready to be saved
//! (`POST /prepare-save`).
//!
//! Most of it is root's to do. Ways, in turn:
//! 1. Linux with our own init: its socket, which the runner's user may use; it runs the helper, and changes sshd over;
//! 2. the helper itself, `shoes-vz-runner-agent personalize`, by `sudo -n` unless the guest agent is root.
//!
//! What is personalized travels by the helper's stdin: nothing of it is on a command line.

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

/// Of the init's answer, which is one line.
const MAX_ANSWER: u64 = 64 << 10;
/// The hidden subcommand.
pub const HELPER: &str = "personalize";
/// shoes-vz-guest-init's.
const INIT: &str = "/run/guest-init.sock";
/// A restored guest has nothing else to do; one that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(20);

/// Who does what is root's to do, and where the runner's keys are.
#[derive(Debug, Clone)]
pub struct Means {
    init: PathBuf,
    helper: Vec<PathBuf>,
    home: Option<PathBuf>,
}

impl Means {
    /// This guest's.
    pub(crate) fn of_this_guest(home: PathBuf) -> Self {
        let program = std::env::current_exe().unwrap_or_else(|_| "shoes-vz-runner-agent".into());
        let sudo: &[&str] = if Uid::effective().is_root() { &[] } else { &["sudo", "-n"] };
        let helper = sudo.iter().map(PathBuf::from).chain([program, HELPER.into()]).collect();
        Self { init: INIT.into(), helper, home: Some(home) }
    }

    /// Others, for tests.
    pub fn new(init: PathBuf, helper: Vec<PathBuf>, home: Option<PathBuf>) -> Self {
        Self { init, helper, home }
    }

    /// Does all that is asked for; the error is a sentence without any of it.
    pub async fn personalize(&self, personalization: &Personalization) -> Result<Personalized, String> {
        let roots = Personalization { authorized_key: String::new(), ..personalization.clone() };
        let personalized = match roots == Personalization::default() {
            true => Personalized::default(),
            false => self.personalize_as_root(&roots).await?,
        };
        // Last, so that a guest that could not be personalized lets nobody new in; the runner's own file, so here.
        if !personalization.authorized_key.is_empty() {
            let home = self.home.as_ref().ok_or("the runner's home directory is not known (HOME)")?;
            keys::authorize(home, &personalization.authorized_key)
                .map_err(|e| format!("the runner's authorized_keys cannot be written: {e}"))?;
        }
        Ok(personalized)
    }

    async fn personalize_as_root(&self, personalization: &Personalization) -> Result<Personalized, String> {
        // Strings and a number: this cannot fail.
        let request = serde_json::to_vec(personalization).unwrap_or_default();
        let answer = match self.init.exists() {
            true => self.ask_init(b"R", &request).await,
            false => self.run_helper(&request).await,
        }?;
        helper::understand(&answer)
    }

    /// Gets ready for a restore, as far as that helps here.
    pub async fn prepare_save(&self) -> Result<(), String> {
        match self.init.exists() {
            true => self.ask_init(b"P", b"").await.and_then(|answer| helper::understand(&answer)).map(drop),
            // Elsewhere sshd is started for each connection, or told to read its keys again.
            false => Ok(()),
        }
    }

    async fn ask_init(&self, what: &[u8], request: &[u8]) -> Result<Vec<u8>, String> {
        let asked = async {
            let mut stream = UnixStream::connect(&self.init).await?;
            stream.write_all(what).await?;
            stream.write_all(request).await?;
            stream.shutdown().await?;
            let mut answer = Vec::new();
            stream.take(MAX_ANSWER).read_to_end(&mut answer).await?;
            Ok::<_, io::Error>(answer)
        };
        match timeout(DEADLINE, asked).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(format!("asking the guest's init by {}: {error}", self.init.display())),
            Err(_) => Err(format!("the guest's init gave no answer within {} s", DEADLINE.as_secs())),
        }
    }

    async fn run_helper(&self, request: &[u8]) -> Result<Vec<u8>, String> {
        let Some((program, args)) = self.helper.split_first() else {
            return Err("there is no helper to run".into());
        };
        let named = |error: &dyn std::fmt::Display| format!("running {program:?} as root: {error}");
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
                let said = shoes_vz_model::text::tail(&output.stderr, 3, 500);
                Err(named(&format!("{}: {said}", output.status)))
            }
            Ok(Err(error)) => Err(named(&error)),
            Err(_) => Err(named(&format!("no end after {} s", DEADLINE.as_secs()))),
        }
    }
}
