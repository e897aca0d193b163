//! The runner's authorized_keys: what the image has stays, one line of ours is added, and replaced by the next.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
};

use shoes_vz_process::files::{self, Readers};

/// Of an authorized_keys.
const MAX_KEYS: u64 = 1 << 20;
/// What our line ends with.
const MARK: &str = "shoes-vz-personalization";

/// Lets `key` in, a line of OpenSSH's public key format, and no key an earlier personalization let in.
pub(super) fn authorize(home: &Path, key: &str) -> io::Result<()> {
    let dir = home.join(".ssh");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let path = dir.join("authorized_keys");
    let old = match files::read_text(&path, MAX_KEYS) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        old => old.unwrap_or_default(),
    };
    let new = edited(&old, key).ok_or_else(|| io::Error::other("the new key is no line of a public key"))?;
    files::replace(&path, new.as_bytes(), Readers::Owner)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
}

fn edited(old: &str, key: &str) -> Option<String> {
    let mut words = key.split_ascii_whitespace();
    let (kind, blob) = (words.next()?, words.next()?);
    if key.trim().contains(['\n', '\r']) || !kind.starts_with("ssh-") {
        return None;
    }
    let kept = old.lines().filter(|line| !line.ends_with(MARK) && !line.is_empty());
    let all = kept.map(str::to_owned).chain([format!("{kind} {blob} {MARK}")]);
    Some(all.map(|line| line + "\n").collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_images_keys_stay_and_ours_is_replaced_by_the_next() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join(".ssh/authorized_keys");
        authorize(home.path(), "ssh-ed25519 AAAA1 comment").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "ssh-ed25519 AAAA1 shoes-vz-personalization\n");
        fs::write(&path, "ssh-rsa MINE me\nssh-ed25519 AAAA1 shoes-vz-personalization").unwrap();
        authorize(home.path(), "ssh-ed25519 AAAA2\n").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "ssh-rsa MINE me\nssh-ed25519 AAAA2 shoes-vz-personalization\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_key_lets_nobody_in() {
        for bad in ["", "ssh-ed25519", "command=\"x\" ssh-rsa A", "ssh-rsa A\nssh-rsa B"] {
            assert_eq!(edited("", bad), None, "{bad:?}");
        }
    }
}
