//! `POST /exec`: one program, no shell, its output as it came.

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

/// Most output kept.
pub const MAX_OUTPUT: usize = 16 << 20;
/// The Go guest agent's.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(120);

/// Runs it. When this future is dropped (its caller hung up), the program's process group is killed.
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
    // One pipe for both, so that they stay in order.
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

/// A program in a process group of its own; dropped before its end, it is killed with all it started.
struct Running(Option<Child>);

impl Running {
    async fn read_to_end(&mut self, mut pipe: pipe::Receiver, output: &mut Output) -> io::Result<ExitStatus> {
        let Some(child) = &mut self.0 else { return Err(io::Error::other("it is over")) };
        let mut chunk = vec![0; 64 * 1024];
        let status = loop {
            tokio::select! {
                read = pipe.read(&mut chunk) => match read? {
                    0 => break child.wait().await?,
                    n => output.push(&chunk[..n]),
                },
                status = child.wait() => {
                    let status = status?;
                    // All it wrote is in the pipe; what it left in the background may hold that open for ever.
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
        // Over by itself; what it left in the background stays.
        self.0 = None;
        Ok(status)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Some(mut child) = self.0.take() else { return };
        if let Some(pid) = child.id() {
            // ESRCH: it ended just now.
            let _ = killpg(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
        }
        // Buried at once; left to tokio, it would stay a zombie until another child ends.
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
            let words = format!("output cut after {MAX_OUTPUT} bytes; {} more were dropped", self.dropped);
            error = if error.is_empty() { words } else { format!("{error}; {words}") };
        }
        let (output, output_base64) = match String::from_utf8(self.bytes) {
            Ok(text) => (text, String::new()),
            Err(not) => {
                (String::from_utf8_lossy(not.as_bytes()).into_owned(), BASE64_STANDARD.encode(not.as_bytes()))
            }
        };
        ExecResponse { output, exit_code, error, output_base64 }
    }
}
