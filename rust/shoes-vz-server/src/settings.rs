//! The server's settings.

mod parse;

use std::{ffi::OsString, net::SocketAddr, path::PathBuf, time::Duration};

use shoes_vz_model::{
    ResourceType,
    listen::{BadListenAddr, Callers, listen_addr},
};
pub use shoes_vz_process::settings::Unusable;
use shoes_vz_process::{
    log,
    secret::Token,
    settings::{
        CONFIG, Flags, LOG, LOG_FORMAT, Mistakes, Program, Setting, Table, Values, Zero, command_line,
    },
};

use crate::{
    edge::Defaults,
    fleet::{labels::Accepted, policy::Policy, requirements::RequirementTables},
    store::OnDamage,
};

/// The tables of templates and sizes in the TOML file.
const RESOURCE_TYPES: &str = "resource_types";
const LABELS: &str = "labels";

/// Every setting of the server.
pub static PROGRAM: Program = Program {
    name: "shoes-vz-server",
    env_prefix: "SHOESVZ_SERVER_",
    // The client's variable, which a shell that runs both has set.
    foreign_env: &["SHOESVZ_SERVER_ADDR"],
    settings: &[
        Setting::new(
            "grpc-addr",
            "ADDR",
            "gRPC listen address for clients and agents; \":PORT\" binds loopback unless --token-file is set",
        )
        .or(":50051"),
        Setting::new(
            "metrics-addr",
            "ADDR",
            "HTTP listen address of /metrics and /healthz; \":PORT\" as for --grpc-addr",
        )
        .or(":9090"),
        Setting::new("state-dir", "DIR", "Directory of the fleet's database")
            .or_else("the user's state directory"),
        Setting::switch(
            "replace-damaged-state",
            "Quarantine a damaged database (rename it to fleet.sqlite3.damaged-TIME) and start empty instead of refusing to start",
        ),
        Setting::new(
            "token-file",
            "FILE",
            "File containing the bearer token that clients and agents must present",
        ),
        Setting::switch(
            "insecure-listen",
            "Listen beyond loopback without a token: every caller is accepted",
        ),
        Setting::new("ready-file", "FILE", "File to write the bound addresses to once the server is ready"),
        Setting::new("default-resource-type", "TYPE", "Resource type of an AddInstance without one")
            .or("nano"),
        Setting::new(
            "accepted-labels",
            "LABEL,…",
            "Extra job labels to accept even if no template lists them",
        ),
        Setting::new(
            "unknown-labels",
            "POLICY",
            "What to do about a job label that no agent offers: wait, refuse (myshoes then deletes the job permanently) or ignore",
        )
        .or("wait"),
        Setting::duration("add-timeout", "How long an AddInstance without a deadline waits").or("5m"),
        Setting::duration("delete-timeout", "How long a DeleteInstance without a deadline waits").or("2m"),
        Setting::duration(
            "caller-grace",
            "How long to keep a runner whose caller disconnected, so that a retry can reuse it",
        )
        .or("30s"),
        Setting::duration("tombstones", "How long to remember ended runners").or("7d"),
        Setting::duration(
            "agent-forget",
            "How long an agent may be offline before its runners are recorded as lost",
        )
        .or("7d"),
        Setting::duration("max-lifetime", "Maximum lifetime of a VM; 0 leaves it to the agent").or("0"),
        Setting::duration("start-deadline", "Time allowed until SSH answers; 0 leaves it to the agent")
            .or("0"),
        Setting::duration("keepalive", "HTTP/2 keepalive interval; also the time allowed for the reply")
            .or("5s"),
        Setting::duration("shutdown-timeout", "Time allowed for calls in progress to finish on shutdown")
            .or("10s"),
        CONFIG,
        LOG,
        LOG_FORMAT,
    ],
    tables: &[RESOURCE_TYPES, LABELS],
};

/// Every setting is a flag.
#[derive(Debug)]
pub struct All;

impl Table for All {
    const PROGRAM: &'static Program = &PROGRAM;
}

#[derive(Debug, clap::Parser)]
#[command(
    name = "shoes-vz-server",
    version,
    about = "The control plane of shoes-vz: schedules ephemeral GitHub Actions runners on agents",
    after_help = "Every setting is also read from its environment variable, and from the --config file under its name. There, \
                  [resource_types.large] and [labels.\"macos-15\"] may hold template, cpus, memory and disk, for jobs of that \
                  type or with that label. If both apply, the largest cpus, memory and disk are used, and the label's template \
                  takes precedence over the type's. A label with such a table is accepted even if no template lists it.\n\n\
                  Example: shoes-vz-server --grpc-addr 127.0.0.1:50051 --metrics-addr 127.0.0.1:9090\n\n\
                  Exit codes: 0 stopped by a signal, 1 failure, 2 wrong flags or settings.",
    max_term_width = 100
)]
struct Cli {
    #[command(flatten)]
    flags: Flags<All>,
}

#[derive(Debug, Clone)]
pub struct Settings {
    pub grpc_addr: SocketAddr,
    pub metrics_addr: SocketAddr,
    /// Directory of the database.
    pub state_dir: PathBuf,
    pub damaged_state: OnDamage,
    /// The token that callers must present.
    pub token: Option<Token>,
    pub log: (log::Filter, log::Format),
    /// Written once the server is ready.
    pub ready_file: Option<PathBuf>,
    pub defaults: Defaults,
    pub policy: Policy,
    /// HTTP/2 keepalive interval, and the time allowed for the reply.
    pub keepalive: Duration,
    pub shutdown_timeout: Duration,
}

impl Settings {
    /// Reads the process's arguments (with its name) and environment.
    pub fn read(
        args: impl IntoIterator<Item = OsString>,
        vars: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, Unusable> {
        let (cli, mistakes) = command_line::read::<Cli>(args).map_err(Unusable::Flags)?;
        let vars: Vec<(OsString, OsString)> = vars.into_iter().collect();
        let default_state_dir = default_state_dir(&vars);
        let values = Values::gather(&cli.flags, vars, mistakes);
        build(values, default_state_dir).map_err(Unusable::Mistakes)
    }
}

fn build(mut values: Values, default_state_dir: Option<PathBuf>) -> Result<Settings, Mistakes> {
    let v = &mut values;
    let requirement_tables = RequirementTables {
        resource_types: parse::requirements_table(v, RESOURCE_TYPES, str::parse::<ResourceType>),
        labels: parse::requirements_table(v, LABELS, parse::label),
    };
    let insecure = v.switch("insecure-listen");
    let token = v.token("token-file");
    // Whether a token file is given decides where to listen; a token file that cannot be read is a separate mistake.
    let callers = match (v.is_given("token-file"), insecure) {
        (true, _) => Callers::Authenticated,
        (false, Some(true)) => Callers::AnyoneInsecure,
        (false, _) => Callers::Anyone,
    };
    let listen = |text: &str| {
        listen_addr(text, callers).map_err(|e| match e {
            BadListenAddr::Unauthenticated(_) => format!("{e}; --insecure-listen accepts every caller"),
            BadListenAddr::Malformed(_) => e.to_string(),
        })
    };
    let grpc_addr = v.parse("grpc-addr", listen);
    let metrics_addr = v.parse("metrics-addr", listen);
    let state_dir = v.path("state-dir").or(default_state_dir);
    if state_dir.is_none() {
        v.mistake("state-dir", "there is no default without HOME; give a directory");
    }
    let replace_damaged = v.switch("replace-damaged-state");
    let log = v.log();
    let resource_type = v.parse("default-resource-type", str::parse);
    let accepted = v.parse("accepted-labels", parse::labels).unwrap_or_default();
    let unknown_labels = v.parse("unknown-labels", parse::unknown_labels);
    let add_timeout = v.duration("add-timeout", Zero::Refused);
    let delete_timeout = v.duration("delete-timeout", Zero::Refused);
    let grace = v.duration("caller-grace", Zero::Allowed);
    let tombstones = v.duration("tombstones", Zero::Allowed);
    let agent_forget = v.duration("agent-forget", Zero::Refused);
    let max_lifetime = v.duration("max-lifetime", Zero::Allowed);
    let start_deadline = v.duration("start-deadline", Zero::Allowed);
    let keepalive = v.duration("keepalive", Zero::Refused);
    let shutdown_timeout = v.duration("shutdown-timeout", Zero::Allowed);
    let ready_file = v.path("ready-file");
    let whole = || {
        Some(Settings {
            grpc_addr: grpc_addr?,
            metrics_addr: metrics_addr?,
            state_dir: state_dir?,
            damaged_state: if replace_damaged? { OnDamage::Quarantine } else { OnDamage::Refuse },
            token,
            log,
            ready_file,
            defaults: Defaults {
                resource_type: resource_type?,
                add_timeout: add_timeout?,
                delete_timeout: delete_timeout?,
            },
            policy: Policy {
                // The table defines what its labels require, so no template has to offer them.
                accepted_labels: Accepted::new(accepted.iter().chain(requirement_tables.labels.keys())),
                requirement_tables,
                unknown_labels: unknown_labels?,
                grace: grace?,
                tombstones: tombstones?,
                agent_forget: agent_forget?,
                max_lifetime: max_lifetime?,
                start_deadline: start_deadline?,
            },
            keepalive: keepalive?,
            shutdown_timeout: shutdown_timeout?,
        })
    };
    let whole = whole();
    values.finish(whole)
}

fn default_state_dir(vars: &[(OsString, OsString)]) -> Option<PathBuf> {
    let var = |name: &str| {
        let value = vars.iter().find(|(n, _)| n == name).map(|(_, value)| PathBuf::from(value));
        value.filter(|v| v.is_absolute())
    };
    let base = if cfg!(target_os = "macos") {
        var("HOME")?.join("Library/Application Support")
    } else {
        var("XDG_STATE_HOME").or_else(|| Some(var("HOME")?.join(".local/state")))?
    };
    Some(base.join("shoes-vz").join("server"))
}

#[cfg(test)]
mod tests;
