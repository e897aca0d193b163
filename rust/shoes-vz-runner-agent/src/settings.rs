//! The guest agent's settings.

use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
};

use shoes_vz_model::listen::{Callers, listen_addr};
pub use shoes_vz_process::settings::Unusable;
use shoes_vz_process::{
    log,
    secret::Token,
    settings::{CONFIG, Flags, LOG, LOG_FORMAT, Mistakes, Program, Setting, Table, Values, command_line},
};

use crate::env::ChildEnv;

pub static PROGRAM: Program = Program {
    name: "shoes-vz-runner-agent",
    env_prefix: "SHOESVZ_RUNNER_AGENT_",
    foreign_env: &[],
    settings: &[
        Setting::new("listen", "ADDR", "HTTP listen address; \":PORT\" binds loopback unless --token-file is set").or(":8080"),
        Setting::new("runner-path", "DIR", "Directory of the Actions runner; /tmp/runner is watched as well").or_else("~/_work/_runner"),
        Setting::new("runner-processes", "WHICH", "Which processes to treat as the Actions runner: anywhere (all with its name) or runner-path (only those below a runner path)")
            .or("anywhere"),
        Setting::new("runner-id", "ID", "Name of this guest in IP notices").or_else("the hardware's or the machine's ID").also_env("SHOES_VZ_RUNNER_ID"),
        Setting::new("host-ip", "IP", "Address of the host agent, for IP notices").or("192.168.64.1"),
        Setting::new("agent-port", "PORT", "Port of the host agent, for IP notices").or("8081"),
        Setting::new("token-file", "FILE", "File containing the bearer token that TCP callers must present"),
        Setting::new("serial-port", "PORT", "The guest channel's virtio-serial port: a device, auto (found by its name), or none").or("auto"),
        Setting::new("vsock", "WHICH", "The guest channel over vsock: auto, none, or unix:DIR (Unix sockets in DIR, for guests of the stand-in)")
            .or_else("auto on macOS, else none"),
        Setting::new("notify-ip", "WHEN", "Whether to report this guest's address to the host agent: auto (when there is no guest channel) or none")
            .or("auto"),
        Setting::new("ssh-addr", "IP:PORT", "Address of this guest's sshd").or("127.0.0.1:22"),
        Setting::new("state-dir", "DIR", "Private directory for the setup script's files").or_else("below /dev/shm, or TMPDIR"),
        CONFIG,
        LOG,
        LOG_FORMAT,
    ],
    tables: &[],
};

#[derive(Debug)]
pub struct All;

impl Table for All {
    const PROGRAM: &'static Program = &PROGRAM;
}

#[derive(Debug, clap::Parser)]
#[command(
    name = "shoes-vz-runner-agent",
    version,
    about = "The guest agent of shoes-vz: reports the runner's state and runs commands inside a VM",
    after_help = "Flags may be written with one dash.\n\n\
                  Example: shoes-vz-runner-agent --listen :8080 --runner-path /tmp/runner --host-ip 192.168.64.1 --agent-port 8081\n\n\
                  Exit codes: 1 failure, 2 wrong flags or settings. SIGTERM and SIGINT end it, as they do any program; SIGHUP, SIGUSR1 and SIGUSR2 are ignored.",
    max_term_width = 100
)]
struct Cli {
    #[command(flatten)]
    flags: Flags<All>,
}

/// Whether to report this guest's address to the host agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NotifyIp {
    /// When there is no guest channel.
    Auto,
    None,
}

/// Which processes are the Actions runner's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunnerProcesses {
    /// All that have their names: a guest has only one runner.
    Anywhere,
    /// Those under a runner path, for machines with several runners, such as a test's.
    RunnerPath,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialPort {
    /// The one named `shoes_vz_model::guest::SERIAL_PORT_NAME`.
    Auto,
    None,
    Path(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vsock {
    /// AF_VSOCK, if the guest has it.
    Auto,
    None,
    /// Unix sockets in this directory.
    Unix(PathBuf),
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub listen: SocketAddr,
    /// Directories where the Actions runner may be installed.
    pub runner_paths: Vec<PathBuf>,
    pub runner_processes: RunnerProcesses,
    /// The guest's name in IP notices.
    pub runner_id: Option<String>,
    /// The host agent, for IP notices.
    pub host: SocketAddr,
    /// TCP callers must present it.
    pub token: Option<Token>,
    pub serial_port: SerialPort,
    pub vsock: Vsock,
    pub notify_ip: NotifyIp,
    /// Port 22 of the guest channel leads there.
    pub ssh_addr: SocketAddr,
    /// For the setup script's files.
    pub state_dir: PathBuf,
    pub log: (log::Filter, log::Format),
    env: ChildEnv,
}

impl Settings {
    pub(crate) fn child_env(&self) -> ChildEnv {
        self.env.clone()
    }

    /// From the process' arguments (with its name) and its environment.
    pub fn read(
        args: impl IntoIterator<Item = OsString>,
        vars: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Unusable> {
        let (cli, mistakes) = command_line::read::<Cli>(args).map_err(Unusable::Flags)?;
        check(Values::gather(&cli.flags, vars, mistakes)).map_err(Unusable::Mistakes)
    }
}

fn check(mut values: Values) -> Result<Settings, Mistakes> {
    let v = &mut values;
    let env = ChildEnv::of_this_process();
    let token = v.token("token-file");
    // If the token cannot be read, that alone is the mistake.
    let callers = if v.is_given("token-file") { Callers::Authenticated } else { Callers::Anyone };
    let listen = v.parse("listen", |t| listen_addr(t, callers));
    let host_ip =
        v.parse("host-ip", |t| t.parse::<IpAddr>().map_err(|_| format!("{t:?} is not an IP address")));
    let agent_port = v.port("agent-port");
    let ssh_addr = v.parse("ssh-addr", |t| t.parse().map_err(|_| format!("{t:?} is not a valid IP:PORT")));
    let serial_port = v.parse("serial-port", serial_port);
    let vsock = match v.is_given("vsock") {
        true => v.parse("vsock", vsock),
        false if cfg!(target_os = "macos") => Some(Vsock::Auto),
        false => Some(Vsock::None),
    };
    let runner_path = v.path("runner-path").unwrap_or_else(|| env.home.join("_work").join("_runner"));
    let mut runner_paths = vec![absolute(&runner_path, &env.home)];
    // myshoes' setup script installs the runner there (its pkg/starter/scripts.go).
    let of_myshoes = PathBuf::from("/tmp/runner");
    if runner_paths[0] != of_myshoes {
        runner_paths.push(of_myshoes);
    }
    let runner_processes = v.parse("runner-processes", |t| match t {
        "anywhere" => Ok(RunnerProcesses::Anywhere),
        "runner-path" => Ok(RunnerProcesses::RunnerPath),
        other => Err(format!("{other:?} is neither anywhere nor runner-path")),
    });
    let notify_ip = v.parse("notify-ip", |t| match t {
        "auto" => Ok(NotifyIp::Auto),
        "none" => Ok(NotifyIp::None),
        other => Err(format!("{other:?} is neither auto nor none")),
    });
    let runner_id = v.text("runner-id");
    let state_dir = v.path("state-dir").unwrap_or_else(crate::env::default_state_dir);
    let log = v.log();
    let whole = || {
        Some(Settings {
            listen: listen?,
            runner_paths,
            runner_processes: runner_processes?,
            runner_id,
            host: SocketAddr::new(host_ip?, agent_port?),
            token,
            serial_port: serial_port?,
            vsock: vsock?,
            notify_ip: notify_ip?,
            ssh_addr: ssh_addr?,
            state_dir,
            log,
            env,
        })
    };
    let whole = whole();
    values.finish(whole)
}

fn serial_port(text: &str) -> Result<SerialPort, String> {
    match text {
        "auto" => Ok(SerialPort::Auto),
        "none" => Ok(SerialPort::None),
        path if path.starts_with('/') => Ok(SerialPort::Path(path.into())),
        other => Err(format!("{other:?} is neither auto, none, nor an absolute path")),
    }
}

fn vsock(text: &str) -> Result<Vsock, String> {
    match (text, text.strip_prefix("unix:")) {
        ("auto", _) => Ok(Vsock::Auto),
        ("none", _) => Ok(Vsock::None),
        (_, Some(dir)) if dir.starts_with('/') => Ok(Vsock::Unix(dir.into())),
        (other, _) => Err(format!("{other:?} is neither auto, none, nor unix: with an absolute path")),
    }
}

fn absolute(path: &Path, home: &Path) -> PathBuf {
    match path.strip_prefix("~") {
        Ok(rest) => home.join(rest),
        Err(_) => home.join(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(args: &[&str]) -> Result<Settings, Mistakes> {
        let args = std::iter::once("x").chain(args.iter().copied()).map(OsString::from);
        match Settings::read(args, []) {
            Ok(settings) => Ok(settings),
            Err(Unusable::Mistakes(mistakes)) => Err(mistakes),
            Err(Unusable::Flags(e)) => panic!("{e}"),
        }
    }

    #[test]
    fn the_go_agents_command_line_is_accepted() {
        let go =
            "-listen :8080 -runner-path /tmp/runner -runner-id id -host-ip 192.168.64.1 -agent-port 8081";
        let s = read(&go.split(' ').collect::<Vec<_>>()).unwrap();
        assert_eq!(s.listen.to_string(), "127.0.0.1:8080");
        assert_eq!((s.host.to_string().as_str(), s.runner_id.as_deref()), ("192.168.64.1:8081", Some("id")));
        assert_eq!(s.runner_paths, [PathBuf::from("/tmp/runner")]);
    }

    #[test]
    fn a_runner_path_may_begin_with_a_tilde() {
        let s = read(&["--runner-path", "~/r"]).unwrap();
        assert!(s.runner_paths[0].is_absolute() && s.runner_paths[0].ends_with("r"));
    }

    #[test]
    fn virtio_sockets_are_auto_none_or_a_directory() {
        let default = if cfg!(target_os = "macos") { Vsock::Auto } else { Vsock::None };
        for (args, wanted) in [
            (&[][..], default),
            (&["-vsock", "auto"], Vsock::Auto),
            (&["--vsock=none"], Vsock::None),
            (&["-vsock", "unix:/run/flag"], Vsock::Unix("/run/flag".into())),
        ] {
            assert_eq!(read(args).unwrap().vsock, wanted, "{args:?}");
        }
        for bad in ["Auto", "unix:", "unix:run", "/run", "tcp:/run"] {
            let wrong = read(&["-vsock", bad]).unwrap_err();
            assert!(wrong.0.len() == 1 && wrong.0[0].starts_with("--vsock: "), "{bad:?}: {wrong}");
        }
    }

    #[test]
    fn every_mistake_is_reported_at_once() {
        let wrong = read(&[
            "--listen",
            "0.0.0.0:1",
            "--host-ip",
            "host",
            "--ssh-addr",
            "x",
            "--serial-port",
            "com1",
            "--vsock",
            "unix:here",
            "--notify-ip",
            "never",
            "--runner-processes",
            "some",
            "--config",
            "/nonexistent/c",
        ])
        .unwrap_err();
        assert_eq!(wrong.0.len(), 8, "{wrong}");
    }
}
