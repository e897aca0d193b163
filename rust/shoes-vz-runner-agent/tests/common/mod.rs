//! The guest agent to test: the real program, over TCP.

#![allow(dead_code, clippy::unwrap_used, unreachable_pub)] // each test file uses its part

use std::{
    net::SocketAddr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use shoes_vz_channel::{BoxedStream, api::GuestApi};
use shoes_vz_model::guest::Status;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
    sync::watch,
    time::timeout,
};

pub const LONG: Duration = Duration::from_secs(30);
pub const EXE: &str = env!("CARGO_BIN_EXE_shoes-vz-runner-agent");

/// The real program, with its directories in a temporary one.
pub struct Agent {
    pub child: Child,
    pub addr: SocketAddr,
    pub dir: PathBuf,
    /// Everything in its log.
    pub logged: watch::Receiver<String>,
    sockets: PathBuf,
}

/// A guest's files.
pub struct Guest {
    dir: tempfile::TempDir,
}

impl Guest {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("home")).unwrap();
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn runner(&self) -> PathBuf {
        self.path().join("runner")
    }

    /// The guest agent as init starts it, but with other paths.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(EXE);
        command
            .args(["-notify-ip", "none"])
            // The machine of these tests may be a runner too, and the tests run in parallel.
            .args(["-runner-processes", "runner-path", "-runner-path"])
            .arg(self.runner())
            .arg("-state-dir")
            .arg(self.path().join("state"))
            .args(args)
            .env_clear()
            // Unless a test says otherwise.
            .env("SHOESVZ_RUNNER_AGENT_SERIAL_PORT", "none")
            .env("HOME", self.path().join("home"))
            .env("USER", "runner")
            .env("PATH", "/usr/bin:/bin")
            // The guest agent must not take its environment for a job's.
            .env("GITHUB_JOB", "liar")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Starts the guest agent.
    pub async fn agent(&self, args: &[&str]) -> Agent {
        let mut child = self.command(args).args(["-listen", "127.0.0.1:0"]).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (log, logged) = watch::channel(String::new());
        let keep = move |line: &str| log.send_modify(|log| *log += &format!("{line}\n"));
        let addr = timeout(LONG, async {
            while let Some(line) = lines.next_line().await.unwrap() {
                keep(&line);
                if let Some((_, rest)) = line.split_once("HTTP API addr=") {
                    return rest.split(' ').next().unwrap().parse().unwrap();
                }
            }
            panic!("the guest agent ended");
        });
        let addr = addr.await.expect("it listens");
        tokio::spawn(async move {
            while let Ok(Some(line)) = lines.next_line().await {
                eprintln!("agent: {line}");
                keep(&line);
            }
        });
        let sockets = self.path().join(format!("{}.sock", child.id().unwrap()));
        let agent = Agent { child, addr, dir: self.path().to_owned(), logged, sockets };
        bridge(&agent.sockets, addr);
        agent
    }
}

/// A test that failed leaves no script behind; the supervisor ends with it.
impl Drop for Guest {
    fn drop(&mut self) {
        let state = self.path().join("state");
        if state.join("exit").exists() {
            return;
        }
        if let Some(group) = std::fs::read_to_string(state.join("started")).ok().and_then(|t| t.parse().ok())
        {
            let _ = nix::sys::signal::killpg(
                nix::unistd::Pid::from_raw(group),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }
}

#[derive(Clone)]
struct Tcp(SocketAddr);

impl shoes_vz_channel::socket::Open for Tcp {
    type Stream = BoxedStream;
    type Error = std::io::Error;
    async fn open(&self, _port: u16) -> std::io::Result<BoxedStream> {
        Ok(Box::new(tokio::net::TcpStream::connect(self.0).await?))
    }
}

impl Agent {
    pub fn api(&self) -> GuestApi {
        GuestApi::new(&self.sockets)
    }

    /// By SIGKILL.
    pub async fn kill(mut self) {
        self.child.start_kill().unwrap();
        self.child.wait().await.unwrap();
    }

    /// Follows `/events` until a status is as wanted; returns all statuses until then.
    pub async fn until(&self, wanted: impl Fn(&Status) -> bool) -> Vec<Status> {
        use futures::StreamExt;
        let mut events = self.api().events();
        let mut seen: Vec<Status> = Vec::new();
        let waited = timeout(LONG, async {
            while let Some(status) = events.next().await {
                seen.push(status.unwrap());
                if wanted(&seen[seen.len() - 1]) {
                    return;
                }
            }
            panic!("the events ended");
        });
        if waited.await.is_err() {
            panic!("no status was as wanted; received: {seen:#?}");
        }
        seen
    }
}

/// A `guest.sock` in front of a TCP listener, so that the typed client can be used.
pub fn bridge(socket: &Path, addr: SocketAddr) {
    let listener = tokio::net::UnixListener::bind(socket).unwrap();
    tokio::spawn(shoes_vz_channel::socket::serve(listener, Tcp(addr)));
}

/// Writes an executable.
pub fn script(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Waits for a file, by the file system's events.
pub async fn exists(path: PathBuf) {
    use notify::Watcher;
    let (wake, mut events) = tokio::sync::mpsc::channel(1);
    let mut watcher = notify::recommended_watcher(move |_| {
        let _ = wake.try_send(()); // full: an event waits already
    })
    .unwrap();
    watcher.watch(path.parent().unwrap(), notify::RecursiveMode::NonRecursive).unwrap();
    let exists = async {
        while !path.exists() {
            events.recv().await.unwrap();
        }
    };
    timeout(LONG, exists).await.unwrap_or_else(|_| panic!("{} was not created", path.display()));
}
