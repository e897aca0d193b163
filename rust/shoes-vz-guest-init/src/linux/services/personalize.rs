//! Requests of the guest agent that need root, each on a connection to a socket: one byte for the kind of the request, then
//! the request, then an end of file; the answer is a line that begins with "ok" or "error".

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

use crate::linux::{
    children::{GUEST_AGENT, PATH, RUNNER, Spawner},
    event::{Event, Reply},
    log::error,
};

const SOCKET: &str = "/run/guest-init.sock";
/// A request is some kilobytes at most.
const MAX_REQUEST: u64 = 64 << 10;
/// Limits how long a guest agent that hangs delays the next request.
const IO_TIMEOUT: Duration = Duration::from_secs(10);
/// For preparing or replacing sshd.
const SSHD_DEADLINE: Duration = Duration::from_secs(15);

/// Answers requests, one after the other.
pub(super) fn listen(spawner: &Spawner, events: &mpsc::Sender<Event>) {
    let listener = match bind() {
        Ok(listener) => listener,
        Err(e) => return error(&format!("creating {SOCKET} failed; this guest cannot be personalized: {e}")),
    };
    let (spawner, events) = (spawner.clone(), events.clone());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let served = stream.and_then(|stream| serve(stream, &spawner, &events));
            if let Err(e) = served {
                error(&format!("answering a request on {SOCKET} failed: {e}"));
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
    stream.set_read_timeout(Some(IO_TIMEOUT))?;
    stream.set_write_timeout(Some(IO_TIMEOUT))?;
    let mut request = Vec::new();
    (&mut stream).take(MAX_REQUEST).read_to_end(&mut request)?;
    let answer = match request.split_first() {
        Some((b'P', _)) => ask(events, Event::PrepareSshd).map(|()| "ok\n".into()),
        Some((b'R', personalization)) => personalize(personalization, spawner, events),
        _ => Err("the request is of an unknown kind".into()),
    };
    let line = answer.unwrap_or_else(|reason| format!("error {reason}\n"));
    stream.write_all(line.as_bytes())
}

fn personalize(
    personalization: &[u8],
    spawner: &Spawner,
    events: &mpsc::Sender<Event>,
) -> Result<String, String> {
    let answer = run_helper(personalization, spawner).map_err(|e| format!("running {GUEST_AGENT}: {e}"))?;
    if !answer.starts_with("ok") {
        return Ok(answer);
    }
    // The guest agent leaves out the fields that are not to be personalized.
    const KEY: &[u8] = b"\"ssh_host_key\"";
    if personalization.windows(KEY.len()).any(|bytes| bytes == KEY) {
        ask(events, Event::ReplaceSshd)?;
    }
    Ok(answer)
}

/// Runs the helper and returns its answer. The reaper collects the process.
fn run_helper(personalization: &[u8], spawner: &Spawner) -> io::Result<String> {
    let mut command = Command::new(GUEST_AGENT);
    command.arg("personalize").env_clear().env("PATH", PATH).env("SHOESVZ_PERSONALIZE_BY_INIT", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = spawner.spawn(&mut command)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(personalization)?;
    }
    let mut answer = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut answer)?;
    }
    Ok(answer)
}

fn ask(events: &mpsc::Sender<Event>, request: impl FnOnce(Reply) -> Event) -> Result<(), String> {
    let (reply, answer) = mpsc::channel();
    events.send(request(reply)).map_err(|_| "the guest is ending")?;
    answer
        .recv_timeout(SSHD_DEADLINE)
        .unwrap_or_else(|_| Err(format!("sshd was not ready within {} s", SSHD_DEADLINE.as_secs())))
}
