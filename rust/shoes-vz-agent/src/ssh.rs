//! Logging into a guest: the proof that it is ready, and, for templates with the Go guest agent, the way in for its
//! setup script.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use russh::{
    ChannelMsg, Disconnect, Preferred, cipher, client, compression, kex,
    keys::{
        Algorithm, HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate,
        load_secret_key,
    },
    mac,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

/// A single try, from the first byte to `true`'s exit code. Emulated guests on a busy host take seconds.
const TRY_DEADLINE: Duration = Duration::from_secs(30);

/// Who logs in, by which key, and which host key the guest must show. Cheap to clone.
#[derive(Clone)]
pub struct Login {
    user: Arc<str>,
    key: Arc<PrivateKey>,
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

/// Why there is no [`Login`].
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    /// The key cannot be used.
    #[error(
        "--ssh-key: {path:?} cannot be used ({why}); it must be an unencrypted private key this user can read"
    )]
    Key {
        /// The file.
        path: PathBuf,
        /// Why, without any of its content.
        why: String,
    },
    /// The template's host key cannot be read.
    #[error("--template-path: ssh_host_key in Template.json is no OpenSSH public key ({0})")]
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
    /// Reads the key at `key`; `host_key` is a line of OpenSSH's format, or "" when any will do at first.
    pub fn new(user: &str, key: &Path, host_key: &str) -> Result<Self, LoginError> {
        let private = load_secret_key(key, None)
            .map_err(|e| LoginError::Key { path: key.to_owned(), why: e.to_string() })?;
        let pinned = match host_key.trim() {
            "" => None,
            line => Some(PublicKey::from_openssh(line).map_err(|e| LoginError::HostKey(e.to_string()))?),
        };
        Ok(Self { user: user.into(), key: Arc::new(private), pinned: pinned.map(Arc::new) })
    }

    /// For one VM: a host key not pinned is trusted at first sight, and no other one after it.
    pub fn of_one_vm(&self) -> Ssh {
        Ssh { login: self.clone(), seen: Arc::new(Mutex::new(self.pinned.as_deref().cloned())) }
    }

    /// For one VM that was given keys of its own: it lets this one in, and shows that one.
    pub(crate) fn with(&self, key: PrivateKey, host: PublicKey) -> Ssh {
        let login = Self { user: self.user.clone(), key: Arc::new(key), pinned: None };
        Ssh { login, seen: Arc::new(Mutex::new(Some(host))) }
    }
}

/// SSH into one VM.
#[derive(Clone)]
pub struct Ssh {
    login: Login,
    seen: Arc<Mutex<Option<PublicKey>>>,
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
        let hash = match self.login.key.algorithm() {
            Algorithm::Rsa { .. } => handle.best_supported_rsa_hash().await?.flatten(),
            _ => None,
        };
        let key = PrivateKeyWithHashAlg::new(self.login.key.clone(), hash);
        match handle.authenticate_publickey(&*self.login.user, key).await?.success() {
            true => Ok(Session { handle }),
            false => Err(SshError::Refused(self.login.user.to_string())),
        }
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
