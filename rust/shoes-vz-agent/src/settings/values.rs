//! Settings as text, by flag name, and what each text means.

use std::{collections::BTreeMap, fs, path::Path, path::PathBuf, time::Duration};

use shoes_vz_vm::spec::{Accelerator, Display, HypervisorKind, Network};

use super::is_host_port;
use crate::{
    cli::{PlaceArgs, RunArgs},
    duration,
    hot::{HotPlan, Idle, StatesMode},
    size,
};

/// Every setting there is, named as its flag.
const NAMES: [&str; 24] = [
    "server",
    "hostname",
    "max-runners",
    "template-path",
    "runners-path",
    "ssh-key",
    "ip-notify-port",
    "enable-graphics",
    "token-file",
    "state-dir",
    "hypervisor",
    "accelerator",
    "network",
    "start-deadline",
    "max-lifetime",
    "registration-deadline",
    "silent-guest-limit",
    "min-free-disk",
    "hot",
    "hot-idle",
    "hot-max-age",
    "saved-states",
    "log-format",
    "ready-file",
];

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For a person.
    Text,
    /// One object a line.
    Json,
}

/// Settings before they are understood. An empty text is as good as none: Go's defaults are empty strings.
#[derive(Debug, Default)]
pub struct Raw {
    values: BTreeMap<&'static str, String>,
    pub(super) mistakes: Vec<String>,
}

impl Raw {
    /// From the command line and environment, then the file they name.
    pub fn of_run(args: &RunArgs) -> Self {
        let given = [
            &args.server,
            &args.hostname,
            &args.max_runners,
            &args.template_path,
            &args.place.runners_path,
            &args.ssh_key,
            &args.ip_notify_port,
            &args.enable_graphics,
            &args.token_file,
            &args.state_dir,
            &args.hypervisor,
            &args.accelerator,
            &args.network,
            &args.start_deadline,
            &args.max_lifetime,
            &args.registration_deadline,
            &args.silent_guest_limit,
            &args.min_free_disk,
            &args.hot,
            &args.hot_idle,
            &args.hot_max_age,
            &args.saved_states,
            &args.log_format,
            &args.ready_file,
        ];
        let mut raw = Self::default();
        for (name, value) in NAMES.into_iter().zip(given) {
            if let Some(value) = value {
                raw.set(name, value);
            }
        }
        raw.read_file(args.place.config.as_deref());
        raw
    }

    /// From a subcommand's own few.
    pub fn of_place(place: &PlaceArgs) -> Self {
        let mut raw = Self::default();
        if let Some(path) = &place.runners_path {
            raw.set("runners-path", path);
        }
        raw.read_file(place.config.as_deref());
        raw
    }

    pub(super) fn set(&mut self, name: &'static str, value: &str) {
        if !value.is_empty() {
            self.values.insert(name, value.to_owned());
        }
    }

    fn read_file(&mut self, path: Option<&Path>) {
        let Some(path) = path else { return };
        match fs::read_to_string(path) {
            Ok(text) => self.file(&text, path),
            Err(e) => self.mistakes.push(format!("--config: {path:?} cannot be read ({e})")),
        }
    }

    /// Adds what the TOML text says and nothing before it did.
    pub(super) fn file(&mut self, text: &str, path: &Path) {
        let table: toml::Table = match text.parse() {
            Ok(table) => table,
            Err(e) => return self.mistakes.push(format!("--config: {path:?} is no TOML: {e}")),
        };
        for (key, value) in table {
            let Some(name) = NAMES.into_iter().find(|n| *n == key.replace('_', "-")) else {
                self.mistakes.push(format!("--config: {path:?} has an unknown key \"{key}\""));
                continue;
            };
            let value = match value {
                toml::Value::String(text) => text,
                toml::Value::Integer(number) => number.to_string(),
                toml::Value::Boolean(yes) => yes.to_string(),
                other => {
                    let kind = other.type_str();
                    self.mistakes
                        .push(format!("--config: {path:?}: \"{key}\" is a {kind}, not a text or number"));
                    continue;
                }
            };
            if !self.values.contains_key(name) {
                self.set(name, &value);
            }
        }
    }

    /// A setting's text.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    /// A setting that is a path.
    pub fn path(&self, name: &str) -> Option<PathBuf> {
        self.text(name).map(PathBuf::from)
    }
}

/// `None`: not said, so the host's own.
pub(super) fn hypervisor(raw: &Raw) -> Result<Option<HypervisorKind>, String> {
    match raw.text("hypervisor").unwrap_or("auto") {
        "auto" => Ok(Some(HypervisorKind::of_this_host())),
        "qemu" => Ok(Some(HypervisorKind::Qemu)),
        "vz" => Ok(Some(HypervisorKind::Vz)),
        other => Err(format!("--hypervisor: {other:?} is none of auto, qemu, vz")),
    }
}

pub(super) fn max_runners(raw: &Raw, macos: bool) -> Result<u32, String> {
    let text = raw.text("max-runners").unwrap_or("2");
    match text.parse::<u32>() {
        Ok(0) | Err(_) => Err(format!("--max-runners: {text:?} is no number of VMs; at least 1 is needed")),
        Ok(n) if macos && n > 2 => {
            Err(format!("--max-runners: {n} is too many: macOS runs at most 2 macOS guests at a time"))
        }
        Ok(n) => Ok(n),
    }
}

pub(super) fn port(raw: &Raw, name: &str) -> Result<Option<u16>, String> {
    let Some(text) = raw.text(name) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| format!("--{name}: {text:?} is no TCP port (0 to 65535)"))
}

/// As a URI.
pub(super) fn server(raw: &Raw) -> Result<String, String> {
    let text = raw.text("server").unwrap_or("localhost:50051");
    let host_port = text.strip_prefix("http://").unwrap_or(text);
    match is_host_port(host_port) {
        true => Ok(format!("http://{host_port}")),
        false => Err(format!("--server: {text:?} is not HOST:PORT")),
    }
}

pub(super) fn hostname(raw: &Raw) -> Result<String, String> {
    if let Some(name) = raw.text("hostname") {
        return Ok(name.to_owned());
    }
    sysinfo::System::host_name()
        .map_err(|e| format!("--hostname: this host's name cannot be found out ({e}); give it one here"))
}

pub(super) fn display(raw: &Raw) -> Result<Display, String> {
    match raw.text("enable-graphics").unwrap_or("false") {
        "true" | "1" => Ok(Display::Window),
        "false" | "0" => Ok(Display::Headless),
        other => Err(format!("--enable-graphics: {other:?} is neither true nor false")),
    }
}

pub(super) fn accelerator(raw: &Raw) -> Result<Accelerator, String> {
    raw.text("accelerator").unwrap_or("auto").parse().map_err(|e| format!("--accelerator: {e}"))
}

/// QEMU's guests reach nothing, so there is nothing to choose.
pub(super) fn network(raw: &Raw, hypervisor: Option<HypervisorKind>) -> Result<Network, String> {
    match (raw.text("network"), hypervisor) {
        (None, _) => Ok(Network::default()),
        (Some(text), Some(HypervisorKind::Qemu)) => {
            Err(format!("--network: {text:?} is for vz; QEMU's guests have no way out"))
        }
        (Some(text), _) => text.parse().map_err(|e| format!("--network: {e}")),
    }
}

/// What `0` is for a duration.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Zero {
    Refused,
    MeansNone,
}

pub(super) fn duration(raw: &Raw, name: &str, default: u64, zero: Zero) -> Result<Duration, String> {
    let Some(text) = raw.text(name) else { return Ok(Duration::from_secs(default)) };
    match duration::parse(text) {
        Ok(d) if d.is_zero() && zero == Zero::Refused => Err(format!("--{name}: it must be more than 0")),
        Ok(d) => Ok(d),
        Err(e) => Err(format!("--{name}: {e}")),
    }
}

/// What is kept hot. Guests that are `tcp` cannot be told the time after a pause, nor be restored.
pub(super) fn hot(raw: &Raw, tcp: bool) -> Result<HotPlan, Vec<String>> {
    let mut wrong = Vec::new();
    let mut plan = HotPlan::none();
    if let Err(e) = plan.parse_wanted(raw.text("hot").unwrap_or("all")) {
        wrong.push(format!("--hot: {e}"));
    }
    match raw.text("hot-idle").unwrap_or("running").parse() {
        Ok(Idle::Paused) if tcp => wrong.push(
            "--hot-idle: paused needs a template whose guests are reached by the guest channel (\"guest_agent\": \
             \"channel\" in Template.json)"
                .into(),
        ),
        Ok(idle) => plan.idle = idle,
        Err(e) => wrong.push(format!("--hot-idle: {e}")),
    }
    match duration(raw, "hot-max-age", 12 * 3600, Zero::Refused) {
        Ok(age) => plan.max_age = age,
        Err(e) => wrong.push(e),
    }
    match raw.text("saved-states").unwrap_or("auto").parse() {
        Ok(_) if tcp => plan.states = StatesMode::Off,
        Ok(states) => plan.states = states,
        Err(e) => wrong.push(format!("--saved-states: {e}")),
    }
    if wrong.is_empty() { Ok(plan) } else { Err(wrong) }
}

pub(super) fn size(raw: &Raw, name: &str, default: &str) -> Result<u64, String> {
    size::parse(raw.text(name).unwrap_or(default)).map_err(|e| format!("--{name}: {e}"))
}

/// How to log, needed before anything else is.
pub fn log_format(raw: &Raw) -> Result<LogFormat, String> {
    match raw.text("log-format").unwrap_or("text") {
        "text" => Ok(LogFormat::Text),
        "json" => Ok(LogFormat::Json),
        other => Err(format!("--log-format: {other:?} is neither text nor json")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_goes_before_the_file_and_both_before_the_default() {
        let mut raw = Raw::default();
        raw.set("max-runners", "3");
        raw.set("hostname", "");
        raw.file(
            "max_runners = 4\nhostname = \"h\"\nstart-deadline = \"9s\"\nenable_graphics = true\n",
            Path::new("f"),
        );
        assert_eq!(max_runners(&raw, false), Ok(3));
        assert_eq!(hostname(&raw), Ok("h".into()), "an empty text is none");
        assert_eq!(duration(&raw, "start-deadline", 300, Zero::Refused), Ok(Duration::from_secs(9)));
        assert_eq!(display(&raw), Ok(Display::Window));
        assert_eq!(server(&raw), Ok("http://localhost:50051".into()));
        assert_eq!(raw.mistakes, Vec::<String>::new());
    }

    #[test]
    fn macos_guests_are_two_at_most_and_linux_ones_as_many_as_wanted() {
        let mut raw = Raw::default();
        raw.set("max-runners", "3");
        assert!(max_runners(&raw, true).unwrap_err().contains("at most 2"));
        assert_eq!(max_runners(&raw, false), Ok(3));
        raw.set("max-runners", "-1");
        assert!(max_runners(&raw, false).is_err());
    }

    #[test]
    fn a_network_is_chosen_for_vz_only() {
        let mut raw = Raw::default();
        assert_eq!(network(&raw, Some(HypervisorKind::Qemu)), Ok(Network::Nat));
        raw.set("network", "vmnet");
        assert_eq!(network(&raw, Some(HypervisorKind::Vz)), Ok(Network::Vmnet));
        assert!(network(&raw, Some(HypervisorKind::Qemu)).unwrap_err().contains("no way out"));
        raw.set("network", "bridged");
        assert!(network(&raw, Some(HypervisorKind::Vz)).unwrap_err().contains("bridged"));
    }

    #[test]
    fn a_zero_is_a_deadline_only_where_it_means_none() {
        let mut raw = Raw::default();
        raw.set("max-lifetime", "0");
        assert_eq!(duration(&raw, "max-lifetime", 1, Zero::MeansNone), Ok(Duration::ZERO));
        assert!(duration(&raw, "max-lifetime", 1, Zero::Refused).is_err());
    }

    #[test]
    fn a_size_has_its_default_its_unit_and_a_zero() {
        let mut raw = Raw::default();
        assert_eq!(size(&raw, "min-free-disk", "10GiB"), Ok(10 << 30));
        raw.file("min_free_disk = 0\n", Path::new("f"));
        assert_eq!(size(&raw, "min-free-disk", "10GiB"), Ok(0));
        raw.set("min-free-disk", "2GiB");
        assert_eq!(size(&raw, "min-free-disk", "10GiB"), Ok(2 << 30));
        raw.set("min-free-disk", "-1");
        assert!(size(&raw, "min-free-disk", "10GiB").unwrap_err().contains("--min-free-disk"));
    }
}
