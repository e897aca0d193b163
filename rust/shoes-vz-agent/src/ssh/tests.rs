//! Logins with every kind of key, against OpenSSH's sshd, ssh-keygen and ssh-agent.

use std::{
    fs,
    io::Read as _,
    net::SocketAddr,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tokio::net::TcpStream;

use super::*;

const TEST_TIMEOUT: Duration = Duration::from_secs(60);

fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Creates a key pair, and returns the path of the private half.
fn keygen(dir: &Path, name: &str, kind: &[&str], passphrase: &str) -> PathBuf {
    let path = dir.join(name);
    run(Command::new("ssh-keygen")
        .args(["-q", "-N", passphrase, "-C", name, "-f"])
        .arg(&path)
        .arg("-t")
        .args(kind));
    path
}

fn public(private: &Path) -> String {
    fs::read_to_string(private.with_extension("pub")).unwrap()
}

fn user() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::Uid::current()).unwrap();
    user.expect("the user of this test is in the password database").name
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// OpenSSH's sshd, one process per connection as inetd starts it, so that no port has to be guessed.
struct Sshd {
    dir: tempfile::TempDir,
    address: SocketAddr,
    _accepting: tokio_util::task::AbortOnDropHandle<()>,
}

impl Sshd {
    /// Accepts the keys in `authorized`; `host_key` is the type of its host key.
    async fn start(host_key: &[&str], authorized: &[&Path], more: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // The directory that sshd drops its privileges into. The package's service creates it, and does not run here.
        drop(fs::create_dir_all("/run/sshd"));
        keygen(dir.path(), "host", host_key, "");
        let keys: String = authorized.iter().map(|key| public(key)).collect();
        fs::write(dir.path().join("authorized"), keys).unwrap();
        let at = dir.path().display();
        let config = format!(
            "HostKey {at}/host\nAuthorizedKeysFile {at}/authorized\nStrictModes no\nUsePAM no\n\
             PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin prohibit-password\n\
             LogLevel VERBOSE\n{more}\n"
        );
        fs::write(dir.path().join("config"), config).unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (config, log) = (dir.path().join("config"), dir.path().join("log"));
        let accepting = tokio::spawn(async move {
            let mut children = Vec::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let stream = std::os::fd::OwnedFd::from(stream.into_std().unwrap());
                let both = (Stdio::from(stream.try_clone().unwrap()), Stdio::from(stream));
                let child = tokio::process::Command::new("/usr/sbin/sshd")
                    .args(["-i", "-f"])
                    .arg(&config)
                    .arg("-E")
                    .arg(&log)
                    .stdin(both.0)
                    .stdout(both.1)
                    .kill_on_drop(true)
                    .spawn();
                children.push(child.expect("openssh-server is installed"));
            }
        });
        Self { dir, address, _accepting: tokio_util::task::AbortOnDropHandle::new(accepting) }
    }

    #[allow(clippy::print_stderr, reason = "shows the log of sshd when a test fails")]
    async fn ready(&self, ssh: &Ssh) -> Result<(), SshError> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let tried = timeout(TEST_TIMEOUT, ssh.ready(stream)).await.expect("an attempt has its own timeout");
        tried.inspect_err(|error| eprintln!("{error}\n{}", self.log()))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    fn host_key(&self) -> String {
        public(&self.dir.path().join("host"))
    }
}

/// A real ssh-agent, with these keys.
fn ssh_agent(dir: &Path, keys: &[&Path]) -> (Killed, PathBuf) {
    let socket = dir.join("agent.sock");
    let mut agent =
        Command::new("ssh-agent").arg("-D").arg("-a").arg(&socket).stdout(Stdio::piped()).spawn().unwrap();
    // It prints its socket once it listens.
    let mut printed = [0; 16];
    let n = agent.stdout.as_mut().unwrap().read(&mut printed).unwrap();
    assert!(n > 0, "ssh-agent did not start");
    for key in keys {
        run(Command::new("ssh-add").arg("-q").arg(key).env("SSH_AUTH_SOCK", &socket));
    }
    (Killed(agent), socket)
}

fn user_keys(agent: Option<PathBuf>, directory: &Path) -> LoginKeys {
    LoginKeys::User(UserKeys { agent, directory: Some(directory.to_owned()) })
}

#[tokio::test]
async fn every_kind_of_key_logs_in_and_every_kind_of_host_key_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    for (n, kind) in
        [&["ed25519"][..], &["ecdsa"], &["rsa", "-b", "3072"], &["rsa", "-b", "2048"]].iter().enumerate()
    {
        let key = keygen(dir.path(), &format!("k{n}"), kind, "");
        let sshd = Sshd::start(kind, &[&key], "").await;
        let login = Login::new(&user(), &key, &sshd.host_key()).unwrap();
        sshd.ready(&login.for_one_vm()).await.unwrap();
        // Without a pinned key, the first host key is trusted, and no other after it.
        let login = Login::new(&user(), &key, "").unwrap();
        let ssh = login.for_one_vm();
        sshd.ready(&ssh).await.unwrap();
        sshd.ready(&ssh).await.unwrap();
        let other = Sshd::start(kind, &[&key], "").await;
        assert!(other.ready(&ssh).await.unwrap_err().is_final(), "{kind:?}");
    }
}

#[tokio::test]
async fn rsa_keys_sign_by_sha_2_and_never_by_sha_1() {
    let dir = tempfile::tempdir().unwrap();
    let key = keygen(dir.path(), "id_rsa", &["rsa", "-b", "2048"], "");
    let only =
        |algorithm: &str| format!("PubkeyAcceptedAlgorithms {algorithm}\nHostKeyAlgorithms ssh-ed25519");
    let logins = || {
        [
            Login::new(&user(), &key, "").unwrap(),
            Login::new(&user(), user_keys(None, dir.path()), "").unwrap(),
        ]
    };
    let sshd = Sshd::start(&["ed25519"], &[&key], &only("rsa-sha2-512")).await;
    for login in logins() {
        sshd.ready(&login.for_one_vm()).await.unwrap();
    }
    let sshd = Sshd::start(&["ed25519"], &[&key], &only("ssh-rsa")).await;
    for login in logins() {
        let error = sshd.ready(&login.for_one_vm()).await.unwrap_err();
        assert!(matches!(error, SshError::Refused(_) | SshError::NoKey { .. }), "{error}");
    }
    assert_eq!(sshd.log().matches("signature algorithm rsa-sha2-512 not in").count(), 2, "{}", sshd.log());
}

#[tokio::test]
async fn the_users_keys_are_offered_as_ssh_does_and_unusable_ones_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    keygen(dir.path(), "id_rsa", &["rsa", "-b", "2048"], "secret phrase");
    fs::write(dir.path().join("id_ecdsa"), "not a key").unwrap();
    let key = keygen(dir.path(), "id_ed25519", &["ed25519"], "");
    let sshd = Sshd::start(&["ed25519"], &[&key], "").await;
    let login = Login::new(&user(), user_keys(None, dir.path()), "").unwrap();
    sshd.ready(&login.for_one_vm()).await.unwrap();

    let other = keygen(dir.path(), "other", &["ed25519"], "");
    let sshd = Sshd::start(&["ed25519"], &[&other], "").await;
    let error = sshd.ready(&login.for_one_vm()).await.unwrap_err();
    assert!(!error.is_final(), "a key may still be added");
    let text = error.to_string();
    for part in [
        &user(),
        "SSH_AUTH_SOCK is not set",
        "id_rsa: it is protected by a passphrase",
        "id_ecdsa: it is not a valid private key",
        "id_ed25519: the guest rejected it",
        "authorized_keys",
        "--ssh-key",
    ] {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    assert!(!text.contains("secret"), "{text}");
}

#[tokio::test]
async fn the_error_names_every_place_without_a_key_and_a_key_added_later_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("ssh");
    let key = keygen(dir.path(), "other", &["ed25519"], "");
    let sshd = Sshd::start(&["ed25519"], &[&key], "").await;
    let ssh =
        Login::new(&user(), user_keys(Some(dir.path().join("none.sock")), &home), "").unwrap().for_one_vm();
    let text = sshd.ready(&ssh).await.unwrap_err().to_string();
    for part in ["none.sock", "id_rsa: there is no such file", "id_ed25519", "--ssh-key"] {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
    fs::create_dir(&home).unwrap();
    fs::copy(&key, home.join("id_ed25519")).unwrap();
    sshd.ready(&ssh).await.unwrap();
}

#[tokio::test]
async fn the_ssh_agent_signs_with_keys_of_every_kind_even_if_they_are_under_a_passphrase_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("ssh");
    fs::create_dir(&home).unwrap();
    for (n, kind) in [&["ed25519"][..], &["ecdsa"], &["rsa", "-b", "2048"]].iter().enumerate() {
        let folder = dir.path().join(n.to_string());
        fs::create_dir(&folder).unwrap();
        let key = keygen(&folder, "k", kind, "");
        let (_agent, socket) = ssh_agent(&folder, &[&key]);
        // From here on it is on disk under a passphrase only.
        run(Command::new("ssh-keygen").args(["-q", "-p", "-N", "secret phrase", "-f"]).arg(&key));
        fs::rename(&key, home.join("id_rsa")).unwrap();
        let sshd = Sshd::start(&["ed25519"], &[&key], "").await;
        let login = Login::new(&user(), user_keys(Some(socket), &home), "").unwrap();
        sshd.ready(&login.for_one_vm()).await.unwrap();
    }
}

#[tokio::test]
async fn more_keys_than_sshd_accepts_in_one_connection_are_offered_in_the_next_and_the_accepted_one_goes_first()
 {
    let dir = tempfile::tempdir().unwrap();
    let keys: Vec<PathBuf> = (0..9).map(|n| keygen(dir.path(), &format!("k{n}"), &["ed25519"], "")).collect();
    let (_agent, socket) = ssh_agent(dir.path(), &keys.iter().map(PathBuf::as_path).collect::<Vec<_>>());
    for more in ["", "MaxAuthTries 2"] {
        let sshd = Sshd::start(&["ed25519"], &[&keys[8]], more).await;
        let login =
            Login::new(&user(), user_keys(Some(socket.clone()), &dir.path().join("none")), "").unwrap();
        let ssh = login.for_one_vm();
        let mut tries = 1;
        while sshd.ready(&ssh).await.is_err() {
            tries += 1;
            assert!(tries <= 9, "{more}\n{}", sshd.log());
        }
        assert!(tries > 1, "nine keys cannot have been offered in one connection");
        assert!(more.contains("Max") || !sshd.log().contains("Too many"), "{}", sshd.log());
        sshd.ready(&login.for_one_vm()).await.expect("the next VM is logged into at once");
        sshd.ready(&ssh).await.expect("so is this one");
    }
}

#[tokio::test]
async fn an_error_about_a_key_file_names_the_file_without_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    fs::write(&path, "-----BEGIN OPENSSH PRIVATE KEY-----\nc2VjcmV0\n-----END OPENSSH PRIVATE KEY-----\n")
        .unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let text = Login::new("runner", &path, "").unwrap_err().to_string();
    assert!(text.contains("key\"") && !text.contains("c2VjcmV0"), "{text}");
    let text = Login::new("runner", Path::new("/dev/zero"), "").unwrap_err().to_string();
    assert!(text.contains("/dev/zero"), "{text}");
    let locked = keygen(dir.path(), "locked", &["ed25519"], "secret phrase");
    let text = Login::new("runner", &locked, "").unwrap_err().to_string();
    assert!(text.contains("passphrase"), "{text}");
}
