//! Flags.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{Parser, Subcommand};
use shoes_vz_process::{
    settings::{CONFIG, Flags, LOG, LOG_FORMAT, Program, Setting, Table},
    units,
};

/// Adds, deletes and shows runners of a shoes-vz server.
///
/// Started by myshoes (with SHOES_PLUGIN_MAGIC_COOKIE in its environment) this binary is its plugin instead.
#[derive(Debug, Parser)]
#[command(
    name = "shoes-vz-client",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 failed, 2 used wrongly. A command that a signal ends dies by it (shells show 130 for Ctrl-C)."
)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Every setting of the client. The plugin has the same, without the flags.
pub(crate) static PROGRAM: Program = Program {
    name: "shoes-vz-client",
    env_prefix: "SHOESVZ_CLIENT_",
    foreign_env: &[],
    settings: &[
        Setting::new("server", "HOST:PORT", "Address of shoes-vz-server").also_env("SHOESVZ_SERVER_ADDR"),
        Setting::new("token-file", "FILE", "File containing the bearer token that the server asks for")
            .also_env("SHOESVZ_TOKEN_FILE"),
        CONFIG,
        LOG,
        LOG_FORMAT,
    ],
    tables: &[],
};

/// All of them are flags, before and after the subcommand.
#[derive(Debug)]
pub(crate) struct All;

impl Table for All {
    const PROGRAM: &'static Program = &PROGRAM;
    const GLOBAL: bool = true;
}

#[derive(Debug, clap::Args)]
pub(super) struct Global {
    #[command(flatten)]
    pub(super) flags: Flags<All>,
    /// Print one JSON object (watch: one per line)
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start a runner and wait until its VM answers SSH; a name that is there already gets the same VM
    #[command(
        after_help = "Example: shoes-vz-client add --runner-name ci-1 --setup-script setup.sh --label macOS"
    )]
    Add(Add),
    /// Stop and remove a runner's VM
    #[command(after_help = "Example: shoes-vz-client delete shoes-vz-0b9f2c1e-7a55-4d0e-9f0a-2f6f1c1d9e11")]
    Delete {
        /// As `add` and `list` print it: shoes-vz-<uuid>
        cloud_id: String,
        /// How long to wait, as 90s, 3m or 1h30m
        #[arg(long, default_value = "3m")]
        timeout: Span,
    },
    /// Show the runners
    #[command(after_help = "Example: shoes-vz-client list --all")]
    List {
        /// Include runners that have ended
        #[arg(long)]
        all: bool,
        /// How long to wait, as 90s, 3m or 1h30m
        #[arg(long, default_value = "10s")]
        timeout: Span,
    },
    /// Follow runners as they change; with one named, until it is gone
    #[command(after_help = "Example: shoes-vz-client watch --runner-name ci-1")]
    Watch {
        /// Only the runner of this name
        #[arg(long, conflicts_with = "cloud_id")]
        runner_name: Option<String>,
        /// Only the runner of this cloud id
        #[arg(long)]
        cloud_id: Option<String>,
    },
    /// Stop scheduling new runners on an agent; running ones continue
    #[command(after_help = "Example: shoes-vz-client cordon mac-1 --reason \"new disk\"")]
    Cordon {
        /// The agent's hostname, or its id as `agents` prints it
        #[arg(value_name = "HOST")]
        agent: String,
        /// Reason shown to other operators; replaces an earlier one
        #[arg(long, default_value = "")]
        reason: String,
        /// How long to wait, as 90s, 3m or 1h30m
        #[arg(long, default_value = "10s")]
        timeout: Span,
    },
    /// Resume scheduling on a cordoned agent
    #[command(after_help = "Example: shoes-vz-client uncordon mac-1")]
    Uncordon {
        /// The agent's hostname, or its id as `agents` prints it
        #[arg(value_name = "HOST")]
        agent: String,
        /// How long to wait, as 90s, 3m or 1h30m
        #[arg(long, default_value = "10s")]
        timeout: Span,
    },
    /// Cordon an agent and wait until it has no runners; it stays cordoned, also when this command is interrupted
    #[command(after_help = "Example: shoes-vz-client drain mac-1 --timeout 1h")]
    Drain(Drain),
    /// Show the host agents
    #[command(after_help = "Example: shoes-vz-client agents --json")]
    Agents {
        /// How long to wait, as 90s, 3m or 1h30m
        #[arg(long, default_value = "10s")]
        timeout: Span,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Drain {
    /// The agent's hostname, or its id as `agents` prints it
    #[arg(value_name = "HOST")]
    pub(super) agent: String,
    /// Reason shown to other operators; replaces an earlier one
    #[arg(long, default_value = "")]
    pub(super) reason: String,
    /// Wait until the agent has no runners (the default)
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// Only cordon it, and say how many runners are left
    #[arg(long)]
    pub(super) no_wait: bool,
    /// How long to wait, as 90s, 3m or 1h30m; as long as it takes when not given
    #[arg(long)]
    pub(super) timeout: Option<Span>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Add {
    /// The name the runner registers under
    #[arg(long, value_name = "NAME")]
    pub(super) runner_name: String,
    /// The script that sets the runner up and runs it; - reads it from stdin
    #[arg(long, value_name = "FILE")]
    pub(super) setup_script: PathBuf,
    /// nano, micro, small, medium, large, xlarge, 2xlarge, 3xlarge or 4xlarge; the server's default when not given
    #[arg(long, value_name = "TYPE")]
    pub(super) resource_type: Option<String>,
    /// A label the host must offer; may be given again
    #[arg(long = "label", value_name = "LABEL")]
    pub(super) labels: Vec<String>,
    /// How long to wait, as 90s, 3m or 1h30m
    #[arg(long, default_value = "5m")]
    pub(super) timeout: Span,
}

/// How long to wait: more than nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match units::duration(text)? {
            Duration::ZERO => Err("it must be more than 0".to_owned()),
            duration => Ok(Self(duration)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_flags_do_not_contradict_each_other() {
        Args::command().debug_assert();
    }
}
