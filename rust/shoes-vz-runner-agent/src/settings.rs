//! Flags, environment, TOML file: read whole, every mistake told at once.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
};

use clap::{Parser, ValueEnum};
use serde::Deserialize;
use shoes_vz_model::listen::{Callers, listen_addr};

use crate::env::ChildEnv;

/// The command line. Each flag may also come from the environment (`SHOESVZ_RUNNER_AGENT_<FLAG>`) or the `--config`
/// file (same names), in this order.
#[derive(Debug, Default, Parser, Deserialize)]
#[command(name = "shoes-vz-runner-agent", version, about = "The guest agent of shoes-vz")]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Flags {
    /// Where the HTTP API listens; without a token on loopback only [default: :8080]
    #[arg(long, env = "SHOESVZ_RUNNER_AGENT_LISTEN")]
    pub listen: Option<String>,
    /// The runner's directory; /tmp/runner is watched as well [default: ~/_work/_runner]
    #[arg(long, env = "SHOESVZ_RUNNER_AGENT_RUNNER_PATH")]
    pub runner_path: Option<PathBuf>,
    /// Which processes named like the runner's are taken for it: those "anywhere", or those that stand in a "runner-path"
    /// [default: anywhere]
    #[arg(long, env = "SHOESVZ_RUNNER_AGENT_RUNNER_PROCESSES")]
    pub runner_processes: Option<RunnerProcesses>,
    /// What this guest calls itself in IP notices [default: the hardware's or the machine's id]
    #[arg(long, env = "SHOES_VZ_RUNNER_ID")]
    pub runner_id: Option<String>,
    /// The host agent's address, for IP notices [default: 192.168.64.1]
    #[arg(long, env = "SHOESVZ_RUNNER_AGENT_HOST_IP")]
    pub host_ip: Option<String>,
    /// The host agent's port, for IP notices [default: 8081]
    #[arg(long, env = "SHOESVZ_RUNNER_AGENT_AGENT_PORT")]
    pub agent_port: Option<u16>,
    /// File with the token that TCP callers must show
    #[arg(long, env = "SHOESVZ_RUNNER_AGENT_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// The guest channel's virtio-serial port: a device, "auto" (found by its name), or "none" [default: auto]
    #[arg(long, env = "SHOESVZ_RUNNER_AGENT_SERIAL_PORT")]
    pub serial_port: Option<String>,
    /// The guest channel over virtio sockets: "auto", "none", or "unix:DIR": the same over Unix sockets in DIR, which
    /// the Linux stand-in of Virtualization.framework has in their place (guest-5422 is ours, host-5422 the host's)
    /// [default: auto on macOS, else none]
    #[arg(long, env = "SHOESVZ_RUNNER_AGENT_VSOCK")]
    pub vsock: Option<String>,
    /// Telling the host agent this guest's address; auto: when there is no guest channel [default: auto]
    #[arg(long, env = "SHOESVZ_RUNNER_AGENT_NOTIFY_IP")]
    pub notify_ip: Option<Ask>,
    /// This guest's sshd [default: 127.0.0.1:22]
    #[arg(long, env = "SHOESVZ_RUNNER_AGENT_SSH_ADDR")]
    pub ssh_addr: Option<String>,
    /// Private directory for the setup script's files [default: below /dev/shm, or TMPDIR]
    #[arg(long, env = "SHOESVZ_RUNNER_AGENT_STATE_DIR")]
    pub state_dir: Option<PathBuf>,
    /// TOML file with any of these, without the dashes
    #[arg(long, env = "SHOESVZ_RUNNER_AGENT_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
}

/// Whether to do something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ask {
    /// When it can be done.
    Auto,
    /// Never.
    None,
}

/// See [`Flags::runner_processes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RunnerProcesses {
    /// A guest has one runner, wherever that lives.
    Anywhere,
    /// Where several share a machine: tests, mostly.
    RunnerPath,
}

/// Which virtio-serial port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SerialPort {
    /// The one named `shoes_vz_model::guest::SERIAL_PORT_NAME`.
    Auto,
    /// None.
    None,
    /// This device.
    Path(PathBuf),
}

/// Which virtio sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vsock {
    /// AF_VSOCK, where the guest has it.
    Auto,
    /// None.
    None,
    /// Unix sockets in this directory.
    Unix(PathBuf),
}

/// A token; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Whether `header` is `Bearer <this token>`. Takes the same time wherever they differ.
    pub fn is_borne_by(&self, header: &[u8]) -> bool {
        let Some(shown) = header.strip_prefix(b"Bearer ") else { return false };
        let own = self.0.as_bytes();
        shown.len() == own.len() && shown.iter().zip(own).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

/// What holds after all sources are read.
#[derive(Debug, Clone)]
pub struct Settings {
    /// TCP listener of the API.
    pub listen: SocketAddr,
    /// Directories a runner may live in.
    pub runner_paths: Vec<PathBuf>,
    /// Whether the runner's processes must stand in one of them.
    pub runner_processes: RunnerProcesses,
    /// Name in IP notices.
    pub runner_id: Option<String>,
    /// Host agent for IP notices.
    pub host: SocketAddr,
    /// What TCP callers must show.
    pub token: Option<Token>,
    /// Guest channel over virtio-serial.
    pub serial_port: SerialPort,
    /// Guest channel over virtio sockets.
    pub vsock: Vsock,
    /// IP notices.
    pub notify_ip: Ask,
    /// Where port 22 of the channel leads.
    pub ssh_addr: SocketAddr,
    /// Private directory.
    pub state_dir: PathBuf,
    env: ChildEnv,
}

impl Settings {
    pub(crate) fn child_env(&self) -> ChildEnv {
        self.env.clone()
    }
}

/// Everything that is wrong, one line each.
#[derive(Debug, thiserror::Error)]
#[error("the guest agent cannot start:\n  - {}", .0.join("\n  - "))]
pub struct Mistakes(pub Vec<String>);

impl Flags {
    /// Reads the `--config` file and the token, fills in defaults, checks everything.
    pub fn resolve(self) -> Result<Settings, Mistakes> {
        let mut mistakes = Vec::new();
        let file = match self.config.as_deref().map(read_config) {
            Some(Ok(file)) => file,
            Some(Err(mistake)) => {
                mistakes.push(mistake);
                Flags::default()
            }
            None => Flags::default(),
        };
        let env = ChildEnv::of_this_process();
        let token = self
            .token_file
            .or(file.token_file)
            .and_then(|path| read_token(&path).map_err(|mistake| mistakes.push(mistake)).ok());
        let callers = if token.is_some() { Callers::Authenticated } else { Callers::Anyone };
        let listen = self.listen.or(file.listen).unwrap_or_else(|| ":8080".into());
        let listen = listen_addr(&listen, callers).unwrap_or_else(|e| {
            mistakes.push(format!("--listen: {e}"));
            SocketAddr::from((Ipv4Addr::LOCALHOST, 0))
        });
        let host_ip = self.host_ip.or(file.host_ip).unwrap_or_else(|| "192.168.64.1".into());
        let host_ip = host_ip.parse::<IpAddr>().unwrap_or_else(|_| {
            mistakes.push(format!("--host-ip: {host_ip:?} is no IP address"));
            IpAddr::V4(Ipv4Addr::LOCALHOST)
        });
        let ssh_addr = self.ssh_addr.or(file.ssh_addr).unwrap_or_else(|| "127.0.0.1:22".into());
        let ssh_addr = ssh_addr.parse().unwrap_or_else(|_| {
            mistakes.push(format!("--ssh-addr: {ssh_addr:?} is not IP:PORT"));
            SocketAddr::from((Ipv4Addr::LOCALHOST, 22))
        });
        let serial_port = match self.serial_port.or(file.serial_port).as_deref() {
            None | Some("auto") => SerialPort::Auto,
            Some("none") => SerialPort::None,
            Some(path) if path.starts_with('/') => SerialPort::Path(path.into()),
            Some(other) => {
                mistakes
                    .push(format!("--serial-port: {other:?} is neither auto, none, nor an absolute path"));
                SerialPort::None
            }
        };
        let vsock = match self.vsock.or(file.vsock).as_deref() {
            None if cfg!(target_os = "macos") => Vsock::Auto,
            None | Some("none") => Vsock::None,
            Some("auto") => Vsock::Auto,
            Some(other) => match other.strip_prefix("unix:") {
                Some(dir) if dir.starts_with('/') => Vsock::Unix(dir.into()),
                _ => {
                    mistakes.push(format!(
                        "--vsock: {other:?} is neither auto, none, nor unix: with an absolute path"
                    ));
                    Vsock::None
                }
            },
        };
        let runner_path =
            self.runner_path.or(file.runner_path).unwrap_or_else(|| env.home.join("_work").join("_runner"));
        let mut runner_paths = vec![absolute(&runner_path, &env.home)];
        // Where myshoes' script puts the runner (facts: myshoes §2.4).
        let of_myshoes = PathBuf::from("/tmp/runner");
        if runner_paths[0] != of_myshoes {
            runner_paths.push(of_myshoes);
        }
        let runner_id = self.runner_id.or(file.runner_id).filter(|id| !id.is_empty());
        let settings = Settings {
            listen,
            runner_paths,
            runner_processes: self
                .runner_processes
                .or(file.runner_processes)
                .unwrap_or(RunnerProcesses::Anywhere),
            runner_id,
            host: SocketAddr::new(host_ip, self.agent_port.or(file.agent_port).unwrap_or(8081)),
            token,
            serial_port,
            vsock,
            notify_ip: self.notify_ip.or(file.notify_ip).unwrap_or(Ask::Auto),
            ssh_addr,
            state_dir: self.state_dir.or(file.state_dir).unwrap_or_else(crate::env::default_state_dir),
            env,
        };
        if mistakes.is_empty() { Ok(settings) } else { Err(Mistakes(mistakes)) }
    }
}

fn absolute(path: &Path, home: &Path) -> PathBuf {
    match path.strip_prefix("~") {
        Ok(rest) => home.join(rest),
        Err(_) => home.join(path),
    }
}

fn read_config(path: &Path) -> Result<Flags, String> {
    let text =
        std::fs::read_to_string(path).map_err(|e| format!("reading --config {}: {e}", path.display()))?;
    toml::from_str(&text).map_err(|e| format!("--config {}: {}", path.display(), e.to_string().trim()))
}

fn read_token(path: &Path) -> Result<Token, String> {
    let text =
        std::fs::read_to_string(path).map_err(|e| format!("reading --token-file {}: {e}", path.display()))?;
    match text.trim() {
        "" => Err(format!("--token-file {} is empty", path.display())),
        token => Ok(Token(token.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Flags {
        Flags::parse_from(crate::go_style(std::iter::once("x").chain(args.iter().copied()).map(Into::into)))
    }

    #[test]
    fn the_go_agents_command_line_still_parses() {
        let s = parse(&[
            "-listen",
            ":8080",
            "-runner-path",
            "/tmp/runner",
            "-runner-id",
            "id",
            "-host-ip",
            "192.168.64.1",
            "-agent-port",
            "8081",
        ])
        .resolve()
        .unwrap();
        assert_eq!(s.listen.to_string(), "127.0.0.1:8080");
        assert_eq!((s.host.to_string().as_str(), s.runner_id.as_deref()), ("192.168.64.1:8081", Some("id")));
        assert_eq!(s.runner_paths, [PathBuf::from("/tmp/runner")]);
    }

    #[test]
    fn the_file_fills_in_what_the_flags_leave_open_and_unknown_keys_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("c.toml");
        std::fs::write(&config, "agent-port = 1\nrunner-path = \"~/r\"\nvsock = \"none\"\n").unwrap();
        let s = parse(&["--config", config.to_str().unwrap(), "-agent-port", "2"]).resolve().unwrap();
        assert_eq!((s.host.port(), s.vsock), (2, Vsock::None));
        assert!(s.runner_paths[0].is_absolute() && s.runner_paths[0].ends_with("r"));
        std::fs::write(&config, "agnet-port = 1\n").unwrap();
        let error = parse(&["--config", config.to_str().unwrap()]).resolve().unwrap_err().to_string();
        assert!(error.contains("agnet-port"), "{error}");
    }

    #[test]
    fn virtio_sockets_are_auto_none_or_a_directory_from_the_flag_before_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("c.toml");
        std::fs::write(&config, "vsock = \"unix:/run/file\"\n").unwrap();
        let config = config.to_str().unwrap();
        let default = if cfg!(target_os = "macos") { Vsock::Auto } else { Vsock::None };
        for (args, wanted) in [
            (&[][..], default),
            (&["-vsock", "auto"], Vsock::Auto),
            (&["--vsock=none", "--config", config], Vsock::None),
            (&["--config", config], Vsock::Unix("/run/file".into())),
            (&["-vsock", "unix:/run/flag", "--config", config], Vsock::Unix("/run/flag".into())),
        ] {
            assert_eq!(parse(args).resolve().unwrap().vsock, wanted, "{args:?}");
        }
        for bad in ["", "Auto", "unix:", "unix:run", "/run", "tcp:/run"] {
            let error = parse(&["-vsock", bad]).resolve().unwrap_err();
            assert!(error.0.len() == 1 && error.0[0].starts_with("--vsock: "), "{bad:?}: {error}");
        }
    }

    #[test]
    fn every_mistake_is_told_at_once_and_no_token_is_shown() {
        let error = parse(&[
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
            "--token-file",
            "/nonexistent/t",
            "--config",
            "/nonexistent/c",
        ])
        .resolve()
        .unwrap_err();
        assert_eq!(error.0.len(), 7, "{error}");
        assert_eq!(format!("{:?}", Token("SECRET".into())), "Token(…)");
    }

    #[test]
    fn only_the_whole_token_opens() {
        let token = Token("abc".into());
        assert!(token.is_borne_by(b"Bearer abc"));
        for no in ["Bearer ab", "Bearer abcd", "Bearer abd", "abc", "bearer abc", "Bearer "] {
            assert!(!token.is_borne_by(no.as_bytes()), "{no}");
        }
    }
}
