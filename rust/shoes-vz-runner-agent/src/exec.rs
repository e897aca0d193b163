//! `POST /exec`: runs one program without a shell and returns its unchanged output.

use std::{
    io,
    os::fd::OwnedFd,
    process::{ExitStatus, Stdio},
    time::Duration,
};

use base64::{Engine, prelude::BASE64_STANDARD};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use shoes_vz_model::guest::{ExecRequest, ExecResponse};
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    process::{Child, Command},
    time::timeout,
};

use crate::{env::ChildEnv, setup::supervise::exit_code};

/// Bytes of output that are kept.
pub const MAX_OUTPUT: usize = 16 << 20;
/// The Go guest agent's timeout.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);

/// Dropping this future, because the caller hung up, kills the program's process group.
pub(crate) async fn exec(request: ExecRequest, env: &ChildEnv) -> ExecResponse {
    let limit = match request.timeout_seconds {
        0 => DEFAULT_TIMEOUT,
        seconds => Duration::from_secs(seconds),
    };
    let mut output = Output::default();
    let (code, error) = match start(&request, env) {
        Ok((mut running, pipe)) => match timeout(limit, running.read_to_end(pipe, &mut output)).await {
            Ok(Ok(status)) => (exit_code(status), String::new()),
            Ok(Err(error)) => (-1, format!("{}: {error}", request.command)),
            Err(_) => (137, format!("{} was killed after {} s", request.command, limit.as_secs())),
        },
        Err(error) => (-1, format!("{}: {error}", request.command)),
    };
    output.answer(code, error)
}

fn start(request: &ExecRequest, env: &ChildEnv) -> io::Result<(Running, pipe::Receiver)> {
    // One pipe for stdout and stderr, so that they stay in order.
    let (reader, writer) = io::pipe()?;
    let child = Command::new(&request.command)
        .args(&request.args)
        .env_clear()
        .envs(env.vars())
        .current_dir(env.cwd())
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .spawn()?;
    let running = Running(Some(child));
    Ok((running, pipe::Receiver::from_owned_fd(OwnedFd::from(reader))?))
}

/// A program in a separate process group. Dropped before its end, it is killed with everything it started.
struct Running(Option<Child>);

impl Running {
    async fn read_to_end(&mut self, mut pipe: pipe::Receiver, output: &mut Output) -> io::Result<ExitStatus> {
        let Some(child) = &mut self.0 else { return Err(io::Error::other("the program has ended already")) };
        let mut chunk = vec![0; 64 * 1024];
        let status = loop {
            tokio::select! {
                read = pipe.read(&mut chunk) => match read? {
                    0 => break child.wait().await?,
                    n => output.push(&chunk[..n]),
                },
                status = child.wait() => {
                    let status = status?;
                    // All of its output is in the pipe, which a background process may hold open without end.
                    loop {
                        match pipe.try_read(&mut chunk) {
                            Ok(0) => break,
                            Ok(n) => output.push(&chunk[..n]),
                            Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                            Err(e) => return Err(e),
                        }
                    }
                    break status;
                }
            }
        };
        // It ended by itself: its background processes continue.
        self.0 = None;
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        if let Some(pid) = child.id() {
            // Fails with ESRCH when it has just ended.
            let _ = killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        // Reaped at once: tokio would leave it a zombie until another child ends.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { child.wait().await });
        }
    }
}

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    dropped: usize,
}

impl Output {
    fn push(&mut self, chunk: &[u8]) {
        let room = (MAX_OUTPUT - self.bytes.len()).min(chunk.len());
        self.bytes.extend_from_slice(&chunk[..room]);
        self.dropped += chunk.len() - room;
    }

    fn answer(self, exit_code: i32, mut error: String) -> ExecResponse {
        if self.dropped > 0 {
            let cut = format!("output cut after {MAX_OUTPUT} bytes; {} more were dropped", self.dropped);
            error = if error.is_empty() { cut } else { format!("{error}; {cut}") };
        }
        let (output, output_base64) = match String::from_utf8(self.bytes) {
            Ok(text) => (text, String::new()),
            Err(e) => {
                (String::from_utf8_lossy(e.as_bytes()).into_owned(), BASE64_STANDARD.encode(e.as_bytes()))
            }
        };
        ExecResponse { output, exit_code, error, output_base64 }
    }
}
