//! The command line. Every flag is also Go's with a single dash, an environment variable, and a key of the TOML file.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand};

/// `shoes-vz-agent`
#[derive(Debug, Parser)]
#[command(
    name = "shoes-vz-agent",
    version,
    about = "Runs ephemeral GitHub Actions runners in VMs on this host",
    after_help = "Without a subcommand, `run` is meant. Flags may be written with one dash, as for the Go agent."
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
    Run(Box<RunArgs>),
    /// List the VMs of this host
    List(ListArgs),
    /// Boot a stopped VM again and wait until SSH answers
    Start(StartArgs),
    /// Stop a VM; its files stay (a running agent removes them, since a runner is used once)
    Stop(StopArgs),
    /// Stop a VM and remove its files
    Delete(OneArgs),
    /// Run a program in a VM; its output and exit code become this command's (125: it never ran)
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
    BuildLinux(Box<crate::template_build::BuildLinux>),
    /// Install macOS from a restore image (IPSW) into a new template
    InstallMacos(Box<crate::template_install::InstallMacos>),
    /// Tell what a restore image is, or where Apple has the latest one this host can run
    RestoreImage {
        /// The restore image, a file
        #[arg(long)]
        ipsw: Option<PathBuf>,
    },
    /// Save a state of each slot now, from which its guests go on instead of booting (a running agent does so by itself);
    /// takes the settings of `run`
    Warm(Box<RunArgs>),
    /// Tell everything that is wrong with a template
    Check {
        /// Its directory
        path: PathBuf,
    },
}

/// `run`'s flags. All are text here, so that the settings find every mistake rather than the first.
#[derive(Debug, Default, Args)]
pub struct RunArgs {
    /// The server, HOST:PORT [default: localhost:50051]
    #[arg(long, env = "SHOESVZ_AGENT_SERVER")]
    pub server: Option<String>,
    /// This host's name in the fleet [default: the system's]
    #[arg(long, env = "SHOESVZ_AGENT_HOSTNAME")]
    pub hostname: Option<String>,
    /// VMs at the same time; at most 2 for macOS guests [default: 2]
    #[arg(long, env = "SHOESVZ_AGENT_MAX_RUNNERS", allow_hyphen_values = true)]
    pub max_runners: Option<String>,
    /// Directory of the template VMs are cloned from [default: /opt/myshoes/vz/templates/macos-26]
    #[arg(long, env = "SHOESVZ_AGENT_TEMPLATE_PATH")]
    pub template_path: Option<String>,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub place: PlaceArgs,
    /// Private key to log into guests with [default: the template's]
    #[arg(long, env = "SHOESVZ_AGENT_SSH_KEY")]
    pub ssh_key: Option<String>,
    /// TCP port guests with the Go guest agent tell their address to; 0: any [default: 8081, if the template needs it]
    #[arg(long, env = "SHOESVZ_AGENT_IP_NOTIFY_PORT", allow_hyphen_values = true)]
    pub ip_notify_port: Option<String>,
    /// Show each VM's screen in a window
    #[arg(long, env = "SHOESVZ_AGENT_ENABLE_GRAPHICS", num_args = 0..=1, default_missing_value = "true", require_equals = true)]
    pub enable_graphics: Option<String>,
    /// File with the token the server asks for
    #[arg(long, env = "SHOESVZ_AGENT_TOKEN_FILE")]
    pub token_file: Option<String>,
    /// Where this agent keeps its identity and the ends of runners [default: the runners path]
    #[arg(long, env = "SHOESVZ_AGENT_STATE_DIR")]
    pub state_dir: Option<String>,
    /// auto, qemu or vz [default: auto]
    #[arg(long, env = "SHOESVZ_AGENT_HYPERVISOR")]
    pub hypervisor: Option<String>,
    /// How macOS guests reach the world: nat, vmnet (a network for each) or none [default: nat]
    #[arg(long, env = "SHOESVZ_AGENT_NETWORK")]
    pub network: Option<String>,
    /// QEMU's accelerator: auto, kvm or tcg [default: auto]
    #[arg(long, env = "SHOESVZ_AGENT_ACCELERATOR")]
    pub accelerator: Option<String>,
    /// How long a VM may take until SSH answers [default: 5m]
    #[arg(long, env = "SHOESVZ_AGENT_START_DEADLINE", allow_hyphen_values = true)]
    pub start_deadline: Option<String>,
    /// How long a VM may live in all; 0: for ever [default: 24h]
    #[arg(long, env = "SHOESVZ_AGENT_MAX_LIFETIME", allow_hyphen_values = true)]
    pub max_lifetime: Option<String>,
    /// How long after its setup script a VM waits for an Actions runner to show [default: 10m]
    #[arg(long, env = "SHOESVZ_AGENT_REGISTRATION_DEADLINE", allow_hyphen_values = true)]
    pub registration_deadline: Option<String>,
    /// How long a guest may answer nothing, from its setup script on, until its VM is removed; 0: for ever [default: 10m]
    #[arg(long, env = "SHOESVZ_AGENT_SILENT_GUEST_LIMIT", allow_hyphen_values = true)]
    pub silent_guest_limit: Option<String>,
    /// Below how much free space at the runners path no VM is taken, for example 20GiB; 0: not looked at [default: 10GiB]
    #[arg(long, env = "SHOESVZ_AGENT_MIN_FREE_DISK", allow_hyphen_values = true)]
    pub min_free_disk: Option<String>,
    /// VMs kept ready for runners to come: all (every free slot), none, or a number; other sizes by name, as in
    /// 1,4x8GiB=1 (CPUs x memory) [default: all]
    #[arg(long, env = "SHOESVZ_AGENT_HOT")]
    pub hot: Option<String>,
    /// What a VM does while it waits for a runner: running or paused [default: running]
    #[arg(long, env = "SHOESVZ_AGENT_HOT_IDLE")]
    pub hot_idle: Option<String>,
    /// After how long a VM that waits is replaced by a fresh one [default: 12h]
    #[arg(long, env = "SHOESVZ_AGENT_HOT_MAX_AGE", allow_hyphen_values = true)]
    pub hot_max_age: Option<String>,
    /// Saved states, from which guests go on instead of booting: auto (used, and made where there are none), use, or off
    /// [default: auto]
    #[arg(long, env = "SHOESVZ_AGENT_SAVED_STATES")]
    pub saved_states: Option<String>,
    /// text or json [default: text]
    #[arg(long, env = "SHOESVZ_AGENT_LOG_FORMAT")]
    pub log_format: Option<String>,
    /// File to write once the server has accepted this agent
    #[arg(long, env = "SHOESVZ_AGENT_READY_FILE")]
    pub ready_file: Option<String>,
}

/// Where the VMs are: every subcommand's.
#[derive(Debug, Default, Clone, Args)]
pub struct PlaceArgs {
    /// Directory of the VMs [default: /opt/myshoes/vz/runners]
    #[arg(long, env = "SHOESVZ_AGENT_RUNNERS_PATH")]
    pub runners_path: Option<String>,
    /// TOML file with any of `run`'s settings, named as its flags
    #[arg(long, env = "SHOESVZ_AGENT_CONFIG")]
    pub config: Option<PathBuf>,
}

/// `list`
#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub place: PlaceArgs,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

/// `start`
#[derive(Debug, Args)]
pub struct StartArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub place: PlaceArgs,
    /// Private key to log in with [default: the template's]
    #[arg(long, env = "SHOESVZ_AGENT_SSH_KEY")]
    pub ssh_key: Option<String>,
    /// How long until SSH must answer [default: 5m]
    #[arg(long, env = "SHOESVZ_AGENT_START_DEADLINE")]
    pub start_deadline: Option<String>,
    /// The VM's runner id
    pub id: String,
}

/// `stop`
#[derive(Debug, Args)]
pub struct StopArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub place: PlaceArgs,
    /// How long the guest may take to shut itself down
    #[arg(long, default_value = "5s")]
    pub grace: String,
    /// The VM's runner id
    pub id: String,
}

/// `delete`
#[derive(Debug, Args)]
pub struct OneArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub place: PlaceArgs,
    /// The VM's runner id
    pub id: String,
}

/// `exec`
#[derive(Debug, Args)]
pub struct ExecArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub place: PlaceArgs,
    /// Accepted for the Go agent's sake: no SSH is involved
    #[arg(long, hide = true)]
    pub ssh_key: Option<String>,
    /// After how long the program is killed
    #[arg(long, default_value = "2m")]
    pub timeout: String,
    /// The VM's runner id
    pub id: String,
    /// Program and arguments; no shell is involved
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

const SUBCOMMANDS: [&str; 10] =
    ["run", "list", "start", "stop", "delete", "exec", "template", "vm", "exec-with-parent", "help"];

/// Flags that take no value in an argument of their own.
const SWITCHES: [&str; 5] = ["enable-graphics", "json", "help", "version", "insecure-listen"];

/// Go's way of writing a command line, made clap's: no subcommand is `run`, and `-flag` is `--flag`. Nothing after
/// `--`, or belonging to a program `exec` runs, is touched.
pub fn from_go(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut args = args.into_iter();
    let mut out: Vec<OsString> = args.next().into_iter().collect();
    let mut rest: Vec<OsString> = args.collect();
    let first = rest.first().and_then(|a| a.to_str()).unwrap_or_default().to_owned();
    let top_level = ["-h", "--help", "-V", "--version", "-help", "-version"].contains(&first.as_str());
    if first.is_empty() || (first.starts_with('-') && !top_level) {
        rest.insert(0, "run".into());
    }
    let command = rest.first().and_then(|a| a.to_str()).unwrap_or_default().to_owned();
    if !top_level
        && (!SUBCOMMANDS.contains(&command.as_str())
            || ["vm", "exec-with-parent"].contains(&command.as_str()))
    {
        out.extend(rest);
        return out;
    }
    let mut positionals = 0;
    let mut value_follows = false;
    for arg in rest {
        let text = arg.to_str().unwrap_or_default();
        // The subcommand itself, its runner id, and from there on the program's own arguments.
        let is_the_programs = command == "exec" && positionals >= 2;
        if is_the_programs || value_follows || text == "--" {
            if text == "--" && !value_follows {
                positionals = usize::MAX / 2;
            }
            value_follows = false;
            out.push(arg);
        } else if let Some(flag) = text.strip_prefix('-').filter(|f| !f.is_empty()) {
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let name = flag.split('=').next().unwrap_or_default();
            value_follows = name.len() > 1 && !flag.contains('=') && !SWITCHES.contains(&name);
            out.push(if name.len() > 1 { format!("--{flag}").into() } else { arg });
        } else {
            positionals += 1;
            out.push(arg);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn go(line: &str) -> String {
        let args =
            from_go(std::iter::once("shoes-vz-agent").chain(line.split_whitespace()).map(OsString::from));
        args.into_iter().skip(1).map(|a| a.into_string().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_go_command_line_is_understood() {
        assert_eq!(
            go("-server a:1 -max-runners=2 -enable-graphics"),
            "run --server a:1 --max-runners=2 --enable-graphics"
        );
        assert_eq!(go("run --server a:1 -ssh-key -k"), "run --server a:1 --ssh-key -k");
        assert_eq!(go(""), "run");
        assert_eq!(go("-help"), "--help");
        assert_eq!(go("list -runners-path /r"), "list --runners-path /r");
    }

    #[test]
    fn the_arguments_of_a_program_to_exec_are_its_own() {
        assert_eq!(go("exec -runners-path /r ID sh -c -x"), "exec --runners-path /r ID sh -c -x");
        assert_eq!(go("exec ID ls -la -server"), "exec ID ls -la -server");
        assert_eq!(go("exec ID -- -odd -args"), "exec ID -- -odd -args");
    }

    #[test]
    fn the_command_line_is_sound_and_reads_a_whole_exec() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
        let args =
            from_go(["a", "exec", "-runners-path", "/r", "ID", "sh", "-c", "exit 7"].map(OsString::from));
        let Command::Exec(exec) = Cli::try_parse_from(args).unwrap().command else { panic!() };
        assert_eq!((exec.id.as_str(), exec.command), ("ID", vec!["sh".into(), "-c".into(), "exit 7".into()]));
    }

    #[test]
    fn an_unknown_flag_is_refused_by_name() {
        let e = Cli::try_parse_from(from_go(["a", "-sevrer", "x"].map(OsString::from))).unwrap_err();
        assert!(e.to_string().contains("--sevrer"), "{e}");
    }
}
