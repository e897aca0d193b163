//! The runner's authorized_keys: the image's keys stay; one line is added, which the next personalization replaces.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
};

use shoes_vz_process::files::{self, Readers};

/// Longest authorized_keys that is read, in bytes.
const MAX_KEYS: u64 = 1 << 20;
/// The end of the added line.
const MARK: &str = "shoes-vz-personalization";

/// Authorizes `key`, a line of OpenSSH's public key format, in the place of an earlier personalization's key.
pub(super) fn authorize(home: &Path, key: &str) -> io::Result<()> {
    let dir = home.join(".ssh");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir)?;
    let path = dir.join("authorized_keys");
    let old = files::if_any(files::read_text(&path, MAX_KEYS))?.unwrap_or_default();
    let new = edited(&old, key)
        .ok_or_else(|| io::Error::other("the new key is not a valid line with one public key"))?;
    files::replace(&path, new.as_bytes(), Readers::Owner)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))
}

fn edited(old: &str, key: &str) -> Option<String> {
    let mut fields = key.split_ascii_whitespace();
    let (kind, blob) = (fields.next()?, fields.next()?);
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
    fn the_images_keys_stay_and_the_added_one_is_replaced_by_the_next() {
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
    fn what_is_not_a_key_is_refused() {
        for bad in ["", "ssh-ed25519", "command=\"x\" ssh-rsa A", "ssh-rsa A\nssh-rsa B"] {
            assert_eq!(edited("", bad), None, "{bad:?}");
        }
    }
}
