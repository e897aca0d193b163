//! The command line. Every setting of `run` is a flag, also with a single dash as in Go, an environment variable, and a key
//! of the TOML file.

use std::{ffi::OsString, os::unix::ffi::OsStrExt as _, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use shoes_vz_process::{
    settings::{CONFIG, Flags, LOG, LOG_FORMAT, Program, Setting, Table},
    units,
};

#[derive(Debug, Parser)]
#[command(
    name = "shoes-vz-agent",
    version,
    about = "Run ephemeral GitHub Actions runners in VMs on this host",
    max_term_width = 100,
    after_help = "Without a subcommand, `run` is assumed. Flags may be written with one dash, as for the Go agent.\n\n\
                  Exit codes: 0 success or stopped by a signal, 1 failure, 2 wrong flags or settings. exec: the exit code of the program, \
                  125 if it could not be run, 127 if the guest could not start it."
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the agent, which offers this host's slots to a server (the default)
    #[command(
        after_help = "Example: shoes-vz-agent run --server vz.example:50051 --hostname mac-1 --max-runners 2"
    )]
    Run(Flags<Run>),
    /// List the VMs of this host
    #[command(after_help = "Example: shoes-vz-agent list --json")]
    List(ListArgs),
    /// Boot a stopped VM again and wait until SSH answers (only while no agent runs)
    #[command(after_help = "Example: shoes-vz-agent start ci-1")]
    Start(StartArgs),
    /// Stop a VM and keep its files (a running agent removes them, since a runner is used only once)
    #[command(after_help = "Example: shoes-vz-agent stop ci-1 --grace 30s")]
    Stop(StopArgs),
    /// Stop a VM and remove its files
    #[command(after_help = "Example: shoes-vz-agent delete ci-1")]
    Delete(DeleteArgs),
    /// Run a program in a VM and return its output and exit code (125 if it could not be run)
    #[command(after_help = "Example: shoes-vz-agent exec ci-1 uname -a")]
    Exec(ExecArgs),
    /// Create or check a template
    Template {
        #[command(subcommand)]
        command: TemplateCommand,
    },
    /// Run the process of one VM
    #[command(hide = true)]
    Vm {
        #[arg(long)]
        bundle: PathBuf,
    },
    /// Run a program that dies with its parent
    #[command(hide = true)]
    ExecWithParent {
        /// `<ppid> -- prog args…`
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        args: Vec<OsString>,
    },
}

#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// Build a Linux template from packages of this machine's distribution
    BuildLinux(Box<BuildLinux>),
    /// Install macOS from a restore image (IPSW) into a new template
    InstallMacos(Box<InstallMacos>),
    /// Show details of a restore image, or the URL of the latest one this host supports
    RestoreImage {
        /// Restore image file (IPSW) to show [default: the latest one from Apple]
        #[arg(long)]
        ipsw: Option<PathBuf>,
    },
    /// Save a state for each slot now, so that its guests are restored instead of booted (a running agent does this
    /// automatically); takes the settings of `run`
    Warm(Flags<Run>),
    /// Validate a template and report every problem
    Check {
        /// Directory of the template
        path: PathBuf,
    },
}

#[derive(Debug, Clone, Args)]
pub struct BuildLinux {
    /// Directory of the template; an existing template is replaced in one step
    #[arg(long)]
    pub output: PathBuf,
    /// Statically linked guest agent [default: shoes-vz-runner-agent beside this program]
    #[arg(long)]
    pub guest_agent: Option<PathBuf>,
    /// Statically linked first process of the guest [default: shoes-vz-guest-init beside this program]
    #[arg(long)]
    pub guest_init: Option<PathBuf>,
    /// Directory to copy over the guest's root file system, owned by root (by the runner user below /usr/local/etc and
    /// /home/runner); may be repeated
    #[arg(long)]
    pub overlay: Vec<PathBuf>,
    /// Directory for downloads, build stages and the guest's keys [default: ~/.cache/shoes-vz/linux-guest]
    #[arg(long)]
    pub cache: Option<PathBuf>,
    /// Size of the guest's disk; the file takes only the space that its content needs
    #[arg(long, default_value = "8GiB", value_parser = bytes)]
    pub disk_size: u64,
    /// Release to build from, for example bookworm [default: this machine's]
    #[arg(long, default_value = "", hide_default_value = true)]
    pub suite: String,
    /// Additional package to install, for example git; may be repeated
    #[arg(long)]
    pub package: Vec<String>,
    /// Name of the template [default: the name of its directory]
    #[arg(long, default_value = "", hide_default_value = true)]
    pub name: String,
    /// Job label that selects this template; may be repeated
    #[arg(long)]
    pub label: Vec<String>,
    /// Command line of the guest kernel
    #[arg(long)]
    pub kernel_cmdline: Option<String>,
}

#[derive(Debug, Clone, Args)]
pub struct InstallMacos {
    /// Restore image file (`template restore-image` prints the URL of the latest one)
    #[arg(long)]
    pub ipsw: PathBuf,
    /// Directory of the template, which must not exist; use the volume of the runners path
    #[arg(long)]
    pub output: PathBuf,
    /// Size of the guest's disk; the file takes only the space that its content needs
    #[arg(long, default_value = "80GiB", value_parser = bytes)]
    pub disk_size: u64,
    /// Virtual CPUs during the installation; raised to the minimum of the restore image
    #[arg(long, default_value_t = 4)]
    pub cpus: u32,
    /// Memory during the installation; raised to the minimum of the restore image
    #[arg(long, default_value = "8GiB", value_parser = bytes)]
    pub memory: u64,
    /// Name of the template [default: the name of its directory]
    #[arg(long, default_value = "", hide_default_value = true)]
    pub name: String,
}

fn bytes(text: &str) -> Result<u64, String> {
    match units::size(text)? {
        size if (1 << 30..=1 << 43).contains(&size) && size % 4096 == 0 => Ok(size),
        _ => Err("it must be between 1 GiB and 8 TiB, in multiples of 4 KiB".into()),
    }
}

/// Every setting of the agent; `run` and `template warm` take all of them.
pub static PROGRAM: Program = Program {
    name: "shoes-vz-agent",
    env_prefix: "SHOESVZ_AGENT_",
    foreign_env: &[],
    settings: &[
        Setting::new("server", "HOST:PORT", "Address of the server").or("localhost:50051"),
        Setting::new("hostname", "NAME", "Name of this host in the fleet").or_else("the system's host name"),
        Setting::new("max-runners", "N", "Number of VMs that run at the same time; at most 2 for macOS guests").or("2"),
        Setting::new("template-path", "DIR", "Template to clone VMs from").or("/opt/myshoes/vz/templates/macos-26"),
        Setting::new("runners-path", "DIR", "Directory of the VMs' bundles").or("/opt/myshoes/vz/runners"),
        Setting::new("ssh-key", "FILE", "Private key to log into guests with")
            .or_else("the template's key, else the keys that ssh offers"),
        Setting::new("ip-notify-port", "PORT", "TCP port where guests with the Go guest agent report their address; 0 picks a free one")
            .or_else("8081, if the template needs it"),
        Setting::switch("enable-graphics", "Show each VM's screen in a window"),
        Setting::new("token-file", "FILE", "File containing the bearer token that the server requires"),
        Setting::new("state-dir", "DIR", "Directory of the agent ID and of end reports that the server has not acknowledged").or_else("the runners path"),
        Setting::new("hypervisor", "KIND", "Hypervisor: auto, qemu or vz").or("auto"),
        Setting::new("network", "MODE", "Network mode of macOS guests: nat, vmnet (a separate network for each guest) or none").or_else("nat"),
        Setting::new("accelerator", "KIND", "QEMU's accelerator: auto, kvm or tcg").or("auto"),
        Setting::new("start-deadline", "DURATION", "Time allowed until SSH answers").or("5m"),
        Setting::new("max-lifetime", "DURATION", "Maximum lifetime of a VM; 0 sets no limit").or("24h"),
        Setting::new("registration-deadline", "DURATION", "Time allowed from the end of the setup script until an Actions runner appears")
            .or("10m"),
        Setting::new("unresponsive-guest-limit", "DURATION", "Remove a VM whose guest agent has been unresponsive for this long; 0 disables")
            .or("10m"),
        Setting::new("min-free-disk", "SIZE", "Refuse new VMs when free space at the runners path is below this; 0 disables").or("10GiB"),
        Setting::new("hot", "PLAN", "Hot VMs, booted ahead of their runners: all (one in each free slot), none, or a number; other sizes as CPUSxMEMORY=NUMBER, for example 1,4x8GiB=1")
            .or("all"),
        Setting::new("hot-idle", "STATE", "State of a hot VM while it waits for a runner: running or paused").or("running"),
        Setting::new("hot-max-age", "DURATION", "Replace a hot VM that has waited for this long").or("12h"),
        Setting::new("saved-states", "MODE", "Saved states, from which guests are restored instead of booted: auto (use them, and save missing ones), use, or off")
            .or("auto"),
        Setting::new("ready-file", "FILE", "File to write once the server has accepted this agent"),
        CONFIG,
        LOG,
        LOG_FORMAT,
    ],
    tables: &[],
};

/// The flags of `run`: every setting.
#[derive(Debug)]
pub struct Run;

impl Table for Run {
    const PROGRAM: &'static Program = &PROGRAM;
}

/// The flags of commands that look for the VMs of this host.
#[derive(Debug)]
pub struct Host;

impl Table for Host {
    const PROGRAM: &'static Program = &PROGRAM;
    const ONLY: Option<&'static [&'static str]> = Some(&["runners-path", "config"]);
}

/// The flags of `start`.
#[derive(Debug)]
pub struct Start;

impl Table for Start {
    const PROGRAM: &'static Program = &PROGRAM;
    const ONLY: Option<&'static [&'static str]> =
        Some(&["runners-path", "ssh-key", "start-deadline", "config"]);
}

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    pub host: Flags<Host>,
    /// Print JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Args)]
pub struct StartArgs {
    #[command(flatten)]
    pub host: Flags<Start>,
    /// Runner ID, runner name or cloud ID of the VM
    pub id: String,
}

#[derive(Debug, Args)]
pub struct StopArgs {
    #[command(flatten)]
    pub host: Flags<Host>,
    /// Time allowed for the guest to shut itself down
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = units::duration)]
    pub grace: Duration,
    /// Runner ID, runner name or cloud ID of the VM
    pub id: String,
}

#[derive(Debug, Args)]
pub struct DeleteArgs {
    #[command(flatten)]
    pub host: Flags<Host>,
    /// Runner ID, runner name or cloud ID of the VM
    pub id: String,
}

#[derive(Debug, Args)]
pub struct ExecArgs {
    #[command(flatten)]
    pub host: Flags<Host>,
    /// Accepted for compatibility with the Go agent; SSH is not used
    #[arg(long, hide = true)]
    pub ssh_key: Option<String>,
    /// Time after which the program is killed
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = units::duration)]
    pub timeout: Duration,
    /// Runner ID, runner name or cloud ID of the VM
    pub id: String,
    /// Program and its arguments, run without a shell
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// As in Go: without a subcommand, `run` is assumed.
pub fn with_default_command(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args: Vec<OsString> = args.into_iter().collect();
    let first = args.get(1).map_or(&b""[..], |a| a.as_bytes());
    let top_level = [&b"-h"[..], b"--help", b"-V", b"--version", b"-help", b"-version"].contains(&first);
    if first.is_empty() || (first.starts_with(b"-") && !top_level) {
        args.insert(args.len().min(1), "run".into());
    }
    args
}

#[cfg(test)]
mod tests {
    use shoes_vz_process::settings::{Mistakes, Values, command_line};

    use super::*;

    fn read(line: &str) -> Result<Command, String> {
        let args = std::iter::once("shoes-vz-agent").chain(line.split_whitespace()).map(OsString::from);
        let read = command_line::read::<Cli>(with_default_command(args));
        let (cli, mistakes) = read.map_err(|e| e.to_string())?;
        if mistakes.0.is_empty() { Ok(cli.command) } else { Err(mistakes.to_string()) }
    }

    #[test]
    fn a_go_command_line_is_accepted() {
        let Ok(Command::Run(flags)) = read("-server a:1 -max-runners=2 -enable-graphics -ssh-key -k") else {
            panic!()
        };
        let values = Values::gather(&flags, [], Mistakes::default());
        for (name, value) in
            [("server", "a:1"), ("max-runners", "2"), ("enable-graphics", "true"), ("ssh-key", "-k")]
        {
            assert_eq!(values.path(name), Some(value.into()), "{name}");
        }
        assert!(matches!(read(""), Ok(Command::Run(_))));
        assert!(matches!(read("list -runners-path /r"), Ok(Command::List(_))));
        assert!(read("-help").unwrap_err().contains("Commands:"));
    }

    #[test]
    fn the_arguments_of_a_program_for_exec_are_not_flags_of_the_agent() {
        let exec = |line| match read(line) {
            Ok(Command::Exec(exec)) => (exec.id, exec.command.join(" ")),
            other => panic!("{other:?}"),
        };
        assert_eq!(exec("exec -runners-path /r ID sh -c -x"), ("ID".into(), "sh -c -x".into()));
        assert_eq!(exec("exec ID ls -la -server"), ("ID".into(), "ls -la -server".into()));
        assert_eq!(exec("exec ID -- -odd -args"), ("ID".into(), "-odd -args".into()));
    }

    #[test]
    fn sizes_are_parsed_and_invalid_ones_are_refused() {
        assert_eq!(bytes("8GiB"), Ok(8 << 30));
        assert_eq!(bytes("2048MiB"), Ok(2 << 30));
        assert_eq!(bytes("4294967296"), Ok(4 << 30));
        for wrong in ["8X", "G", "", "12", "99999999GiB", "1073741825"] {
            assert!(bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn an_unknown_flag_is_refused_by_name_with_a_similar_one() {
        let e = read("-sevrer x").unwrap_err();
        assert!(e.contains("--sevrer") && e.contains("--server"), "{e}");
    }
}
