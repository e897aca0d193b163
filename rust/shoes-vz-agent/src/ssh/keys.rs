//! Which private keys log into guests: one that is named, or those of this user, found as `ssh` finds them.
//!
//! ```text
//! SSH_AUTH_SOCK ─▶ the SSH agent's keys ─┐
//! ~/.ssh/id_rsa, id_ecdsa, id_ed25519 ───┴─▶ the key accepted last goes first ─▶ offered, a few in each connection
//! ```

use std::{
    env, fmt, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use russh::keys::{
    Algorithm, HashAlg, PrivateKey, PublicKey,
    agent::{AgentIdentity, client::AgentClient},
    decode_secret_key,
};
use shoes_vz_model::text;
use shoes_vz_process::files;
use tokio::{net::UnixStream, task::spawn_blocking, time::timeout};

/// In the order of `ssh` (readconf.c, `fill_default_options`). Keys of security tokens (`_sk`) sign in hardware only, which
/// an SSH agent does; OpenSSH no longer has DSA and XMSS.
const FILES: [&str; 3] = ["id_rsa", "id_ecdsa", "id_ed25519"];
/// Bytes; far more than any private key in a file.
const MAX_FILE: u64 = 64 << 10;
/// An SSH agent answers at once; one that does not is skipped.
const AGENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Characters of a key's comment that appear in a message: an SSH agent accepts any comment.
const MAX_COMMENT: usize = 80;

/// Which private keys log into guests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoginKeys {
    /// The one in this file: `--ssh-key`, or the template's `ssh_key_file`.
    File(PathBuf),
    /// Those of this user, as `ssh` offers them: what the Go implementation does without `-ssh-key`.
    User(UserKeys),
}

impl LoginKeys {
    /// The file's key, else those of the user who runs this program.
    pub fn file_or_user(file: Option<PathBuf>) -> Self {
        file.map_or_else(|| Self::User(UserKeys::of_this_user()), Self::File)
    }
}

impl<P: AsRef<Path> + ?Sized> From<&P> for LoginKeys {
    fn from(file: &P) -> Self {
        Self::File(file.as_ref().to_owned())
    }
}

/// Where a user's keys are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UserKeys {
    /// The SSH agent's socket.
    pub agent: Option<PathBuf>,
    /// `~/.ssh`.
    pub directory: Option<PathBuf>,
}

impl UserKeys {
    /// Of the user who runs this program.
    pub fn of_this_user() -> Self {
        let agent = env::var_os("SSH_AUTH_SOCK").filter(|path| !path.is_empty()).map(PathBuf::from);
        let home = env::home_dir().filter(|home| !home.as_os_str().is_empty());
        Self { agent, directory: home.map(|home| home.join(".ssh")) }
    }

    /// Looks them up now: a key that is added later is found the next time.
    pub(super) async fn find(&self) -> FoundKeys {
        let mut found = FoundKeys::default();
        match &self.agent {
            None => found.skip("the SSH agent", "SSH_AUTH_SOCK is not set"),
            Some(socket) => match timeout(AGENT_TIMEOUT, list_agent_keys(socket)).await {
                Ok(Ok(identities)) => found.take_from_agent(socket, identities),
                Ok(Err(reason)) => found.skip(&format!("the SSH agent at {socket:?}"), reason),
                Err(_) => found.skip(
                    &format!("the SSH agent at {socket:?}"),
                    format!("it did not answer within {} s", AGENT_TIMEOUT.as_secs()),
                ),
            },
        }
        let Some(directory) = &self.directory else {
            found.skip("~/.ssh", "this user has no home directory");
            return found;
        };
        for name in FILES {
            let path = directory.join(name);
            let loaded = spawn_blocking({
                let path = path.clone();
                move || load(&path)
            });
            match loaded.await {
                Ok(Ok(key)) => found.take(Source::File(Arc::new(key)), format!("{}", path.display())),
                Ok(Err(LoadError { public: Some(public), .. })) if found.has(&public) => {}
                Ok(Err(error)) => found.skip(&path.display().to_string(), error.reason),
                Err(error) => found.skip(&path.display().to_string(), error),
            }
        }
        found
    }
}

/// Why a file holds no usable key.
#[derive(Debug)]
pub(super) struct LoadError {
    pub(super) reason: String,
    /// The public half, which a file under a passphrase still shows.
    public: Option<Box<PublicKey>>,
}

pub(super) fn load(path: &Path) -> Result<PrivateKey, LoadError> {
    let unusable = |reason: String| LoadError { reason, public: None };
    let text = match files::read_text(path, MAX_FILE) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(unusable("there is no such file".into()));
        }
        Err(e) => return Err(unusable(format!("it cannot be read ({e})"))),
    };
    let key = decode_secret_key(&text, None);
    key.map_err(|error| match PrivateKey::from_openssh(&text) {
        Ok(locked) if locked.is_encrypted() => LoadError {
            reason: "it is protected by a passphrase; add it to the SSH agent with `ssh-add`".into(),
            public: Some(Box::new(locked.public_key().clone())),
        },
        _ if matches!(error, russh::keys::Error::KeyIsEncrypted) => {
            unusable("it is protected by a passphrase; add it to the SSH agent with `ssh-add`".into())
        }
        _ => unusable(format!("it is not a valid private key ({error})")),
    })
}

async fn list_agent_keys(socket: &Path) -> Result<Vec<AgentIdentity>, String> {
    let mut agent = AgentClient::connect_uds(socket).await.map_err(|e| e.to_string())?;
    agent.request_identities().await.map_err(|e| format!("it did not list its keys ({e})"))
}

#[derive(Clone)]
pub(super) struct Candidate {
    pub(super) source: Source,
    /// For messages: where it comes from.
    pub(super) name: String,
}

#[derive(Clone)]
pub(super) enum Source {
    File(Arc<PrivateKey>),
    Agent { socket: PathBuf, key: PublicKey },
}

impl Candidate {
    pub(super) fn public(&self) -> &PublicKey {
        match &self.source {
            Source::File(key) => key.public_key(),
            Source::Agent { key, .. } => key,
        }
    }

    pub(super) fn is_rsa(&self) -> bool {
        matches!(self.public().algorithm(), Algorithm::Rsa { .. })
    }
}

impl Source {
    pub(super) async fn connect(socket: &Path) -> Result<AgentClient<UnixStream>, String> {
        let connecting = timeout(AGENT_TIMEOUT, AgentClient::connect_uds(socket));
        let connected = connecting.await.map_err(|_| "the SSH agent does not answer".to_owned())?;
        connected.map_err(|e| format!("the SSH agent cannot be reached ({e})"))
    }
}

#[derive(Clone, Default)]
pub(super) struct FoundKeys {
    pub(super) candidates: Vec<Candidate>,
    pub(super) skipped: Vec<UnusableKey>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct UnusableKey {
    pub(super) name: String,
    pub(super) reason: String,
}

impl fmt::Display for UnusableKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

impl FoundKeys {
    fn skip(&mut self, name: &str, reason: impl fmt::Display) {
        self.skipped.push(UnusableKey { name: name.to_owned(), reason: reason.to_string() });
    }

    fn has(&self, public: &PublicKey) -> bool {
        self.candidates.iter().any(|c| c.public().key_data() == public.key_data())
    }

    fn take(&mut self, source: Source, name: String) {
        let candidate = Candidate { source, name };
        if !self.has(candidate.public()) {
            self.candidates.push(candidate);
        }
    }

    fn take_from_agent(&mut self, socket: &Path, identities: Vec<AgentIdentity>) {
        if identities.is_empty() {
            self.skip(&format!("the SSH agent at {socket:?}"), "it holds no keys (`ssh-add` adds one)");
        }
        for identity in identities {
            let fingerprint = identity.public_key().fingerprint(HashAlg::Sha256);
            let comment = text::one_line(identity.comment(), MAX_COMMENT);
            let name = format!("{fingerprint} ({comment}) of the SSH agent");
            match identity {
                AgentIdentity::PublicKey { key, .. } => {
                    self.take(Source::Agent { socket: socket.to_owned(), key }, name);
                }
                AgentIdentity::Certificate { .. } => self.skip(&name, "certificates are not supported"),
            }
        }
    }
}

pub(super) fn describe(keys: &[UnusableKey]) -> String {
    keys.iter().map(UnusableKey::to_string).collect::<Vec<_>>().join("; ")
}
