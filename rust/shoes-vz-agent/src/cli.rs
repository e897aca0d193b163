//! The command line. Every flag is also Go's with a single dash, an environment variable, and a key of the TOML file.

use std::{ffi::OsString, os::unix::ffi::OsStrExt as _, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use shoes_vz_process::{
    settings::{CONFIG, Flags, LOG, LOG_FORMAT, Program, Setting, Table},
    units,
};

/// `shoes-vz-agent`
#[derive(Debug, Parser)]
#[command(
    name = "shoes-vz-agent",
    version,
    about = "Runs ephemeral GitHub Actions runners in VMs on this host",
    max_term_width = 100,
    after_help = "Without a subcommand, `run` is meant. Flags may be written with one dash, as for the Go agent.\n\n\
                  Exit codes: 0 done or stopped by a signal, 1 failed, 2 used wrongly; exec: the program's own, 125 it was never \
                  run, 127 the guest could not start it."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve this host's slots to a server (the default)
    #[command(
        after_help = "Example: shoes-vz-agent run --server vz.example:50051 --hostname mac-1 --max-runners 2"
    )]
    Run(Flags<Run>),
    /// List the VMs of this host
    #[command(after_help = "Example: shoes-vz-agent list --json")]
    List(ListArgs),
    /// Boot a stopped VM again and wait until SSH answers
    #[command(after_help = "Example: shoes-vz-agent start ci-1")]
    Start(StartArgs),
    /// Stop a VM; its files stay (a running agent removes them, since a runner is used once)
    #[command(after_help = "Example: shoes-vz-agent stop ci-1 --grace 30s")]
    Stop(StopArgs),
    /// Stop a VM and remove its files
    #[command(after_help = "Example: shoes-vz-agent delete ci-1")]
    Delete(OneArgs),
    /// Run a program in a VM and return its output and exit code (125 if it could not be run)
    #[command(after_help = "Example: shoes-vz-agent exec ci-1 uname -a")]
    Exec(ExecArgs),
    /// Build or check a template
    Template {
        /// Which of both.
        #[command(subcommand)]
        command: TemplateCommand,
    },
    /// The process that holds one VM
    #[command(hide = true)]
    Vm {
        /// Its bundle.
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

/// `template …`
#[derive(Debug, Subcommand)]
pub enum TemplateCommand {
    /// Build a Linux guest from this machine's packages
    BuildLinux(Box<crate::template::build::BuildLinux>),
    /// Install macOS from a restore image (IPSW) into a new template
    InstallMacos(Box<crate::template::install::InstallMacos>),
    /// Show details of a restore image, or the URL of the latest one this host supports
    RestoreImage {
        /// The restore image, a file
        #[arg(long)]
        ipsw: Option<PathBuf>,
    },
    /// Save a state of each slot now, from which its guests go on instead of booting (a running agent does so by itself);
    /// takes the settings of `run`
    Warm(Flags<Run>),
    /// Validate a template and report every problem
    Check {
        /// Its directory
        path: PathBuf,
    },
}

/// Every setting of the agent; `run` and `template warm` take all of them.
pub static PROGRAM: Program = Program {
    name: "shoes-vz-agent",
    env_prefix: "SHOESVZ_AGENT_",
    foreign_env: &[],
    settings: &[
        Setting::new("server", "HOST:PORT", "Address of the server").or("localhost:50051"),
        Setting::new("hostname", "NAME", "Name of this host in the fleet").or_else("the system's host name"),
        Setting::new("max-runners", "N", "VMs that run at the same time; at most 2 for macOS guests").or("2"),
        Setting::new("template-path", "DIR", "Template that VMs are cloned from").or("/opt/myshoes/vz/templates/macos-26"),
        Setting::new("runners-path", "DIR", "Directory of the VMs' bundles").or("/opt/myshoes/vz/runners"),
        Setting::new("ssh-key", "FILE", "Private key to log into guests with")
            .or_else("the template's, else the keys that ssh would try"),
        Setting::new("ip-notify-port", "PORT", "TCP port where guests with the Go guest agent report their address; 0 picks one")
            .or_else("8081, if the template needs it"),
        Setting::switch("enable-graphics", "Show each VM's screen in a window"),
        Setting::new("token-file", "FILE", "File containing the bearer token that the server asks for"),
        Setting::new("state-dir", "DIR", "Directory of this agent's identity and of the ends of runners").or_else("the runners path"),
        Setting::new("hypervisor", "KIND", "What runs VMs: auto, qemu or vz").or("auto"),
        Setting::new("network", "MODE", "Network mode of macOS guests: nat, vmnet (a network for each) or none").or_else("nat"),
        Setting::new("accelerator", "KIND", "QEMU's accelerator: auto, kvm or tcg").or("auto"),
        Setting::new("start-deadline", "DURATION", "Time allowed until SSH answers").or("5m"),
        Setting::new("max-lifetime", "DURATION", "Maximum lifetime of a VM; 0 sets no limit").or("24h"),
        Setting::new("registration-deadline", "DURATION", "Time allowed after the setup script until an Actions runner is seen")
            .or("10m"),
        Setting::new("unresponsive-guest-limit", "DURATION", "Remove a VM whose guest agent has been unresponsive for this long; 0 disables")
            .or("10m"),
        Setting::new("min-free-disk", "SIZE", "Refuse new VMs when free space at the runners path is below this; 0 disables").or("10GiB"),
        Setting::new("hot", "PLAN", "VMs kept booted for runners to come: all (every free slot), none, or a number; other sizes by name, as in 1,4x8GiB=1 (CPUs x memory)")
            .or("all"),
        Setting::new("hot-idle", "STATE", "What a VM does while it waits for a runner: running or paused").or("running"),
        Setting::new("hot-max-age", "DURATION", "Replace a VM that has waited for this long").or("12h"),
        Setting::new("saved-states", "MODE", "Saved states, which guests are restored from instead of booting: auto (used, and made where there are none), use, or off")
            .or("auto"),
        Setting::new("ready-file", "FILE", "File to write once the server has accepted this agent"),
        CONFIG,
        LOG,
        LOG_FORMAT,
    ],
    tables: &[],
};

/// All of them.
#[derive(Debug)]
pub struct Run;

impl Table for Run {
    const PROGRAM: &'static Program = &PROGRAM;
}

/// Those that say where the VMs are.
#[derive(Debug)]
pub struct Place;

impl Table for Place {
    const PROGRAM: &'static Program = &PROGRAM;
    const ONLY: Option<&'static [&'static str]> = Some(&["runners-path", "config"]);
}

/// Those that `start` needs.
#[derive(Debug)]
pub struct Start;

impl Table for Start {
    const PROGRAM: &'static Program = &PROGRAM;
    const ONLY: Option<&'static [&'static str]> =
        Some(&["runners-path", "ssh-key", "start-deadline", "config"]);
}

/// `list`
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub place: Flags<Place>,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `start`
#[derive(Debug, Args)]
pub struct StartArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub place: Flags<Start>,
    /// The VM's runner id, its runner's name or its cloud id
    pub id: String,
}

/// `stop`
#[derive(Debug, Args)]
pub struct StopArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub place: Flags<Place>,
    /// Time allowed for the guest to shut itself down
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = units::duration)]
    pub grace: Duration,
    /// The VM's runner id, its runner's name or its cloud id
    pub id: String,
}

/// `delete`
#[derive(Debug, Args)]
pub struct OneArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub place: Flags<Place>,
    /// The VM's runner id, its runner's name or its cloud id
    pub id: String,
}

/// `exec`
#[derive(Debug, Args)]
pub struct ExecArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub place: Flags<Place>,
    /// Accepted for the Go agent's sake: no SSH is involved
    #[arg(long, hide = true)]
    pub ssh_key: Option<String>,
    /// Time after which the program is killed
    #[arg(long, value_name = "DURATION", default_value = "2m", value_parser = units::duration)]
    pub timeout: Duration,
    /// The VM's runner id, its runner's name or its cloud id
    pub id: String,
    /// Program and arguments; no shell is involved
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

/// Go's way of writing a command line: without a subcommand, `run` is meant.
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
    fn a_go_command_line_is_understood() {
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
    fn the_arguments_of_a_program_to_exec_are_its_own() {
        let exec = |line| match read(line) {
            Ok(Command::Exec(exec)) => (exec.id, exec.command.join(" ")),
            other => panic!("{other:?}"),
        };
        assert_eq!(exec("exec -runners-path /r ID sh -c -x"), ("ID".into(), "sh -c -x".into()));
        assert_eq!(exec("exec ID ls -la -server"), ("ID".into(), "ls -la -server".into()));
        assert_eq!(exec("exec ID -- -odd -args"), ("ID".into(), "-odd -args".into()));
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn an_unknown_flag_is_refused_by_name_with_what_was_meant() {
        let e = read("-sevrer x").unwrap_err();
        assert!(e.contains("--sevrer") && e.contains("--server"), "{e}");
    }
}
