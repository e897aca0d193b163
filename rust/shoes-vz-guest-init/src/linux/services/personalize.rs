//! Requests of the guest agent's that are root's to do, each a connection to a socket: one byte for what, then the request,
//! then its end; the answer is a line that begins with "ok" or "error".

use std::{
    fs::{self, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::{
        fs::PermissionsExt as _,
        net::{UnixListener, UnixStream},
    },
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use nix::unistd::{Gid, chown};

use super::{Answer, Event, PATH, RUNNER, Spawner};
use crate::linux::log::fault;

const SOCKET: &str = "/run/guest-init.sock";
const HELPER: &str = "/usr/local/bin/shoes-vz-runner-agent";
/// A request is some kilobytes at most.
const MAX_REQUEST: u64 = 64 << 10;
/// A guest agent that hangs keeps nobody else waiting for longer.
const PATIENCE: Duration = Duration::from_secs(10);
/// Until sshd is another one.
const SSHD_DEADLINE: Duration = Duration::from_secs(15);

/// Answers requests, one after the other, for ever.
pub(super) fn listen(spawner: &Spawner, events: &mpsc::Sender<Event>) {
    let listener = match bind() {
        Ok(listener) => listener,
        Err(e) => return fault(&format!("{SOCKET} cannot be made; this guest cannot be personalized: {e}")),
    };
    let (spawner, events) = (spawner.clone(), events.clone());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let served = stream.and_then(|stream| serve(stream, &spawner, &events));
            if let Err(e) = served {
                fault(&format!("a request on {SOCKET} was not answered: {e}"));
            }
        }
    });
}

fn bind() -> io::Result<UnixListener> {
    let listener = UnixListener::bind(SOCKET)?;
    chown(SOCKET, None, Some(Gid::from_raw(RUNNER)))?;
    fs::set_permissions(SOCKET, Permissions::from_mode(0o660))?;
    Ok(listener)
}

fn serve(mut stream: UnixStream, spawner: &Spawner, events: &mpsc::Sender<Event>) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = Vec::new();
    (&mut stream).take(MAX_REQUEST).read_to_end(&mut request)?;
    let answer = match request.split_first() {
        Some((b'P', _)) => ask(events, Event::Prepare).map(|()| "ok\n".into()),
        Some((b'R', personalization)) => personalize(personalization, spawner, events),
        _ => Err("this request is not known".into()),
    };
    let line = answer.unwrap_or_else(|words| format!("error {words}\n"));
    stream.write_all(line.as_bytes())
}

fn personalize(
    personalization: &[u8],
    spawner: &Spawner,
    events: &mpsc::Sender<Event>,
) -> Result<String, String> {
    let said = help(personalization, spawner).map_err(|e| format!("{HELPER}: {e}"))?;
    if !said.starts_with("ok") {
        return Ok(said);
    }
    // It is written only when it is to be personalized.
    const KEY: &[u8] = b"\"ssh_host_key\"";
    if personalization.windows(KEY.len()).any(|word| word == KEY) {
        ask(events, Event::NewHostKey)?;
    }
    Ok(said)
}

/// Runs the helper and gives what it said. The reaper collects it.
fn help(personalization: &[u8], spawner: &Spawner) -> io::Result<String> {
    let mut command = Command::new(HELPER);
    command.arg("personalize").env_clear().env("PATH", PATH).env("SHOESVZ_PERSONALIZE_BY_INIT", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = spawner.spawn(&mut command)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(personalization)?;
    }
    let mut said = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut said)?;
    }
    Ok(said)
}

fn ask(events: &mpsc::Sender<Event>, what: impl FnOnce(Answer) -> Event) -> Result<(), String> {
    let (answer, answered) = mpsc::channel();
    events.send(what(answer)).map_err(|_| "the guest ends")?;
    answered
        .recv_timeout(SSHD_DEADLINE)
        .unwrap_or_else(|_| Err(format!("sshd was not ready within {} s", SSHD_DEADLINE.as_secs())))
}
