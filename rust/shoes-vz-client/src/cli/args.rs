//! Flags and subcommands.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{Parser, Subcommand};
use shoes_vz_process::{settings::Flags, units};

use crate::settings::GlobalFlags;

/// Add, delete and show the runners of a shoes-vz server
///
/// When myshoes starts this program (SHOES_PLUGIN_MAGIC_COOKIE is set in the environment), it runs as a myshoes plugin.
#[derive(Debug, Parser)]
#[command(
    name = "shoes-vz-client",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_help = "Exit codes: 0 success, 1 failure, 2 wrong flags or settings. A signal ends a command as usual (shells show 130 for Ctrl-C)."
)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, clap::Args)]
pub(super) struct Global {
    #[command(flatten)]
    pub(super) flags: Flags<GlobalFlags>,
    /// Print the result as one JSON object (watch: one per line)
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start a runner and wait until its VM answers SSH; a name that is in use returns the same VM
    #[command(
        after_help = "Example: shoes-vz-client add --runner-name ci-1 --setup-script setup.sh --label macOS"
    )]
    Add(Add),
    /// Stop and remove a runner's VM
    #[command(after_help = "Example: shoes-vz-client delete shoes-vz-0b9f2c1e-7a55-4d0e-9f0a-2f6f1c1d9e11")]
    Delete {
        /// Cloud ID as printed by `add` and `list`: shoes-vz-<uuid>
        cloud_id: String,
        /// Maximum time to wait, for example 90s, 3m or 1h30m
        #[arg(long, default_value = "3m")]
        timeout: Timeout,
    },
    /// List the runners
    #[command(after_help = "Example: shoes-vz-client list --all")]
    List {
        /// Include runners that have ended
        #[arg(long)]
        all: bool,
        /// Maximum time to wait, for example 90s, 3m or 1h30m
        #[arg(long, default_value = "10s")]
        timeout: Timeout,
    },
    /// Print runners as they change; with a runner selected, until it has ended
    #[command(after_help = "Example: shoes-vz-client watch --runner-name ci-1")]
    Watch {
        /// Only the runner with this name
        #[arg(long, conflicts_with = "cloud_id")]
        runner_name: Option<String>,
        /// Only the runner with this cloud ID
        #[arg(long)]
        cloud_id: Option<String>,
    },
    /// Stop scheduling new runners on an agent; running ones continue
    #[command(after_help = "Example: shoes-vz-client cordon mac-1 --reason \"new disk\"")]
    Cordon {
        /// Hostname of the agent, or its ID as printed by `agents`
        #[arg(value_name = "HOST")]
        agent: String,
        /// Reason shown to other operators; replaces an earlier reason
        #[arg(long, default_value = "", hide_default_value = true)]
        reason: String,
        /// Maximum time to wait, for example 90s, 3m or 1h30m
        #[arg(long, default_value = "10s")]
        timeout: Timeout,
    },
    /// Resume scheduling on a cordoned agent
    #[command(after_help = "Example: shoes-vz-client uncordon mac-1")]
    Uncordon {
        /// Hostname of the agent, or its ID as printed by `agents`
        #[arg(value_name = "HOST")]
        agent: String,
        /// Maximum time to wait, for example 90s, 3m or 1h30m
        #[arg(long, default_value = "10s")]
        timeout: Timeout,
    },
    /// Cordon an agent and wait until it has no runners; it stays cordoned even if this command is interrupted
    #[command(after_help = "Example: shoes-vz-client drain mac-1 --timeout 1h")]
    Drain(Drain),
    /// List the agents
    #[command(after_help = "Example: shoes-vz-client agents --json")]
    Agents {
        /// Maximum time to wait, for example 90s, 3m or 1h30m
        #[arg(long, default_value = "10s")]
        timeout: Timeout,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Drain {
    /// Hostname of the agent, or its ID as printed by `agents`
    #[arg(value_name = "HOST")]
    pub(super) agent: String,
    /// Reason shown to other operators; replaces an earlier reason
    #[arg(long, default_value = "", hide_default_value = true)]
    pub(super) reason: String,
    /// Wait until the agent has no runners (the default)
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// Cordon the agent without waiting, and print how many runners are left
    #[arg(long)]
    pub(super) no_wait: bool,
    /// Maximum time to wait, for example 90s, 3m or 1h30m; no limit by default
    #[arg(long)]
    pub(super) timeout: Option<Timeout>,
}

#[derive(Debug, clap::Args)]
pub(super) struct Add {
    /// Name under which the runner registers
    #[arg(long, value_name = "NAME")]
    pub(super) runner_name: String,
    /// Script that sets up and runs the runner; - reads it from standard input
    #[arg(long, value_name = "FILE")]
    pub(super) setup_script: PathBuf,
    /// Resource type: nano, micro, small, medium, large, xlarge, 2xlarge, 3xlarge or 4xlarge [default: the server's
    /// --default-resource-type]
    #[arg(long, value_name = "TYPE")]
    pub(super) resource_type: Option<String>,
    /// Job label that the agent must offer; may be repeated
    #[arg(long = "label", value_name = "LABEL")]
    pub(super) labels: Vec<String>,
    /// Maximum time to wait, for example 90s, 3m or 1h30m
    #[arg(long, default_value = "5m")]
    pub(super) timeout: Timeout,
}

/// A time to wait, longer than zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timeout(pub(super) Duration);

impl FromStr for Timeout {
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
