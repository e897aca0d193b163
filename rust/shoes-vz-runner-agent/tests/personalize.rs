//! `POST /personalize` and `POST /prepare-save`, with a fake init and a fake helper: the real ones would change this machine.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::{fs, path::PathBuf};

use common::{EXE, LONG, bridge, script};
use http::StatusCode;
use shoes_vz_channel::api::{ApiError, GuestApi};
use shoes_vz_model::guest::{Personalization, Personalized};
use shoes_vz_runner_agent::{State, api};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, UnixListener},
    task::JoinHandle,
    time::timeout,
};

const ENTROPY: &str = "VGhlIGVudHJvcHkgbXVzdCBub3QgYmUgc2Vlbi4=";
const HOST_KEY: &str =
    "-----BEGIN OPENSSH PRIVATE KEY-----\nthis-is-a-secret\n-----END OPENSSH PRIVATE KEY-----\n";

struct Guest {
    dir: tempfile::TempDir,
    api: GuestApi,
}

impl Guest {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("home");
        fs::create_dir(&home).unwrap();
        let state = State::for_tests("first", dir.path().join("state"), EXE.as_ref(), home).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = dir.path().join("guest.sock");
        bridge(&socket, listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, api::router(state)).await });
        Self { api: GuestApi::new(socket), dir }
    }

    fn home(&self, name: &str) -> PathBuf {
        self.dir.path().join("home").join(name)
    }

    /// An init that answers one request; the handle returns that request.
    fn init(&self, answer: &'static str) -> JoinHandle<String> {
        let listener = UnixListener::bind(self.home("init.sock")).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = String::new();
            stream.read_to_string(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            request
        })
    }

    async fn personalize(&self, personalization: &Personalization) -> Result<Personalized, ApiError> {
        timeout(LONG, self.api.personalize(personalization)).await.expect("it answers")
    }
}

fn everything() -> Personalization {
    Personalization {
        entropy: ENTROPY.into(),
        unix_nanos: 1_800_000_000_000_000_000,
        machine_id: "0123456789abcdef0123456789abcdef".into(),
        boot_id: "01234567-89ab-cdef-0123-456789abcdef".into(),
        ssh_host_key: HOST_KEY.into(),
        authorized_key: "ssh-ed25519 AAAAC3Nz host".into(),
    }
}

fn refusal(outcome: Result<Personalized, ApiError>) -> (StatusCode, String) {
    let error = outcome.unwrap_err();
    let reason = error.to_string();
    for secret in [ENTROPY, "this-is-a-secret"] {
        assert!(!reason.contains(secret), "{reason}");
    }
    (error.status().unwrap(), reason)
}

#[tokio::test]
async fn the_guests_init_does_what_needs_root_and_the_guest_agent_the_rest() {
    let guest = Guest::new().await;
    let init = guest.init("ok {\"clock_was_behind_ms\":1500}\n");
    let before = guest.api.status().await.unwrap().agent_start;
    assert_eq!(guest.personalize(&everything()).await.unwrap(), Personalized { clock_was_behind_ms: 1500 });
    let request = init.await.unwrap();
    let received: Personalization = serde_json::from_str(request.strip_prefix('R').unwrap()).unwrap();
    assert_eq!(received, Personalization { authorized_key: String::new(), ..everything() });
    let keys = fs::read_to_string(guest.home(".ssh/authorized_keys")).unwrap();
    assert!(keys.starts_with("ssh-ed25519 AAAAC3Nz "), "{keys}");
    assert_ne!(guest.api.status().await.unwrap().agent_start, before, "it is another guest now");
}

#[tokio::test]
async fn a_new_login_key_alone_needs_no_root() {
    let guest = Guest::new().await;
    let personalization =
        Personalization { authorized_key: everything().authorized_key, ..Personalization::default() };
    assert_eq!(guest.personalize(&personalization).await.unwrap(), Personalized::default());
    assert!(guest.home(".ssh/authorized_keys").exists());
}

#[tokio::test]
async fn without_such_an_init_a_helper_gets_everything_on_its_stdin() {
    let guest = Guest::new().await;
    let got = guest.home("got");
    script(
        &guest.home("helper"),
        &format!("#!/bin/sh\necho \"$# arguments\" > {0}\ncat >> {0}\necho 'ok {{}}'\n", got.display()),
    );
    assert_eq!(guest.personalize(&everything()).await.unwrap(), Personalized::default());
    let got = fs::read_to_string(got).unwrap();
    let received: Personalization = serde_json::from_str(got.strip_prefix("0 arguments\n").unwrap()).unwrap();
    assert_eq!((received.entropy.as_str(), received.ssh_host_key.as_str()), (ENTROPY, HOST_KEY));
}

#[tokio::test]
async fn a_guest_that_cannot_be_personalized_gives_the_reason_and_accepts_no_new_login() {
    let guest = Guest::new().await;
    let (status, reason) = refusal(guest.personalize(&everything()).await);
    assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
    assert!(reason.contains("cannot be personalized") && reason.contains("helper"), "{reason}");
    // As sudo does, or a helper that fails.
    script(&guest.home("helper"), "#!/bin/sh\ncat > /dev/null\necho 'a password is required' >&2\nexit 1\n");
    let (status, reason) = refusal(guest.personalize(&everything()).await);
    assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
    assert!(reason.contains("a password is required"), "{reason}");
    let _init = guest.init("error setting the clock failed\n");
    let (status, reason) = refusal(guest.personalize(&everything()).await);
    assert_eq!(status, StatusCode::NOT_IMPLEMENTED);
    assert!(reason.contains("setting the clock failed"), "{reason}");
    assert!(!guest.home(".ssh").exists());
    assert_eq!(guest.api.status().await.unwrap().agent_start, "first");
}

#[tokio::test]
async fn the_helper_itself_refuses_what_is_not_a_personalization_without_quoting_it() {
    // It is refused before anything is changed, so the real helper may run here.
    let mut child = tokio::process::Command::new(EXE)
        .arg("personalize")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(format!("{{\"unix_nanos\":\"{ENTROPY}\"}}").as_bytes()).await.unwrap();
    drop(stdin);
    let output = timeout(LONG, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "error stdin is not a valid personalization\n");
}

#[tokio::test]
async fn a_save_is_prepared_by_the_guests_init_if_there_is_one() {
    let guest = Guest::new().await;
    timeout(LONG, guest.api.prepare_save()).await.unwrap().unwrap();
    let init = guest.init("ok\n");
    timeout(LONG, guest.api.prepare_save()).await.unwrap().unwrap();
    assert_eq!(init.await.unwrap(), "P");
}
