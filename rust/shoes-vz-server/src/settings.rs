//! Settings: flags, then the environment (`SHOESVZ_SERVER_<FLAG>`), then a TOML file, then the default.
//!
//! All three are read as text through one table, so every key is known in each of them, unknown ones are refused in each,
//! and every mistake is reported at once. Nothing here touches the process: arguments, variables and the file reader are
//! handed in.

mod parse;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt, io,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use shoes_vz_model::{
    ResourceType,
    listen::{Callers, listen_addr},
};

use crate::{
    edge::{Defaults, Token},
    fleet::{core::Policy, demand::Demands, labels::Accepted},
    store::OnDamage,
};

/// One setting, under the same name everywhere (`_` for `-` in TOML).
struct Key {
    name: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
}

const fn key(name: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Key {
    Key { name, value, default, help }
}

const KEYS: [Key; 21] = [
    key(
        "grpc-addr",
        "ADDR",
        ":50051",
        "Where plugins and agents connect; \":PORT\" is loopback only without a token",
    ),
    key("metrics-addr", "ADDR", ":9090", "Where Prometheus scrapes, and /healthz"),
    key("state-dir", "DIR", "", "Where the fleet's state is kept [default: the user's state directory]"),
    key(
        "replace-damaged-state",
        "true|false",
        "false",
        "Move a damaged database aside and begin empty, rather than refuse to start",
    ),
    key("token-file", "FILE", "", "A file with the token every caller must show"),
    key(
        "insecure-listen",
        "true|false",
        "false",
        "Listen beyond loopback without a token: anyone who connects is let in",
    ),
    key("config", "FILE.toml", "", "A file with these settings"),
    key("log-format", "json|text", "json", "How to log; what is logged is RUST_LOG's"),
    key("ready-file", "FILE", "", "Written with the bound addresses once the server is ready"),
    key("default-resource-type", "TYPE", "nano", "For an AddInstance that names none"),
    key("accepted-labels", "LABEL,…", "", "Job labels that no template has to offer"),
    key(
        "unknown-labels",
        "wait|refuse|ignore",
        "wait",
        "What to do about a job label that no agent offers; upon a refusal myshoes deletes the job for good",
    ),
    key("add-timeout", "TIME", "5m", "How long an AddInstance without a deadline waits"),
    key("delete-timeout", "TIME", "2m", "How long a DeleteInstance without a deadline waits"),
    key("caller-grace", "TIME", "30s", "How long a runner outlives a caller that went away, for its retry"),
    key("tombstones", "TIME", "7d", "How long ended runners are remembered"),
    key("agent-forget", "TIME", "7d", "How long an agent may be away before its runners are given up"),
    key("max-lifetime", "TIME", "0", "How long a VM may live in all; 0 = the agent's own"),
    key("start-deadline", "TIME", "0", "How long until SSH must answer; 0 = the agent's own"),
    key(
        "keepalive",
        "TIME",
        "5s",
        "How often a silent connection is asked whether it lives; it has as long to answer",
    ),
    key("shutdown-timeout", "TIME", "10s", "How long calls may take to end when the server is told to"),
];

/// The tables of templates and sizes in the TOML file.
const RESOURCE_TYPES: &str = "resource_types";
const LABELS: &str = "labels";
const ENV: &str = "SHOESVZ_SERVER_";
/// The plugin's variable, not ours, though it begins like ours.
const PLUGINS_ENV: &str = "SHOESVZ_SERVER_ADDR";

/// How to log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One object a line.
    Json,
    /// For people.
    Text,
}

/// Everything the server is told.
#[derive(Debug, Clone)]
pub struct Settings {
    /// gRPC.
    pub grpc_addr: SocketAddr,
    /// HTTP.
    pub metrics_addr: SocketAddr,
    /// SQLite's directory.
    pub state_dir: PathBuf,
    /// Should SQLite's file be damaged.
    pub damaged_state: OnDamage,
    /// What callers must show.
    pub token: Option<Token>,
    /// How to log.
    pub log_format: LogFormat,
    /// Written once ready.
    pub ready_file: Option<PathBuf>,
    /// For calls that leave it open.
    pub defaults: Defaults,
    /// For the fleet.
    pub policy: Policy,
    /// HTTP/2 PING interval, and time to answer it.
    pub keepalive: Duration,
    /// For a graceful end.
    pub shutdown_timeout: Duration,
}

/// Why there are no settings.
#[derive(Debug)]
pub enum Unusable {
    /// `--help`, `--version` or a misspelt flag, in clap's words.
    Flags(clap::Error),
    /// Every mistake there is.
    Mistakes(Vec<String>),
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flags(e) => e.fmt(f),
            Self::Mistakes(all) => {
                write!(f, "the settings have {} mistake(s):", all.len())?;
                all.iter().try_for_each(|m| write!(f, "\n  - {m}"))
            }
        }
    }
}

/// A value and where it was given, for messages.
struct Given {
    text: String,
    origin: String,
}

/// Collects values and mistakes.
#[derive(Default)]
struct Reader {
    given: BTreeMap<&'static str, Given>,
    mistakes: Vec<String>,
}

impl Reader {
    /// The value of `name`, or `None` after noting a mistake.
    fn get<T, E: fmt::Display>(&mut self, name: &str, parse: impl FnOnce(&str) -> Result<T, E>) -> Option<T> {
        let (text, origin) = match self.given.get(name) {
            Some(given) => (given.text.as_str(), given.origin.as_str()),
            None => (KEYS.iter().find(|k| k.name == name).map_or("", |k| k.default), "the default"),
        };
        match parse(text) {
            Ok(value) => Some(value),
            Err(e) => {
                self.mistakes.push(format!("{name} ({origin}): {e}"));
                None
            }
        }
    }

    /// An optional path.
    fn path(&self, name: &str) -> Option<PathBuf> {
        self.given.get(name).filter(|g| !g.text.is_empty()).map(|g| PathBuf::from(&g.text))
    }
}

impl Settings {
    /// From the process' arguments (without its name), its variables, and a way to read files.
    pub fn read(
        args: impl IntoIterator<Item = OsString>,
        vars: impl IntoIterator<Item = (String, String)>,
        read_file: impl Fn(&Path) -> io::Result<String>,
    ) -> Result<Self, Unusable> {
        let matches = command().try_get_matches_from(args).map_err(Unusable::Flags)?;
        let vars: BTreeMap<String, String> = vars.into_iter().collect();
        let mut reader = Reader::default();
        for key in &KEYS {
            let flag = matches.get_one::<String>(key.name).map(|text| (text, format!("--{}", key.name)));
            let var = || vars.get(&env_name(key.name)).map(|text| (text, env_name(key.name)));
            if let Some((text, origin)) = flag.or_else(var) {
                reader.given.insert(key.name, Given { text: text.clone(), origin });
            }
        }
        for name in vars.keys().filter(|n| n.starts_with(ENV) && *n != PLUGINS_ENV) {
            if !KEYS.iter().any(|k| env_name(k.name) == *name) {
                reader.mistakes.push(format!("environment variable {name} is not known; see --help"));
            }
        }
        let mut demands = Demands::default();
        if let Some(path) = reader.path("config") {
            match read_file(&path) {
                Ok(text) => demands = file(&mut reader, &path, &text),
                Err(e) => reader.mistakes.push(format!("config: cannot read {}: {e}", path.display())),
            }
        }
        build(reader, demands, &vars, read_file)
    }
}

fn build(
    mut reader: Reader,
    demands: Demands,
    vars: &BTreeMap<String, String>,
    read_file: impl Fn(&Path) -> io::Result<String>,
) -> Result<Settings, Unusable> {
    let r = &mut reader;
    let insecure = r.get("insecure-listen", parse::boolean);
    let token = match r.path("token-file") {
        None => None,
        Some(path) => match read_file(&path).map(|text| Token::parse(&text)) {
            Ok(Some(token)) => Some(token),
            Ok(None) => {
                let words = "it is empty, or holds more than one line of printable characters";
                r.mistakes.push(format!("token-file: {}: {words}", path.display()));
                None
            }
            Err(e) => {
                r.mistakes.push(format!("token-file: cannot read {}: {e}", path.display()));
                None
            }
        },
    };
    // Whether there is a token decides where to listen; that it cannot be read is a mistake of its own.
    let callers = match (r.path("token-file"), insecure) {
        (Some(_), _) => Callers::Authenticated,
        (None, Some(true)) => Callers::AnyoneAndTheOperatorInsists,
        (None, _) => Callers::Anyone,
    };
    let grpc_addr = r.get("grpc-addr", |t| listen_addr(t, callers));
    let metrics_addr = r.get("metrics-addr", |t| listen_addr(t, callers));
    let state_dir = r.path("state-dir").or_else(|| default_state_dir(vars));
    if state_dir.is_none() {
        r.mistakes.push("state-dir: there is no default without HOME; give --state-dir".into());
    }
    let replace_damaged = r.get("replace-damaged-state", parse::boolean);
    let log_format = r.get("log-format", parse::log_format);
    let resource_type = r.get("default-resource-type", str::parse);
    let accepted = r.get("accepted-labels", parse::labels);
    let unknown_labels = r.get("unknown-labels", parse::unknown_labels);
    let add_patience = r.get("add-timeout", parse::some_time);
    let delete_patience = r.get("delete-timeout", parse::some_time);
    let grace = r.get("caller-grace", parse::time);
    let tombstones = r.get("tombstones", parse::time);
    let agent_forget = r.get("agent-forget", parse::some_time);
    let max_lifetime = r.get("max-lifetime", parse::time);
    let start_deadline = r.get("start-deadline", parse::time);
    let keepalive = r.get("keepalive", parse::some_time);
    let shutdown_timeout = r.get("shutdown-timeout", parse::time);
    let ready_file = r.path("ready-file");
    let whole = || {
        Some(Settings {
            grpc_addr: grpc_addr?,
            metrics_addr: metrics_addr?,
            state_dir: state_dir?,
            damaged_state: if replace_damaged? { OnDamage::MoveAside } else { OnDamage::Refuse },
            token,
            log_format: log_format?,
            ready_file,
            defaults: Defaults {
                resource_type: resource_type?,
                add_patience: add_patience?,
                delete_patience: delete_patience?,
            },
            policy: Policy {
                // What a label of the table means is said there: no template has to offer it too.
                accepted_labels: Accepted::new(accepted?.iter().chain(demands.labels.keys())),
                demands,
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
    match whole() {
        Some(settings) if reader.mistakes.is_empty() => Ok(settings),
        _ => Err(Unusable::Mistakes(reader.mistakes)),
    }
}

/// Takes the file's settings where nothing with precedence was given; gives the tables of templates and sizes.
fn file(reader: &mut Reader, path: &Path, text: &str) -> Demands {
    let origin = path.display().to_string();
    let table: toml::Table = match toml::from_str(text) {
        Ok(table) => table,
        Err(e) => {
            reader.mistakes.push(format!("{origin} is not TOML: {e}"));
            return Demands::default();
        }
    };
    let mut demands = Demands::default();
    for (name, value) in &table {
        let mistakes = &mut reader.mistakes;
        if name == RESOURCE_TYPES {
            demands.resource_types =
                parse::demands(name, value, str::parse::<ResourceType>, &origin, mistakes);
            continue;
        }
        if name == LABELS {
            demands.labels = parse::demands(name, value, parse::label, &origin, mistakes);
            continue;
        }
        match (KEYS.iter().find(|k| k.name.replace('-', "_") == *name), parse::scalar(value)) {
            (None, _) => reader.mistakes.push(format!("{origin}: setting {name:?} is not known")),
            (Some(key), _) if key.name == "config" => {
                reader.mistakes.push(format!("{origin}: a file cannot name another one"));
            }
            (Some(_), None) => {
                reader.mistakes.push(format!("{origin}: {name} is neither a text nor a number"))
            }
            (Some(key), Some(text)) => {
                reader.given.entry(key.name).or_insert(Given { text, origin: origin.clone() });
            }
        }
    }
    demands
}

fn env_name(key: &str) -> String {
    format!("{ENV}{}", key.replace('-', "_").to_uppercase())
}

fn command() -> clap::Command {
    let about = "The control plane of shoes-vz: schedules ephemeral GitHub Actions runners on agents.";
    let after = "Every setting is also read from the environment, as SHOESVZ_SERVER_<NAME>, and from the --config \
                 file, with _ for -. There, [resource_types.large] and [labels.\"macos-15\"] may hold template, cpus, \
                 memory and disk, for jobs of that type or with that label: the largest of each size counts, a label's \
                 template goes before a type's, and such a label need not be offered by any template.";
    let flags = KEYS.iter().map(|key| {
        let help = if key.default.is_empty() {
            key.help.to_owned()
        } else {
            format!("{} [default: {}]", key.help, key.default)
        };
        let arg = clap::Arg::new(key.name).long(key.name).value_name(key.value).help(help);
        if key.value == "true|false" { arg.num_args(0..=1).default_missing_value("true") } else { arg }
    });
    clap::Command::new("shoes-vz-server")
        .version(env!("CARGO_PKG_VERSION"))
        .about(about)
        .after_help(after)
        .no_binary_name(true)
        .args(flags)
}

fn default_state_dir(vars: &BTreeMap<String, String>) -> Option<PathBuf> {
    let var = |name: &str| vars.get(name).filter(|v| Path::new(v).is_absolute()).map(PathBuf::from);
    let base = if cfg!(target_os = "macos") {
        var("HOME")?.join("Library/Application Support")
    } else {
        var("XDG_STATE_HOME").or_else(|| Some(var("HOME")?.join(".local/state")))?
    };
    Some(base.join("shoes-vz").join("server"))
}

#[cfg(test)]
mod tests;
