//! The settings of `run`, checked on this host.

mod values;

use std::{
    fs, io,
    net::ToSocketAddrs as _,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use shoes_vz_model::{
    bundle::{self, MAX_SOCKET_PATH},
    id::RunnerId,
    template::{Os, Transport},
};
use shoes_vz_process::{
    secret::Token,
    settings::{Flags, Mistakes, Table, Values, Zero},
};
use shoes_vz_vm::{
    hypervisor::vz,
    spec::{Accelerator, Display, HypervisorKind, Network},
    template::TemplateDir,
};

use crate::{
    pool::HotPlan,
    saved_states::StatesMode,
    ssh::{Login, LoginKeys},
};

#[derive(Debug)]
pub struct Settings {
    /// A URI.
    pub server: String,
    pub hostname: String,
    pub max_runners: u32,
    pub template: TemplateDir,
    /// Canonical.
    pub runners_path: PathBuf,
    pub login: Login,
    /// `None` if the template needs no address listener.
    pub ip_notify_port: Option<u16>,
    pub display: Display,
    pub token: Option<Token>,
    /// Holds the agent ID and the end reports that the server has not acknowledged.
    pub state_dir: PathBuf,
    pub hypervisor: HypervisorKind,
    pub accelerator: Accelerator,
    /// For macOS guests.
    pub network: Network,
    /// From the start of a runner until SSH answers.
    pub start_deadline: Duration,
    /// Of a VM; `None` sets no limit.
    pub max_lifetime: Option<Duration>,
    /// From the end of the setup script until an Actions runner appears.
    pub registration_deadline: Duration,
    /// Longest that a guest may be unresponsive once it has the setup script; `None` sets no limit.
    pub unresponsive_guest_limit: Option<Duration>,
    /// Bytes of free space at the runners path below which new VMs are refused; 0 disables the check.
    pub min_free_disk: u64,
    pub hot: HotPlan,
    pub saved_states: StatesMode,
    /// Written once the server has accepted this agent.
    pub ready_file: Option<PathBuf>,
}

impl Settings {
    /// Checks all of `values` on this host.
    pub fn check(mut values: Values) -> Result<Self, Mistakes> {
        let v = &mut values;
        let template_path = v.path("template-path").unwrap_or_default();
        let template = TemplateDir::open(&template_path).map_err(|e| v.mistake("template-path", e)).ok();
        let hypervisor = values::hypervisor(v);
        if let (Some(template), Some(kind)) = (&template, hypervisor)
            && let Err(reason) = hypervisor_fits(kind, template.meta.os)
        {
            v.mistake("hypervisor", reason);
        }
        let is_macos = template.as_ref().is_some_and(|t| t.meta.os == Os::Macos);
        let max_runners = values::max_runners(v, is_macos);
        let runners_path = v.path("runners-path").unwrap_or_default();
        let runners_path = usable_runners_path(&runners_path).map_err(|e| v.mistake("runners-path", e)).ok();
        let state_dir = match v.path("state-dir") {
            Some(dir) => usable_dir(&dir).map_err(|e| v.mistake("state-dir", e)).ok(),
            None => runners_path.clone(),
        };
        let login = login(v, template.as_ref());
        let needs_tcp = template.as_ref().is_some_and(|t| t.meta.guest_agent == Transport::Tcp);
        let ip_notify_port = v.port("ip-notify-port").or(needs_tcp.then_some(8081));
        let token = v.token("token-file");
        let server = values::server(v);
        let hostname = values::hostname(v);
        let display = values::display(v);
        let accelerator = v.parse("accelerator", str::parse);
        let network = values::network(v, hypervisor);
        let start_deadline = v.duration("start-deadline", Zero::Refused);
        let max_lifetime = v.duration("max-lifetime", Zero::Allowed);
        let registration_deadline = v.duration("registration-deadline", Zero::Refused);
        let unresponsive_limit = v.duration("unresponsive-guest-limit", Zero::Allowed);
        let min_free_disk = v.size("min-free-disk");
        let hot = values::hot(v, needs_tcp);
        let saved_states = values::saved_states(v, needs_tcp);
        let ready_file = v.path("ready-file");

        let settings = || {
            Some(Self {
                server: server?,
                hostname: hostname?,
                max_runners: max_runners?,
                template: template?,
                runners_path: runners_path?,
                login: login?,
                ip_notify_port,
                display: display?,
                token,
                state_dir: state_dir?,
                hypervisor: hypervisor?,
                accelerator: accelerator?,
                network: network?,
                start_deadline: start_deadline?,
                max_lifetime: max_lifetime.filter(|d| !d.is_zero()),
                registration_deadline: registration_deadline?,
                unresponsive_guest_limit: unresponsive_limit.filter(|d| !d.is_zero()),
                min_free_disk: min_free_disk?,
                hot: hot?,
                saved_states: saved_states?,
                ready_file,
            })
        };
        let settings = settings();
        values.finish(settings)
    }
}

/// With the given key, else the template's key, else the keys of this user.
fn login(v: &mut Values, template: Option<&TemplateDir>) -> Option<Login> {
    let given = v.path("ssh-key");
    let Some(t) = template else {
        // Without a template there is no login, but a wrong --ssh-key is still reported.
        let key = given?;
        let _ = Login::new("runner", &key, "").map_err(|e| v.mistake("ssh-key", e));
        return None;
    };
    let keys = LoginKeys::file_or_user(given.or_else(|| t.ssh_key()));
    Login::new(&t.meta.ssh_user, keys, &t.meta.ssh_host_key).map_err(|e| v.mistake("ssh-key", e)).ok()
}

/// The settings of a subcommand other than `run`.
pub fn gather<T: Table>(flags: &Flags<T>) -> Values {
    Values::gather(flags, std::env::vars_os(), Mistakes::default())
}

/// The runners path for subcommands that do not create it.
pub fn runners_path(values: &mut Values) -> Option<PathBuf> {
    let path = values.path("runners-path").unwrap_or_default();
    let found = fs::canonicalize(&path);
    found.map_err(|e| values.mistake("runners-path", format_args!("cannot open {path:?} ({e})"))).ok()
}

fn hypervisor_fits(kind: HypervisorKind, os: Os) -> Result<(), String> {
    match (kind, os) {
        (HypervisorKind::Vz, _) if !vz::Vz::available() => {
            Err("this build includes neither Virtualization.framework nor its \
             stand-in (feature \"swift\"; `make setup-swift build` on Linux); use qemu with a Linux template"
                .into())
        }
        (HypervisorKind::Qemu, Os::Linux) | (HypervisorKind::Vz, _) => Ok(()),
        (HypervisorKind::Qemu, Os::Macos) => Err("qemu runs Linux guests, and the template is for macOS; \
             macOS guests need a macOS host, Linux ones a Template.json with \"os\": \"linux\""
            .into()),
    }
}

fn usable_runners_path(path: &Path) -> Result<PathBuf, String> {
    if path.to_str().is_none() {
        return Err(format!("{path:?} is not valid UTF-8; use another path"));
    }
    let path = usable_dir(path)?;
    let longest = path.join(bundle::dir_name(RunnerId::random())).join(bundle::file::GUEST_SOCKET);
    let over = longest.as_os_str().len().saturating_sub(MAX_SOCKET_PATH);
    match over {
        0 => Ok(path),
        n => Err(format!(
            "{path:?} is {n} bytes too long for the Unix sockets inside, whose paths have at most \
             {MAX_SOCKET_PATH} bytes; use a shorter path"
        )),
    }
}

/// Creates the directory if it does not exist, and checks that it is writable.
fn usable_dir(path: &Path) -> Result<PathBuf, String> {
    let fail = |what: &str, e: io::Error| format!("cannot {what} {path:?} ({e})");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| fail("create", e))?;
    let path = fs::canonicalize(path).map_err(|e| fail("open", e))?;
    let probe = path.join(format!(".probe-{}", std::process::id()));
    fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe)).map_err(|e| fail("write to", e))?;
    Ok(path)
}

/// Whether `text` has the form HOST:PORT. Names are not resolved here, but at each connection.
fn is_host_port(text: &str) -> bool {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
            !host.contains(['/', ' ', '@']) && (!host.contains(':') || (text.to_socket_addrs().is_ok()))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Run;

    #[test]
    fn every_mistake_is_reported_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let in_file = file.join("runners");
        let config = dir.path().join("agent.toml");
        fs::write(&config, "max_runers = 1\nhot-idle = \"asleep\"\n[odd]\n").unwrap();
        let given = [
            ("config", config.to_str().unwrap()),
            ("server", "nowhere"),
            ("max-runners", "0"),
            ("template-path", "/no/template"),
            ("runners-path", in_file.to_str().unwrap()),
            ("ssh-key", "/no/key"),
            ("ip-notify-port", "70000"),
            ("start-deadline", "soon"),
            ("min-free-disk", "plenty"),
            ("accelerator", "warp"),
            ("hypervisor", "xen"),
            ("log-format", "xml"),
            ("enable-graphics", "maybe"),
            ("token-file", "/no/token"),
        ];
        let flags = Flags::<Run>::of(given.iter().map(|(n, v)| (*n, (*v).as_ref())));
        let mut values = Values::gather(&flags, [], Mistakes::default());
        values.log();
        let mistakes = Settings::check(values).unwrap_err();
        for part in [
            "--server",
            "--max-runners",
            "/no/template",
            "--runners-path",
            "/no/key",
            "70000",
            "soon",
            "plenty",
            "warp",
            "xen",
            "xml",
            "maybe",
            "/no/token",
            "max_runers",
            "odd",
            "asleep",
        ] {
            assert_eq!(mistakes.0.iter().filter(|m| m.contains(part)).count(), 1, "{part}: {mistakes}");
        }
        assert_eq!(mistakes.0.len(), 16, "{mistakes}");
    }

    #[test]
    fn a_runners_path_too_long_for_its_sockets_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(60));
        let reason = usable_runners_path(&long).unwrap_err();
        assert!(reason.contains("too long") && reason.contains(long.to_str().unwrap()), "{reason}");
        assert!(usable_runners_path(&dir.path().join("r")).is_ok());
    }
}
