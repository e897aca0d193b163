//! The identity a restored guest gets in place of its saved state's. It is made on the host, which so knows the guest's new
//! host key before the guest does, and nothing has to be generated in a guest that has just been restored.

use std::{io, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use russh::keys::{
    PrivateKey, PublicKey,
    ssh_key::{LineEnding, private::Ed25519Keypair},
};
use shoes_vz_model::{Ambient, guest::Personalization};

use crate::{
    files,
    ssh::{Login, Ssh},
};

/// In a bundle: the private key its guest, and no other, lets in. For operators too: `ssh -i <bundle>/ssh_key`.
const LOGIN_KEY: &str = "ssh_key";
/// In a bundle: the host key its guest, and no other, shows.
const HOST_KEY: &str = "ssh_host_key.pub";
/// Bytes of entropy; twice what the kernels' generators are keyed with.
const ENTROPY: usize = 64;

#[derive(Debug, thiserror::Error)]
pub(crate) enum IdentityError {
    #[error("reading random bytes from the host's kernel failed ({0})")]
    Random(#[from] getrandom::Error),
    #[error("creating an SSH key failed: {0}")]
    Key(#[from] russh::keys::ssh_key::Error),
    #[error("writing the guest's SSH keys into its bundle failed: {0}")]
    Io(#[from] io::Error),
}

pub(crate) struct GuestIdentity {
    /// To be sent to it.
    pub(crate) personalization: Personalization,
    host: PublicKey,
    login: PrivateKey,
}

impl GuestIdentity {
    /// Keys and entropy are from the host's kernel, IDs from `ambient`.
    pub(crate) fn draw(ambient: &Ambient) -> Result<Self, IdentityError> {
        let (host, login) = (key()?, key()?);
        let mut entropy = [0; ENTROPY];
        getrandom::fill(&mut entropy)?;
        let personalization = Personalization {
            entropy: STANDARD.encode(entropy),
            unix_nanos: 0,
            machine_id: ambient.uuid().simple().to_string(),
            boot_id: ambient.uuid().hyphenated().to_string(),
            ssh_host_key: host.to_openssh(LineEnding::LF)?.to_string(),
            authorized_key: login.public_key().to_openssh()?,
        };
        Ok(Self { personalization, host: host.public_key().clone(), login })
    }

    /// Keeps in the bundle what a later agent needs to log in.
    pub(crate) fn keep(&self, bundle: &Path) -> Result<(), IdentityError> {
        files::replace(
            &bundle.join(LOGIN_KEY),
            self.login.to_openssh(LineEnding::LF)?.as_bytes(),
            files::Readers::Owner,
        )?;
        Ok(files::replace(&bundle.join(HOST_KEY), self.host.to_openssh()?.as_bytes(), files::Readers::Owner)?)
    }

    /// SSH into that guest.
    pub(crate) fn ssh(&self, login: &Login) -> Ssh {
        login.with_keys(self.login.clone(), self.host.clone())
    }
}

fn key() -> Result<PrivateKey, IdentityError> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)?;
    Ok(PrivateKey::from(Ed25519Keypair::from_seed(&seed)))
}

/// SSH into the guest of a bundle a former agent made: by its own keys, if it has any.
pub(crate) fn ssh_of(login: &Login, bundle: &Path) -> Ssh {
    let kept = |name: &str| files::read(&bundle.join(name)).ok().flatten();
    let own = || {
        let login_key = PrivateKey::from_openssh(kept(LOGIN_KEY)?).ok()?;
        let host_key = PublicKey::from_openssh(std::str::from_utf8(&kept(HOST_KEY)?).ok()?).ok()?;
        Some(login.with_keys(login_key, host_key))
    };
    own().unwrap_or_else(|| login.for_one_vm())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_guests_are_given_the_same_and_nothing_secret_is_printed() {
        let draw = || GuestIdentity::draw(&Ambient::real()).unwrap();
        let (a, b) = (draw(), draw());
        let parts = |f: &GuestIdentity| {
            let r = f.personalization.clone();
            [r.entropy, r.machine_id, r.boot_id, r.ssh_host_key, r.authorized_key]
        };
        for (a, b) in parts(&a).iter().zip(&parts(&b)) {
            assert_ne!(a, b);
        }
        let printed = format!("{:?}", a.personalization);
        assert!(
            !printed.contains("PRIVATE KEY") && !printed.contains(&a.personalization.entropy),
            "{printed}"
        );
        assert_eq!(a.personalization.machine_id.len(), 32);
        let host = PrivateKey::from_openssh(&a.personalization.ssh_host_key).unwrap();
        assert_eq!(host.public_key().key_data(), a.host.key_data());
    }

    #[test]
    fn a_later_agent_finds_the_keys_in_the_bundle_readable_by_nobody_else() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let key_file = dir.path().join("k");
        std::fs::write(&key_file, key().unwrap().to_openssh(LineEnding::LF).unwrap()).unwrap();
        let login = Login::new("runner", &key_file, "").unwrap();
        assert_eq!(ssh_of(&login, dir.path()).pinned(), None, "there are none yet");
        let identity = GuestIdentity::draw(&Ambient::real()).unwrap();
        identity.keep(dir.path()).unwrap();
        assert_eq!(ssh_of(&login, dir.path()).pinned(), Some(identity.host.clone()));
        let mode = std::fs::metadata(dir.path().join(LOGIN_KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
