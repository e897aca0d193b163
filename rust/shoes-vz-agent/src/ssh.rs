//! SSH logins into a guest. A login proves that the guest is ready; for templates with the Go guest agent it also carries
//! the setup script.

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

use self::keys::{Candidate, Source, UnusableKey};
pub use self::keys::{LoginKeys, UserKeys};

/// For one attempt, from the first byte to the exit code of `true`. Emulated guests on a busy host take seconds.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(30);

/// sshd disconnects at the sixth rejected key (MaxAuthTries in sshd_config), so further keys are offered in the next
/// connection.
const KEYS_PER_CONNECTION: usize = 5;
/// An SSH agent may ask a user to confirm a signature, and no user may be present.
const SIGN_TIMEOUT: Duration = Duration::from_secs(10);

/// The user, its keys, and the host key that the guest must present. Cheap to clone.
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
    Named(Arc<PrivateKey>),
    User {
        keys: UserKeys,
        /// The key that a guest of this template accepted last: it is offered first.
        last_accepted: Arc<Mutex<Option<PublicKey>>>,
    },
}

#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error(
        "the SSH key {path:?} cannot be used ({reason}); it must be an unencrypted private key that this user can read"
    )]
    Key {
        path: PathBuf,
        /// Quotes nothing of the file.
        reason: String,
    },
    #[error("ssh_host_key in Template.json is not a valid OpenSSH public key ({0})")]
    HostKey(String),
}

#[derive(Debug, thiserror::Error)]
pub enum SshError {
    /// Another attempt cannot succeed. Both are fingerprints.
    #[error(
        "the guest presented the host key {presented}, not {expected}: another machine answers, or ssh_host_key in \
         Template.json is out of date"
    )]
    WrongHost { presented: String, expected: String },
    #[error("the guest rejected the key for user {0:?}; is its public half in that user's authorized_keys?")]
    Refused(String),
    #[error(
        "the guest accepted none of the SSH keys of this host's user for {user:?} ({tried}). Add the public half of one \
         to ~/.ssh/authorized_keys of {user:?} in the template, or pass the right key with --ssh-key"
    )]
    NoKey {
        user: String,
        /// Each key, and why the guest did not accept it.
        tried: String,
    },
    #[error("SSH login succeeded, but running `true` failed ({0})")]
    CommandFailed(String),
    #[error("no answer within {} s", ATTEMPT_TIMEOUT.as_secs())]
    Timeout,
    #[error("{0}")]
    Protocol(#[from] russh::Error),
    #[error("{0}")]
    Connect(String),
}

impl SshError {
    /// Whether no further attempt can succeed.
    pub fn is_final(&self) -> bool {
        matches!(self, Self::WrongHost { .. })
    }
}

impl Login {
    /// Reads a named key at once; a user's keys are looked up when they are needed. `host_key` is a line in OpenSSH's
    /// format, or "" to trust the first host key that a VM presents.
    pub fn new(user: &str, keys: impl Into<LoginKeys>, host_key: &str) -> Result<Self, LoginError> {
        let keys = match keys.into() {
            LoginKeys::File(path) => match keys::load(&path) {
                Ok(key) => Keys::Named(Arc::new(key)),
                Err(error) => return Err(LoginError::Key { path, reason: error.reason }),
            },
            LoginKeys::User(keys) => Keys::User { keys, last_accepted: Arc::default() },
        };
        let pinned = match host_key.trim() {
            "" => None,
            line => Some(PublicKey::from_openssh(line).map_err(|e| LoginError::HostKey(e.to_string()))?),
        };
        Ok(Self { user: user.into(), keys, pinned: pinned.map(Arc::new) })
    }

    /// Logs, at the agent's start, which keys are offered to guests when no key is named.
    pub(crate) async fn log(&self) {
        let Keys::User { keys, .. } = &self.keys else { return };
        let found = keys.find().await;
        let skipped = keys::describe(&found.skipped);
        match found.candidates.is_empty() {
            true => tracing::warn!(
                skipped,
                "no usable SSH key; VMs cannot become ready until this user has one, or --ssh-key or the template names one"
            ),
            false => {
                let keys: Vec<&str> = found.candidates.iter().map(|c| &*c.name).collect();
                tracing::info!(
                    ?keys,
                    skipped,
                    "no SSH key configured; offering the keys of this user, as ssh does"
                );
            }
        }
    }

    /// For one VM: unless a host key is pinned, the first one presented is trusted, and no other one after it.
    pub fn for_one_vm(&self) -> Ssh {
        let host_key = Arc::new(Mutex::new(self.pinned.as_deref().cloned()));
        Ssh { login: self.clone(), host_key, attempts: Arc::default() }
    }

    /// For a personalized VM: it accepts `key` and presents `host`.
    pub(crate) fn with_keys(&self, key: PrivateKey, host: PublicKey) -> Ssh {
        let login = Self { user: self.user.clone(), keys: Keys::Named(Arc::new(key)), pinned: None };
        Ssh { login, host_key: Arc::new(Mutex::new(Some(host))), attempts: Arc::default() }
    }
}

/// SSH into one VM.
#[derive(Clone)]
pub struct Ssh {
    login: Login,
    host_key: Arc<Mutex<Option<PublicKey>>>,
    attempts: Arc<Mutex<KeyAttempts>>,
}

/// Which of the user's keys were offered to one VM so far.
#[derive(Default)]
struct KeyAttempts {
    remaining: VecDeque<Candidate>,
    unusable: Vec<UnusableKey>,
}

/// How a command over SSH ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    Code(u32),
    /// By a signal, or without a report.
    Abnormal,
}

impl Ssh {
    #[cfg(test)]
    pub(crate) fn pinned(&self) -> Option<PublicKey> {
        self.host_key.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// One attempt to authenticate over `stream` and run `true`.
    pub async fn ready<S>(&self, stream: S) -> Result<(), SshError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let attempt = async {
            let session = self.session(stream).await?;
            let exit = session.run("true", Bytes::new(), |_| {}).await?;
            session.close().await;
            match exit {
                Exit::Code(0) => Ok(()),
                Exit::Code(code) => Err(SshError::CommandFailed(format!("exit code {code}"))),
                Exit::Abnormal => Err(SshError::CommandFailed("no exit code".into())),
            }
        };
        timeout(ATTEMPT_TIMEOUT, attempt).await.unwrap_or(Err(SshError::Timeout))
    }

    /// An authenticated session over `stream`.
    pub async fn session<S>(&self, stream: S) -> Result<Session, SshError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let known = self.host_key.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let config = client::Config { preferred: preferred(known.as_ref()), ..client::Config::default() };
        let checker = HostCheck { host_key: self.host_key.clone() };
        let mut handle = client::connect_stream(Arc::new(config), stream, checker).await?;
        match &self.login.keys {
            Keys::Named(key) => {
                let rsa = matches!(key.algorithm(), Algorithm::Rsa { .. });
                let hash = if rsa { rsa_hash(&handle).await? } else { None };
                if rsa && hash.is_none() {
                    return Err(SshError::Connect("the guest accepts RSA signatures with SHA-1 only".into()));
                }
                let key = PrivateKeyWithHashAlg::new(key.clone(), hash);
                match handle.authenticate_publickey(&*self.login.user, key).await?.success() {
                    true => Ok(Session { handle }),
                    false => Err(SshError::Refused(self.login.user.to_string())),
                }
            }
            Keys::User { keys, last_accepted } => self.try_user_keys(handle, keys, last_accepted).await,
        }
    }

    /// Offers the next few of the user's keys. The next connection offers those that remain; after the last key, the keys
    /// are looked up again.
    async fn try_user_keys(
        &self,
        mut handle: client::Handle<HostCheck>,
        keys: &UserKeys,
        last_accepted: &Mutex<Option<PublicKey>>,
    ) -> Result<Session, SshError> {
        if self.attempts().remaining.is_empty() {
            let found = keys.find().await;
            let last = last_accepted.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let mut remaining = VecDeque::from(found.candidates);
            if let Some(at) = remaining.iter().position(|c| last.as_ref() == Some(c.public())) {
                remaining.swap(0, at);
            }
            *self.attempts() = KeyAttempts { remaining, unusable: found.skipped };
        }
        for n in 0..KEYS_PER_CONNECTION {
            // A guest with a lower MaxAuthTries disconnects instead of rejecting the last key.
            if n > 0 && handle.is_closed() {
                break;
            }
            let Some(candidate) = self.attempts().remaining.pop_front() else { break };
            match try_key(&mut handle, &self.login.user, &candidate).await {
                Ok(KeyAnswer::Accepted) => {
                    let mut last = last_accepted.lock().unwrap_or_else(PoisonError::into_inner);
                    *last = Some(candidate.public().clone());
                    drop(last);
                    // This VM's next session begins with it.
                    self.attempts().remaining.push_front(candidate);
                    return Ok(Session { handle });
                }
                Ok(KeyAnswer::Unusable(reason)) => {
                    self.attempts().unusable.push(UnusableKey { name: candidate.name, reason });
                }
                // The guest disconnected before it got this key: the next connection offers it.
                Err(SshError::Protocol(russh::Error::SendError)) if n > 0 => {
                    self.attempts().remaining.push_front(candidate);
                    break;
                }
                Err(error) if n > 0 => {
                    let reason = error.to_string();
                    self.attempts().unusable.push(UnusableKey { name: candidate.name, reason });
                    break;
                }
                Err(error) => {
                    // The error may not be about the key; if it repeats, the other keys come before this one.
                    self.attempts().remaining.push_back(candidate);
                    return Err(error);
                }
            }
        }
        let tried = keys::describe(&self.attempts().unusable);
        Err(SshError::NoKey { user: self.login.user.to_string(), tried })
    }

    fn attempts(&self) -> std::sync::MutexGuard<'_, KeyAttempts> {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An authenticated session.
pub struct Session {
    handle: client::Handle<HostCheck>,
}

impl Session {
    /// Runs `command` with `stdin`, and passes each piece of its output to `out`.
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
                    return Err(SshError::Connect("the guest refuses to run commands".into()));
                }
                _ => {}
            }
        }
        Ok(exit)
    }

    /// Sends a disconnect message. It does not matter whether the guest receives it.
    pub async fn close(self) {
        if let Err(error) = self.handle.disconnect(Disconnect::ByApplication, "", "").await {
            tracing::debug!(reason = %error, "SSH connection was closed already");
        }
    }
}

/// The result of offering one key in a connection that is still open.
enum KeyAnswer {
    Accepted,
    Unusable(String),
}

async fn try_key(
    handle: &mut client::Handle<HostCheck>,
    user: &str,
    candidate: &Candidate,
) -> Result<KeyAnswer, SshError> {
    let hash = match candidate.is_rsa() {
        true => match rsa_hash(handle).await? {
            None => {
                return Ok(KeyAnswer::Unusable("the guest accepts RSA signatures with SHA-1 only".into()));
            }
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
            let mut agent = match Source::connect(socket).await {
                Ok(agent) => agent,
                Err(reason) => return Ok(KeyAnswer::Unusable(reason)),
            };
            let signed = handle.authenticate_publickey_with(user, key.clone(), hash, &mut agent);
            match timeout(SIGN_TIMEOUT, signed).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(russh::AgentAuthError::Key(error))) => {
                    return Ok(KeyAnswer::Unusable(format!("the SSH agent did not sign ({error})")));
                }
                Ok(Err(russh::AgentAuthError::Send(_))) => return Err(russh::Error::SendError.into()),
                Err(_) => {
                    return Err(SshError::Connect(format!(
                        "the SSH agent did not sign within {} s",
                        SIGN_TIMEOUT.as_secs()
                    )));
                }
            }
        }
    };
    Ok(match answer.success() {
        true => KeyAnswer::Accepted,
        false => KeyAnswer::Unusable("the guest rejected it".into()),
    })
}

/// SHA-512 where the guest does not list what it accepts: sshd accepts it since OpenSSH 7.2. `None`: it accepts SHA-1 only,
/// which this agent never signs with.
async fn rsa_hash(handle: &client::Handle<HostCheck>) -> Result<Option<HashAlg>, SshError> {
    Ok(handle.best_supported_rsa_hash().await?.unwrap_or(Some(HashAlg::Sha512)))
}

/// What an emulated guest computes fastest: X25519 and Ed25519, ChaCha20, and no post-quantum key exchange, which gains
/// nothing on a connection that never leaves this host.
fn preferred(host_key: Option<&PublicKey>) -> Preferred {
    let mut keys = vec![
        Algorithm::Ed25519,
        Algorithm::Ecdsa { curve: russh::keys::EcdsaCurve::NistP256 },
        Algorithm::Rsa { hash: Some(HashAlg::Sha512) },
        Algorithm::Rsa { hash: Some(HashAlg::Sha256) },
    ];
    // A guest with several host keys presents the one that the client prefers.
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
    host_key: Arc<Mutex<Option<PublicKey>>>,
}

impl client::Handler for HostCheck {
    type Error = SshError;

    async fn check_server_key(&mut self, presented: &PublicKeyOrCertificate) -> Result<bool, SshError> {
        let presented = match presented {
            PublicKeyOrCertificate::PublicKey { key, .. } => key.clone(),
            PublicKeyOrCertificate::Certificate(certificate) => {
                PublicKey::from(certificate.public_key().clone())
            }
        };
        let mut host_key = self.host_key.lock().unwrap_or_else(PoisonError::into_inner);
        match &*host_key {
            None => *host_key = Some(presented),
            Some(expected) if expected.key_data() == presented.key_data() => {}
            Some(expected) => {
                return Err(SshError::WrongHost {
                    presented: presented.fingerprint(HashAlg::Sha256).to_string(),
                    expected: expected.fingerprint(HashAlg::Sha256).to_string(),
                });
            }
        }
        Ok(true)
    }
}
