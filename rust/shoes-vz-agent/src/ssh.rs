//! Logging into a guest: the proof that it is ready, and, for templates with the Go guest agent, the way in for its
//! setup script.

mod keys;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::VecDeque,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use russh::{
    ChannelMsg, Disconnect, Preferred, cipher, client, compression, kex,
    keys::{Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate},
    mac,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use self::keys::{Candidate, Outcome, Source};
pub use self::keys::{LoginKeys, UserKeys};

/// A single try, from the first byte to `true`'s exit code. Emulated guests on a busy host take seconds.
const TRY_DEADLINE: Duration = Duration::from_secs(30);

/// sshd hangs up at the sixth refusal (MaxAuthTries in sshd_config): further keys have the next connection.
const KEYS_AT_ONCE: usize = 5;
/// An SSH agent may ask its user before it signs; there may be none.
const SIGN_DEADLINE: Duration = Duration::from_secs(10);

/// Who logs in, by which key, and which host key the guest must show. Cheap to clone.
#[derive(Clone)]
pub struct Login {
    user: Arc<str>,
    keys: Keys,
    pinned: Option<Arc<PublicKey>>,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login")
            .field("user", &self.user)
            .field("pinned", &self.pinned.is_some())
            .finish_non_exhaustive()
    }
}

#[derive(Clone)]
enum Keys {
    One(Arc<PrivateKey>),
    OfTheUser {
        keys: UserKeys,
        /// What let us into a guest of this template last: it goes first.
        worked: Arc<Mutex<Option<PublicKey>>>,
    },
}

/// Why there is no [`Login`].
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The key cannot be used.
    #[error(
        "the SSH key {path:?} cannot be used ({why}); it must be an unencrypted private key this user can read"
    )]
    Key {
        /// The file.
        path: PathBuf,
        /// Why, without any of its content.
        why: String,
    },
    /// The template's host key cannot be read.
    #[error("ssh_host_key in Template.json is not a valid OpenSSH public key ({0})")]
    HostKey(String),
}

/// Why a guest could not be logged into.
#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// It is not who it should be: no use in trying again.
    #[error(
        "the guest showed the host key {shown}, not {expected}: another machine answers, or the template's ssh_host_key is out of date"
    )]
    WrongHost {
        /// Fingerprint shown.
        shown: String,
        /// Fingerprint expected.
        expected: String,
    },
    /// The key was turned down.
    #[error("the guest refused the key for user {0:?}; is its public half in that user's authorized_keys?")]
    Refused(String),
    /// None of the user's own keys was of use.
    #[error(
        "the guest let user {user:?} in by none of this user's own keys ({tried}). Put the public half of one into \
         that user's ~/.ssh/authorized_keys in the template, or name the right key: --ssh-key"
    )]
    NoKey {
        /// Who was to be logged in.
        user: String,
        /// Each key, and why it was of no use.
        tried: String,
    },
    /// Command ended otherwise than it should.
    #[error("`true` over SSH ended with {0}")]
    NotTrue(String),
    /// Nothing moved.
    #[error("no answer within {} s", TRY_DEADLINE.as_secs())]
    Silent,
    /// Anything the protocol or the connection said.
    #[error("{0}")]
    Protocol(#[from] russh::Error),
    /// The connection was not made.
    #[error("{0}")]
    Connect(String),
}

impl SshError {
    /// Whether another try could end otherwise.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::WrongHost { .. })
    }
}

impl Login {
    /// Reads a key that is named; the user's own are looked for when they are needed. `host_key` is a line of OpenSSH's
    /// format, or "" when any will do at first.
    pub fn new(user: &str, keys: impl Into<LoginKeys>, host_key: &str) -> Result<Self, LoginError> {
        let keys = match keys.into() {
            LoginKeys::File(path) => match keys::load(&path) {
                Ok(key) => Keys::One(Arc::new(key)),
                Err(unusable) => return Err(LoginError::Key { path, why: unusable.why }),
            },
            LoginKeys::OfTheUser(keys) => Keys::OfTheUser { keys, worked: Arc::default() },
        };
        let pinned = match host_key.trim() {
            "" => None,
            line => Some(PublicKey::from_openssh(line).map_err(|e| LoginError::HostKey(e.to_string()))?),
        };
        Ok(Self { user: user.into(), keys, pinned: pinned.map(Arc::new) })
    }

    /// Logs, at the agent's start, which keys guests are logged into with when none is named.
    pub(crate) async fn log(&self) {
        let Keys::OfTheUser { keys, .. } = &self.keys else { return };
        let found = keys.find().await;
        let skipped = keys::words(&found.skipped);
        match found.candidates.is_empty() {
            true => tracing::warn!(
                skipped,
                "neither --ssh-key nor the template names an SSH key, and this user has none that can be used; no guest \
                 can be logged into until there is one"
            ),
            false => {
                let keys: Vec<&str> = found.candidates.iter().map(|c| &*c.name).collect();
                tracing::info!(
                    ?keys,
                    skipped,
                    "no SSH key is named; this user's own are tried, as ssh would"
                );
            }
        }
    }

    /// For one VM: a host key not pinned is trusted at first sight, and no other one after it.
    pub fn of_one_vm(&self) -> Ssh {
        let seen = Arc::new(Mutex::new(self.pinned.as_deref().cloned()));
        Ssh { login: self.clone(), seen, trying: Arc::default() }
    }

    /// For one VM that was given keys of its own: it lets this one in, and shows that one.
    pub(crate) fn with(&self, key: PrivateKey, host: PublicKey) -> Ssh {
        let login = Self { user: self.user.clone(), keys: Keys::One(Arc::new(key)), pinned: None };
        Ssh { login, seen: Arc::new(Mutex::new(Some(host))), trying: Arc::default() }
    }
}

/// SSH into one VM.
#[derive(Clone)]
pub struct Ssh {
    login: Login,
    seen: Arc<Mutex<Option<PublicKey>>>,
    trying: Arc<Mutex<Trying>>,
}

/// How far the user's own keys were tried with one VM.
#[derive(Default)]
struct Trying {
    rest: VecDeque<Candidate>,
    outcomes: Vec<Outcome>,
}

/// How a command over SSH ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// By itself.
    Code(u32),
    /// By a signal, or without a word.
    Abnormal,
}

impl Ssh {
    /// The host key the guest must show, if that is known.
    #[cfg(test)]
    pub(crate) fn pinned(&self) -> Option<PublicKey> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One try: authenticate over `stream` and run `true`.
    pub async fn ready<S>(&self, stream: S) -> Result<(), SshError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let whole = async {
            let session = self.session(stream).await?;
            let exit = session.run("true", Bytes::new(), |_| {}).await?;
            session.end().await;
            match exit {
                Exit::Code(0) => Ok(()),
                Exit::Code(code) => Err(SshError::NotTrue(format!("exit code {code}"))),
                Exit::Abnormal => Err(SshError::NotTrue("no exit code".into())),
            }
        };
        timeout(TRY_DEADLINE, whole).await.unwrap_or(Err(SshError::Silent))
    }

    /// An authenticated session over `stream`.
    pub async fn session<S>(&self, stream: S) -> Result<Session, SshError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let known = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let config = client::Config { preferred: preferred(known.as_ref()), ..client::Config::default() };
        let checker = HostCheck { seen: self.seen.clone() };
        let mut handle = client::connect_stream(Arc::new(config), stream, checker).await?;
        match &self.login.keys {
            Keys::One(key) => {
                let rsa = matches!(key.algorithm(), Algorithm::Rsa { .. });
                let hash = if rsa { rsa_hash(&handle).await? } else { None };
                if rsa && hash.is_none() {
                    return Err(SshError::Connect("the guest takes RSA signatures by SHA-1 only".into()));
                }
                let key = PrivateKeyWithHashAlg::new(key.clone(), hash);
                match handle.authenticate_publickey(&*self.login.user, key).await?.success() {
                    true => Ok(Session { handle }),
                    false => Err(SshError::Refused(self.login.user.to_string())),
                }
            }
            Keys::OfTheUser { keys, worked } => self.by_the_users_keys(handle, keys, worked).await,
        }
    }

    /// By the next few of the user's keys; the rest has the next connection, and after the last it is begun anew.
    async fn by_the_users_keys(
        &self,
        mut handle: client::Handle<HostCheck>,
        keys: &UserKeys,
        worked: &Mutex<Option<PublicKey>>,
    ) -> Result<Session, SshError> {
        if self.trying().rest.is_empty() {
            let found = keys.find().await;
            let last = worked.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut rest = VecDeque::from(found.candidates);
            if let Some(at) = rest.iter().position(|c| last.as_ref() == Some(c.public())) {
                rest.swap(0, at);
            }
            *self.trying() = Trying { rest, outcomes: found.skipped };
        }
        for n in 0..KEYS_AT_ONCE {
            // A guest with a lower MaxAuthTries hangs up instead of refusing the last key.
            if n > 0 && handle.is_closed() {
                break;
            }
            let Some(candidate) = self.trying().rest.pop_front() else { break };
            match try_key(&mut handle, &self.login.user, &candidate).await {
                Ok(Tried::In) => {
                    let mut worked = worked.lock().unwrap_or_else(PoisonError::into_inner);
                    *worked = Some(candidate.public().clone());
                    drop(worked);
                    // This VM's next session begins with it.
                    let mut trying = self.trying();
                    trying.rest.push_front(candidate);
                    return Ok(Session { handle });
                }
                Ok(Tried::Useless(why)) => self.trying().outcomes.push(Outcome { name: candidate.name, why }),
                // It had hung up before it was asked: this key has the next connection.
                Err(SshError::Protocol(russh::Error::SendError)) if n > 0 => {
                    self.trying().rest.push_front(candidate);
                    break;
                }
                Err(error) if n > 0 => {
                    self.trying().outcomes.push(Outcome { name: candidate.name, why: error.to_string() });
                    break;
                }
                Err(error) => {
                    // It says nothing about the key, unless it always does: then the others have their turn.
                    self.trying().rest.push_back(candidate);
                    return Err(error);
                }
            }
        }
        let tried = keys::words(&self.trying().outcomes);
        Err(SshError::NoKey { user: self.login.user.to_string(), tried })
    }

    fn trying(&self) -> std::sync::MutexGuard<'_, Trying> {
        self.trying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An authenticated session.
pub struct Session {
    handle: client::Handle<HostCheck>,
}

impl Session {
    /// Runs `command` with `stdin`, handing each piece of its output to `out`.
    pub async fn run(
        &self,
        command: &str,
        stdin: Bytes,
        mut out: impl FnMut(&[u8]),
    ) -> Result<Exit, SshError> {
        let mut channel = self.handle.channel_open_session().await?;
        channel.exec(true, command).await?;
        if !stdin.is_empty() {
            channel.data(&stdin[..]).await?;
        }
        channel.eof().await?;
        let mut exit = Exit::Abnormal;
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => out(&data),
                ChannelMsg::ExitStatus { exit_status } => exit = Exit::Code(exit_status),
                ChannelMsg::Failure => {
                    return Err(SshError::Connect("the guest refused to run a command".into()));
                }
                _ => {}
            }
        }
        Ok(exit)
    }

    /// Says goodbye; nothing depends on its being heard.
    pub async fn end(self) {
        if let Err(error) = self.handle.disconnect(Disconnect::ByApplication, "", "").await {
            tracing::debug!(%error, "the guest had hung up already");
        }
    }
}

/// What came of trying one key in a connection that is still good.
enum Tried {
    In,
    Useless(String),
}

async fn try_key(
    handle: &mut client::Handle<HostCheck>,
    user: &str,
    candidate: &Candidate,
) -> Result<Tried, SshError> {
    let hash = match candidate.is_rsa() {
        true => match rsa_hash(handle).await? {
            None => return Ok(Tried::Useless("the guest takes RSA signatures by SHA-1 only".into())),
            hash => hash,
        },
        false => None,
    };
    let answer = match &candidate.source {
        Source::File(key) => {
            let key = PrivateKeyWithHashAlg::new(key.clone(), hash);
            handle.authenticate_publickey(user, key).await?
        }
        Source::Agent { socket, key } => {
            let mut agent = match Source::agent(socket).await {
                Ok(agent) => agent,
                Err(why) => return Ok(Tried::Useless(why)),
            };
            let signed = handle.authenticate_publickey_with(user, key.clone(), hash, &mut agent);
            match timeout(SIGN_DEADLINE, signed).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(russh::AgentAuthError::Key(error))) => {
                    return Ok(Tried::Useless(format!("the SSH agent did not sign ({error})")));
                }
                Ok(Err(russh::AgentAuthError::Send(_))) => return Err(russh::Error::SendError.into()),
                Err(_) => {
                    return Err(SshError::Connect(format!(
                        "the SSH agent did not sign within {} s",
                        SIGN_DEADLINE.as_secs()
                    )));
                }
            }
        }
    };
    Ok(match answer.success() {
        true => Tried::In,
        false => Tried::Useless("the guest refused it".into()),
    })
}

/// SHA-512 where the guest does not say what it takes: sshd has taken it since OpenSSH 7.2. `None`: it takes SHA-1 only,
/// which no key of ours is used with.
async fn rsa_hash(handle: &client::Handle<HostCheck>) -> Result<Option<HashAlg>, SshError> {
    Ok(handle.best_supported_rsa_hash().await?.unwrap_or(Some(HashAlg::Sha512)))
}

/// What an emulated guest computes quickest: X25519 and Ed25519, ChaCha20, and no post-quantum exchange, which buys
/// nothing on a channel that never leaves this host.
fn preferred(host_key: Option<&PublicKey>) -> Preferred {
    let mut keys = vec![
        Algorithm::Ed25519,
        Algorithm::Ecdsa { curve: russh::keys::EcdsaCurve::NistP256 },
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
    ];
    // A guest with several host keys shows the one that is asked for.
    if let Some(known) = host_key.map(PublicKey::algorithm) {
        keys.retain(|k| match (&known, k) {
            (Algorithm::Rsa { .. }, Algorithm::Rsa { .. }) => true,
            (known, k) => *known == *k,
        });
        if keys.is_empty() {
            keys.push(known);
        }
    }
    Preferred {
        kex: Cow::Borrowed(&[
            kex::CURVE25519,
            kex::CURVE25519_PRE_RFC_8731,
            kex::ECDH_SHA2_NISTP256,
            kex::DH_G14_SHA256,
            kex::EXTENSION_SUPPORT_AS_CLIENT,
            kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
        ]),
        key: Cow::Owned(keys),
        cipher: Cow::Borrowed(&[
            cipher::CHACHA20_POLY1305,
            cipher::AES_128_GCM,
            cipher::AES_256_GCM,
            cipher::AES_128_CTR,
            cipher::AES_256_CTR,
        ]),
        mac: Cow::Borrowed(&[mac::HMAC_SHA256_ETM, mac::HMAC_SHA256, mac::HMAC_SHA512_ETM, mac::HMAC_SHA512]),
        compression: Cow::Borrowed(&[compression::NONE]),
        ..Preferred::default()
    }
}

struct HostCheck {
    seen: Arc<Mutex<Option<PublicKey>>>,
}

impl client::Handler for HostCheck {
    type Error = SshError;

    async fn check_server_key(&mut self, shown: &PublicKeyOrCertificate) -> Result<bool, SshError> {
        let shown = match shown {
            PublicKeyOrCertificate::PublicKey { key, .. } => key.clone(),
            PublicKeyOrCertificate::Certificate(certificate) => {
                PublicKey::from(certificate.public_key().clone())
            }
        };
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        match &*seen {
            None => *seen = Some(shown),
            Some(expected) if expected.key_data() == shown.key_data() => {}
            Some(expected) => {
                return Err(SshError::WrongHost {
                    shown: shown.fingerprint(HashAlg::Sha256).to_string(),
                    expected: expected.fingerprint(HashAlg::Sha256).to_string(),
                });
            }
        }
        Ok(true)
    }
}
