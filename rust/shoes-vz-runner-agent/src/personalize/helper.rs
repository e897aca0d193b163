//! `shoes-vz-runner-agent personalize`, as root: reads a [`Personalization`] from stdin and writes its outcome to stdout.
//!
//! Entropy comes first, so that nothing after it depends on the saved state's. On Linux the VM generation ID (QEMU's
//! vmgenid) has already made the kernel reseed; the host's bytes are mixed in as well. macOS mixes in what is written to
//! /dev/random (its random(4)). Machine and boot ID exist only on Linux. A container's clock is its host's: it is not set,
//! and only its difference is reported.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    path::Path,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use nix::{errno::Errno, unistd::Uid};
use shoes_vz_model::guest::{Personalization, Personalized};
use shoes_vz_process::files::{self, Readers};

/// Longest personalization that is read: some keys and IDs. One that is cut is not valid JSON.
const MAX_REQUEST: u64 = 1 << 20;
/// A smaller difference is left to the guest's time service.
const CLOCK_TOLERANCE: Duration = Duration::from_millis(500);
/// Set by shoes-vz-guest-init, which replaces sshd itself.
pub const BY_INIT: &str = "SHOESVZ_PERSONALIZE_BY_INIT";
const SSH: &str = "/etc/ssh";
const HOST_KEY: &str = "ssh_host_ed25519_key";

pub fn run() -> ExitCode {
    let mut request = Vec::new();
    let outcome = io::stdin()
        .take(MAX_REQUEST)
        .read_to_end(&mut request)
        .map_err(|e| e.to_string())
        // Without serde's error, which would quote the input and so a secret.
        .and_then(|_| {
            serde_json::from_slice(&request).map_err(|_| "stdin is not a valid personalization".to_owned())
        })
        .and_then(|personalization| apply(&personalization));
    let (answer, code) = match outcome {
        // Cannot fail for a number.
        Ok(personalized) => (format!("ok {}\n", serde_json::json!(personalized)), ExitCode::SUCCESS),
        Err(reason) => (format!("error {reason}\n"), ExitCode::FAILURE),
    };
    match io::stdout().write_all(answer.as_bytes()) {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

pub(super) fn parse_answer(answer: &[u8]) -> Result<Personalized, String> {
    let text = String::from_utf8_lossy(answer);
    let text = text.trim();
    if let Some(json) = text.strip_prefix("ok") {
        let json = json.trim();
        if json.is_empty() {
            return Ok(Personalized::default());
        }
        return serde_json::from_str(json).map_err(|e| format!("the helper's answer is not valid: {e}"));
    }
    Err(text.strip_prefix("error ").unwrap_or(text).to_owned())
}

fn apply(personalization: &Personalization) -> Result<Personalized, String> {
    check(personalization)?;
    let mut personalized = Personalized::default();
    if !personalization.entropy.is_empty() {
        add_entropy(&personalization.entropy)
            .map_err(|e| format!("adding entropy to the kernel failed: {e}"))?;
    }
    if personalization.unix_nanos != 0 {
        personalized.clock_was_behind_ms =
            set_clock(SystemTime::now(), personalization.unix_nanos, step_clock)?;
    }
    if cfg!(target_os = "linux") {
        set_ids(personalization)?;
    }
    if !personalization.ssh_host_key.is_empty() {
        replace_host_keys(Path::new(SSH), &personalization.ssh_host_key)
            .map_err(|e| format!("replacing the SSH host key in {SSH} failed: {e}"))?;
        #[cfg(target_os = "linux")]
        if std::env::var_os(BY_INIT).is_none() {
            super::sshd::reload_keys()?;
        }
    }
    Ok(personalized)
}

/// Called before anything is changed. The error contains no part of the personalization.
fn check(personalization: &Personalization) -> Result<(), String> {
    let key = personalization.ssh_host_key.trim();
    let is_key = key.starts_with("-----BEGIN OPENSSH PRIVATE KEY-----")
        && key.ends_with("-----END OPENSSH PRIVATE KEY-----");
    if !key.is_empty() && !is_key {
        return Err("the SSH host key is not a valid private key in OpenSSH's format".into());
    }
    if STANDARD.decode(&personalization.entropy).is_err() {
        return Err("the entropy is not valid base64".into());
    }
    if personalization.unix_nanos < 0 {
        return Err("the time is before 1970".into());
    }
    match is_id(&personalization.machine_id) && is_id(&personalization.boot_id) {
        true => Ok(()),
        false => Err("the machine ID or the boot ID is not valid".into()),
    }
}

fn add_entropy(base64: &str) -> io::Result<()> {
    let bytes = STANDARD.decode(base64).map_err(|_| io::Error::other("it is not valid base64"))?;
    let device = if cfg!(target_os = "macos") { "/dev/random" } else { "/dev/urandom" };
    fs::OpenOptions::new().write(true).open(device)?.write_all(&bytes)
}

/// Sets the clock by `step` unless it is right. Returns by how many milliseconds it was behind.
fn set_clock(
    now: SystemTime,
    unix_nanos: i64,
    step: impl FnOnce(i64) -> nix::Result<()>,
) -> Result<i64, String> {
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
    let behind = unix_nanos.saturating_sub(now);
    let behind_ms = behind / 1_000_000;
    if u128::from(behind.unsigned_abs()) < CLOCK_TOLERANCE.as_nanos() {
        return Ok(behind_ms);
    }
    match step(unix_nanos) {
        Ok(()) => Ok(behind_ms),
        // Root of a container: its host sets the clock.
        Err(Errno::EPERM) if Uid::effective().is_root() => Ok(behind_ms),
        Err(e) => Err(format!("setting the clock failed: {e}")),
    }
}

fn step_clock(unix_nanos: i64) -> nix::Result<()> {
    let spec = nix::sys::time::TimeSpec::from_duration(Duration::from_nanos(unix_nanos.unsigned_abs()));
    nix::time::clock_settime(nix::time::ClockId::CLOCK_REALTIME, spec)
}

fn is_id(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_hexdigit).count();
    text.is_empty() || (digits == 32 && text.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-'))
}

#[cfg(target_os = "linux")]
fn set_ids(personalization: &Personalization) -> Result<(), String> {
    use nix::mount::{MsFlags, mount};
    const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";
    const OURS: &str = "/run/shoes-vz-boot-id";
    let write = |path: &str, id: &str| {
        files::replace(Path::new(path), format!("{id}\n").as_bytes(), Readers::EveryoneReadOnly)
            .map_err(|e| format!("writing {path} failed: {e}"))
    };
    if !personalization.machine_id.is_empty() {
        write("/etc/machine-id", &personalization.machine_id)?;
    }
    if !personalization.boot_id.is_empty() {
        // The kernel creates it once, perhaps before the save: then every clone would have the same one.
        write(OURS, &personalization.boot_id)?;
        mount(Some(OURS), BOOT_ID, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|e| format!("mounting {OURS} over {BOOT_ID} failed: {e}"))?;
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
fn set_ids(_: &Personalization) -> Result<(), String> {
    Ok(())
}

/// Makes `key` the only host key. It contains its public half; sshd would trust a `.pub` file with another one.
fn replace_host_keys(dir: &Path, key: &str) -> io::Result<()> {
    files::replace(&dir.join(HOST_KEY), key.as_bytes(), Readers::Owner)?;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("ssh_host_") && name != HOST_KEY {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_new_host_key_is_the_only_one_and_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        for name in ["ssh_host_rsa_key", "ssh_host_ed25519_key.pub", "ssh_host_ed25519_key", "sshd_config"] {
            fs::write(dir.path().join(name), "old").unwrap();
        }
        replace_host_keys(dir.path(), "new").unwrap();
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, [HOST_KEY, "sshd_config"]);
        let key = dir.path().join(HOST_KEY);
        assert_eq!(fs::read_to_string(&key).unwrap(), "new");
        assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn an_answer_is_parsed_and_an_error_keeps_its_reason() {
        assert_eq!(parse_answer(b"ok\n"), Ok(Personalized::default()));
        assert_eq!(
            parse_answer(b"ok {\"clock_was_behind_ms\":7}\n"),
            Ok(Personalized { clock_was_behind_ms: 7 })
        );
        assert_eq!(parse_answer(b"error because\n"), Err("because".into()));
        assert_eq!(parse_answer(b""), Err(String::new()));
    }

    /// The present time of all these tests, which do not use this machine's clock.
    fn noon() -> (SystemTime, i64) {
        let since = Duration::from_secs(1_800_000_000);
        (UNIX_EPOCH + since, i64::try_from(since.as_nanos()).unwrap())
    }

    #[test]
    fn a_clock_that_is_right_is_left_alone() {
        let (now, nanos) = noon();
        let never = |_| panic!("it is right");
        assert_eq!(set_clock(now, nanos + 20_000_000, never), Ok(20));
        assert_eq!(set_clock(now, nanos - 499_000_000, never), Ok(-499));
    }

    #[test]
    fn a_clock_that_is_wrong_is_set_forward_or_back() {
        let (now, nanos) = noon();
        for (to, behind) in [(nanos + 57_000_000_000, 57_000), (nanos - 500_000_000, -500)] {
            let mut set = None;
            let outcome = set_clock(now, to, |to| {
                set = Some(to);
                Ok(())
            });
            assert_eq!((outcome, set), (Ok(behind), Some(to)));
        }
    }

    #[test]
    fn a_containers_clock_is_only_reported_and_another_that_cannot_be_set_is_an_error() {
        let (now, nanos) = noon();
        let outcome = set_clock(now, nanos + 1_000_000_000, |_| Err(Errno::EPERM));
        match Uid::effective().is_root() {
            true => assert_eq!(outcome, Ok(1000)),
            false => assert!(outcome.unwrap_err().contains("setting the clock failed")),
        }
        let outcome = set_clock(now, nanos + 1_000_000_000, |_| Err(Errno::EINVAL));
        assert!(outcome.unwrap_err().contains("setting the clock failed"));
    }

    #[test]
    fn an_id_is_thirty_two_digits_with_or_without_dashes() {
        assert!(is_id("") && is_id(&"a".repeat(32)) && is_id("01234567-89ab-4def-8123-456789abcdef"));
        assert!(!is_id("----") && !is_id(&"a".repeat(33)) && !is_id(&("a".repeat(32) + "\n")));
    }

    #[test]
    fn what_is_not_valid_is_refused_before_anything_is_done_and_not_repeated() {
        let reason_for = |change: fn(&mut Personalization)| {
            let mut personalization = Personalization::default();
            change(&mut personalization);
            apply(&personalization).unwrap_err()
        };
        for reason in [
            reason_for(|p| p.ssh_host_key = "secret".into()),
            reason_for(|p| p.entropy = "secret!".into()),
            reason_for(|p| p.machine_id = "secret".into()),
            reason_for(|p| p.unix_nanos = -1),
        ] {
            assert!(!reason.contains("secret"), "{reason}");
        }
    }
}
