//! Flags.

use std::{path::PathBuf, str::FromStr, time::Duration};

use clap::{Parser, Subcommand};

/// Adds, deletes and shows runners of a shoes-vz server.
///
/// Started by myshoes (with SHOES_PLUGIN_MAGIC_COOKIE in its environment) this binary is its plugin instead.
#[derive(Debug, Parser)]
#[command(name = "shoes-vz-client", version, arg_required_else_help = true, max_term_width = 100)]
pub(super) struct Args {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, clap::Args)]
pub(super) struct Global {
    /// shoes-vz-server's HOST:PORT
    #[arg(long, global = true, env = "SHOESVZ_SERVER_ADDR", value_name = "HOST:PORT")]
    pub(super) server: Option<String>,
    /// File holding the token the server asks for
    #[arg(long, global = true, env = "SHOESVZ_TOKEN_FILE", value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
    /// Print one JSON object (watch: one per line)
    #[arg(long, global = true)]
    pub(super) json: bool,
    /// TOML file with `server` and `token_file`; flags and environment win over it
    #[arg(long, global = true, env = "SHOESVZ_CLIENT_CONFIG", value_name = "FILE.toml")]
    pub(super) config: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Start a runner and wait until its VM answers SSH; a name that is there already gets the same VM
    Add(Add),
    /// Stop and remove a runner's VM
    Delete {
        /// As `add` and `list` print it: shoes-vz-<uuid>
        cloud_id: String,
        /// How long to wait, as 90, 90s, 3m or 1h
        #[arg(long, default_value = "3m")]
        timeout: Span,
    },
    /// Show the runners
    List {
        /// Also those that ended
        #[arg(long)]
        all: bool,
        /// How long to wait, as 90, 90s, 3m or 1h
        #[arg(long, default_value = "10s")]
        timeout: Span,
    },
    /// Follow runners as they change; with one named, until it is gone
    Watch {
        /// Only the runner of this name
        #[arg(long, conflicts_with = "cloud_id")]
        runner_name: Option<String>,
        /// Only the runner of this cloud id
        #[arg(long)]
        cloud_id: Option<String>,
    },
    /// Let an agent have no new runners; those it has go on
    Cordon {
        /// The agent's hostname, or its id as `agents` prints it
        #[arg(value_name = "HOST")]
        agent: String,
        /// Why, for other people; a cordoned agent's reason is replaced
        #[arg(long, default_value = "")]
        reason: String,
        /// How long to wait, as 90, 90s, 3m or 1h
        #[arg(long, default_value = "10s")]
        timeout: Span,
    },
    /// Let a cordoned agent have runners again
    Uncordon {
        /// The agent's hostname, or its id as `agents` prints it
        #[arg(value_name = "HOST")]
        agent: String,
        /// How long to wait, as 90, 90s, 3m or 1h
        #[arg(long, default_value = "10s")]
        timeout: Span,
    },
    /// Cordon an agent and wait until it has no runners; it stays cordoned, also when this command is interrupted
    Drain(Drain),
    /// Show the host agents
    Agents {
        /// How long to wait, as 90, 90s, 3m or 1h
        #[arg(long, default_value = "10s")]
        timeout: Span,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Drain {
    /// The agent's hostname, or its id as `agents` prints it
    #[arg(value_name = "HOST")]
    pub(super) agent: String,
    /// Why, for other people; a cordoned agent's reason is replaced
    #[arg(long, default_value = "")]
    pub(super) reason: String,
    /// Wait until the agent has no runners (the default)
    #[arg(long, conflicts_with = "no_wait")]
    wait: bool,
    /// Only cordon it, and say how many runners are left
    #[arg(long)]
    pub(super) no_wait: bool,
    /// How long to wait, as 90, 90s, 3m or 1h; as long as it takes when not given
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
    /// How long to wait, as 90, 90s, 3m or 1h
    #[arg(long, default_value = "5m")]
    pub(super) timeout: Span,
}

/// A span of time on the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

impl FromStr for Span {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let unit = match &text[digits.len()..] {
            "ms" => Some(Duration::from_millis(1)),
            "" | "s" => Some(Duration::from_secs(1)),
            "m" => Some(Duration::from_secs(60)),
            "h" => Some(Duration::from_secs(3600)),
            _ => None,
        };
        let number: Option<u32> = digits.parse().ok().filter(|n| *n > 0);
        let span = number.zip(unit).and_then(|(n, unit)| unit.checked_mul(n));
        span.map(Self).ok_or_else(|| "give a whole number above 0 with ms, s, m or h, as in 90s".to_owned())
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

    #[test]
    fn spans_are_read_in_every_unit() {
        for (text, millis) in
            [("250ms", 250), ("90", 90_000), ("3s", 3000), ("3m", 180_000), ("1h", 3_600_000)]
        {
            assert_eq!(text.parse(), Ok(Span(Duration::from_millis(millis))), "{text}");
        }
        for bad in ["", "s", "0s", "-1s", "1.5s", "1 s", "1d", "99999999999s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?}");
        }
    }
}
