//! A guest reached by its address: templates with the Go guest agent, which has neither events nor setup scripts.
//!
//! The setup script goes over SSH: through stdin into a private file. It then runs detached from the connection, so that
//! neither a dropped connection nor an agent restart ends it. `$HOME/.shoes-vz-setup/` in the guest holds `script`, `log`,
//! `exit`, and `started`, which marks that the script was started once.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use shoes_vz_model::{
    guest::{ExecRequest, ExecResponse, Personalization, SetupPhase, SetupStatus, Status, port},
    id::RunnerId,
    text,
};
use tokio::{
    net::TcpStream,
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    follow::{GuestFollower, Pause, SetupLog},
    interface::{Guest, GuestError},
};
use crate::{
    bundles::Script,
    ssh::{Exit, Session, Ssh, SshError},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const STATUS_TIMEOUT: Duration = Duration::from_secs(10);
/// The Go guest agent has no events, so its status is polled.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);
/// Bytes of a response: that of `/exec` in the Go guest agent holds the whole output of a program.
const MAX_RESPONSE: usize = 64 << 20;
/// Bytes of a status, which is a few lines.
const MAX_STATUS: usize = 1 << 20;
/// Characters of an error response that a reason quotes.
const MAX_QUOTE: usize = 500;

#[derive(Clone)]
pub(super) struct TcpGuest {
    ip: IpAddr,
    ssh: Ssh,
}

impl TcpGuest {
    pub(super) fn new(ip: IpAddr, ssh: Ssh) -> Self {
        Self { ip, ssh }
    }

    async fn connect(&self) -> Result<TcpStream, SshError> {
        let address = SocketAddr::new(self.ip, port::SSH);
        match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
            Ok(stream) => {
                stream.map_err(|e| SshError::Connect(format!("connecting to {address} failed: {e}")))
            }
            Err(_) => Err(SshError::Connect(format!("connecting to {address} failed: no answer in time"))),
        }
    }

    async fn session(&self) -> Result<Session, SshError> {
        self.ssh.session(self.connect().await?).await
    }
}

#[async_trait]
impl Guest for TcpGuest {
    fn address(&self) -> Option<IpAddr> {
        Some(self.ip)
    }

    async fn try_ssh(&self) -> Result<(), SshError> {
        self.ssh.ready(self.connect().await?).await
    }

    async fn hand_over(&self, _: RunnerId, script: &Script) -> Result<(), GuestError> {
        let session = self.session().await?;
        let bytes = script.secret().clone();
        let exit = session.run(&start_command(bytes.len()), bytes, |_| {}).await?;
        session.close().await;
        match exit {
            Exit::Code(0) => Ok(()),
            Exit::Code(code) => Err(GuestError::Unavailable(format!(
                "the guest's shell could not store the setup script (exit code {code})"
            ))),
            Exit::Abnormal => Err(GuestError::Unavailable(
                "the SSH connection broke while the guest received the setup script".into(),
            )),
        }
    }

    /// The Go guest agent cannot do this, so its guests are always booted.
    async fn personalize(&self, _: &Personalization) -> Result<(), GuestError> {
        Err(GuestError::Refused("cannot personalize a guest that is reached by TCP".into()))
    }

    async fn prepare_save(&self) -> Result<(), GuestError> {
        Err(GuestError::Refused("cannot save the state of a guest that is reached by TCP".into()))
    }

    async fn query_status(&self) -> Result<Option<Status>, GuestError> {
        match get_status(self.ip).await {
            Ok(status) => Ok(Some(status)),
            Err(GuestError::Refused(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn follow(&self, runner: RunnerId, log: &Path) -> GuestFollower {
        let (sender, status) = watch::channel(None);
        let setup =
            SetupStatus { id: runner.to_string(), phase: SetupPhase::Running, ..SetupStatus::default() };
        let setup = watch::Sender::new(setup);
        let log = SetupLog::open(log);
        let logged = log.written.subscribe();
        let mut tasks = JoinSet::new();
        tasks.spawn(follow_status(self.ip, setup.subscribe(), sender));
        tasks.spawn(follow_script(self.clone(), setup, log));
        GuestFollower::new(status, logged, None, tasks)
    }
}

/// Reads a script of `bytes` bytes from stdin and starts it, once. A script that arrived in part is never started.
fn start_command(bytes: usize) -> String {
    format!(
        "umask 077; d=$HOME/.shoes-vz-setup; mkdir -p \"$d\" && cat > \"$d/part\" && \
         test $(wc -c < \"$d/part\") -eq {bytes} && mkdir \"$d/started\" 2>/dev/null || test -d \"$d/started\" || exit 65; \
         test -f \"$d/script\" && exit 0; mv \"$d/part\" \"$d/script\" && : > \"$d/log\" && \
         {{ nohup /bin/sh -c '/bin/bash \"$0/script\" > \"$0/log\" 2>&1 < /dev/null; echo $? > \"$0/code\"; \
         mv \"$0/code\" \"$0/exit\"' \"$d\" > /dev/null 2>&1 < /dev/null & }}"
    )
}

/// The log from `offset` on, until the script has exited.
fn follow_command(offset: u64) -> String {
    format!(
        "d=$HOME/.shoes-vz-setup; tail -c +{} -f \"$d/log\" & t=$!; \
         until test -f \"$d/exit\"; do sleep 1; done; kill $t",
        offset + 1
    )
}

/// Prints what is still missing of the log, and exits as the script did.
fn rest_command(offset: u64) -> String {
    format!("d=$HOME/.shoes-vz-setup; tail -c +{} \"$d/log\"; exit $(cat \"$d/exit\")", offset + 1)
}

async fn follow_script(guest: TcpGuest, setup: watch::Sender<SetupStatus>, mut log: SetupLog) {
    let mut pause = Pause::new();
    loop {
        match follow_once(&guest, &mut log).await {
            Ok(code) => {
                let log_bytes = log.len();
                setup.send_modify(|s| {
                    (s.phase, s.exit_code, s.log_bytes) = (SetupPhase::Exited, Some(code), log_bytes);
                });
                return;
            }
            Err(error) => tracing::debug!(reason = %error, "setup log stream failed; reconnecting"),
        }
        pause.wait().await;
    }
}

async fn follow_once(guest: &TcpGuest, log: &mut SetupLog) -> Result<i32, GuestError> {
    let session = guest.session().await?;
    let mut written = Ok(());
    let mut append = |log: &mut SetupLog, bytes: &[u8]| {
        if written.is_ok() {
            written = log.append(bytes);
        }
    };
    let followed = session.run(&follow_command(log.len()), Bytes::new(), |bytes| append(log, bytes)).await?;
    if followed == Exit::Abnormal {
        return Err(GuestError::Unavailable(
            "the SSH connection broke before the setup script exited".into(),
        ));
    }
    let exit = session.run(&rest_command(log.len()), Bytes::new(), |bytes| append(log, bytes)).await?;
    session.close().await;
    if let Err(error) = written {
        tracing::warn!(reason = %error, "writing setup.log failed; the setup script's output is lost");
    }
    match exit {
        Exit::Code(code) => Ok(i32::try_from(code).unwrap_or(i32::MAX)),
        Exit::Abnormal => {
            Err(GuestError::Unavailable("cannot read the exit code of the setup script".into()))
        }
    }
}

async fn follow_status(
    ip: IpAddr,
    mut setup: watch::Receiver<SetupStatus>,
    sender: watch::Sender<Option<Status>>,
) {
    let mut was_reachable = true;
    loop {
        let answer = timeout(STATUS_TIMEOUT, get_status(ip)).await;
        let now = setup.borrow_and_update().clone();
        match answer.unwrap_or_else(|_| Err(GuestError::Unavailable("no answer".into()))) {
            Ok(status) => {
                was_reachable = true;
                sender.send_replace(Some(Status { setup: now, ..status }));
            }
            Err(error) => {
                if std::mem::take(&mut was_reachable) {
                    tracing::warn!(%ip, reason = %error, "requesting the guest agent's status failed; retrying");
                }
                // The script's exit is known without the guest agent.
                sender.send_modify(|last| last.get_or_insert_default().setup = now);
            }
        }
        tokio::select! {
            changed = setup.changed() => if changed.is_err() { sleep(STATUS_INTERVAL).await },
            () = sleep(STATUS_INTERVAL) => {}
        }
    }
}

async fn get_status(ip: IpAddr) -> Result<Status, GuestError> {
    let response = call(ip, "GET", "/status", Bytes::new(), MAX_STATUS).await?;
    serde_json::from_slice(&response)
        .map_err(|e| GuestError::Unavailable(format!("GET /status: the answer is not valid: {e}")))
}

pub(super) async fn exec(ip: IpAddr, request: ExecRequest) -> Result<ExecResponse, GuestError> {
    let body = serde_json::to_vec(&request).map_err(|e| GuestError::Refused(e.to_string()))?;
    let response = call(ip, "POST", "/exec", body.into(), MAX_RESPONSE).await?;
    serde_json::from_slice(&response)
        .map_err(|e| GuestError::Unavailable(format!("POST /exec: the answer is not valid: {e}")))
}

async fn call(ip: IpAddr, method: &str, path: &str, body: Bytes, limit: usize) -> Result<Bytes, GuestError> {
    let address = SocketAddr::new(ip, port::API);
    let broken = |e: &dyn std::error::Error| {
        GuestError::Unavailable(format!("{method} {path} at {address} failed: {e}"))
    };
    let stream = TcpStream::connect(address).await.map_err(|e| broken(&e))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| broken(&e))?;
    let connection = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::HOST, address.to_string())
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))
        .map_err(|e| broken(&e))?;
    let response = sender.send_request(request).await.map_err(|e| broken(&e))?;
    let status = response.status();
    let bytes =
        Limited::new(response.into_body(), limit).collect().await.map_err(|e| broken(&*e))?.to_bytes();
    drop(connection);
    match status.is_success() {
        true => Ok(bytes),
        false => Err(GuestError::Refused(format!(
            "{method} {path} at {address}: answered {status}: {}",
            text::one_line(&String::from_utf8_lossy(&bytes), MAX_QUOTE)
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::{io::Write as _, process::Stdio};

    use super::*;

    /// Runs a command as sshd does: in a shell, with the connection as its stdin.
    fn shell(home: &Path, command: &str, stdin: &[u8]) -> std::process::Output {
        let mut child = std::process::Command::new("sh")
            .args(["-c", command])
            .env("HOME", home)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(stdin).unwrap();
        child.wait_with_output().unwrap()
    }

    #[test]
    fn a_script_is_started_once_and_its_output_and_exit_code_arrive_in_pieces() {
        let home = tempfile::tempdir().unwrap();
        let script = b"echo $PPID >> \"$HOME/starts\"; echo one; echo two; exit 7\n";
        for _ in 0..2 {
            assert!(shell(home.path(), &start_command(script.len()), script).status.success());
        }
        let followed = shell(home.path(), &follow_command(0), b"");
        assert!(b"one\ntwo\n".starts_with(&followed.stdout), "{followed:?}");
        let rest = shell(home.path(), &rest_command(4), b"");
        assert_eq!((rest.stdout.as_slice(), rest.status.code()), (&b"two\n"[..], Some(7)));
        let starts = std::fs::read_to_string(home.path().join("starts")).unwrap();
        assert_eq!(starts.lines().count(), 1, "{starts}");
    }

    #[test]
    fn a_script_that_arrived_in_part_is_not_started() {
        let home = tempfile::tempdir().unwrap();
        let cut = shell(home.path(), &start_command(100), b"touch $HOME/started-anyway\n");
        assert_eq!(cut.status.code(), Some(65));
        let whole = b"echo whole\n";
        assert!(shell(home.path(), &start_command(whole.len()), whole).status.success());
        assert!(shell(home.path(), &follow_command(0), b"").status.success());
        assert_eq!(shell(home.path(), &rest_command(0), b"").stdout, b"whole\n");
        assert!(!home.path().join("started-anyway").exists());
    }
}
