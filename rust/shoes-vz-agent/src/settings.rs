//! What `run` was told, read whole: command line and environment before the TOML file before the defaults, and every
//! mistake reported at once.

mod values;

use std::{
    fmt, fs, io,
    net::ToSocketAddrs as _,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use shoes_vz_model::{
    bundle::{self, MAX_SOCKET_PATH},
    id::RunnerId,
    template::{Os, Transport},
};
use shoes_vz_vm::{
    hypervisor::vz,
    spec::{Accelerator, Display, HypervisorKind, Network},
    template::TemplateDir,
};

pub use values::{LogFormat, Raw, log_format};

use crate::{
    cli::PlaceArgs,
    disk,
    hot::HotPlan,
    ssh::{Login, LoginKeys},
};

/// Where VMs are when nothing else is said; the Go implementation's.
pub const DEFAULT_RUNNERS_PATH: &str = "/opt/myshoes/vz/runners";

/// Everything `run` needs, checked.
#[derive(Debug)]
pub struct Settings {
    /// The server, as a URI.
    pub server: String,
    /// This host's name.
    pub hostname: String,
    /// Slots.
    pub max_runners: u32,
    /// What VMs are cloned from.
    pub template: TemplateDir,
    /// Where they are; canonical.
    pub runners_path: PathBuf,
    /// How to log into them.
    pub login: Login,
    /// Port of the address listener; `None`: not needed.
    pub ip_notify_port: Option<u16>,
    /// Window or none.
    pub display: Display,
    /// For the server.
    pub token: Option<Token>,
    /// Identity and ends.
    pub state_dir: PathBuf,
    /// What runs VMs.
    pub hypervisor: HypervisorKind,
    /// What QEMU uses.
    pub accelerator: Accelerator,
    /// How macOS guests reach the world.
    pub network: Network,
    /// From a runner's begin to SSH.
    pub start_deadline: Duration,
    /// From a runner's begin to its VM's end; `None`: for ever.
    pub max_lifetime: Option<Duration>,
    /// From the setup script's end to the Actions runner's first sign.
    pub registration_deadline: Duration,
    /// How long a guest may answer nothing once it has the setup script; `None`: for ever.
    pub silent_guest_limit: Option<Duration>,
    /// Bytes the runners path's file system must have free for a VM to be taken; 0: not looked at.
    pub min_free_disk: u64,
    /// What is kept hot, and what is done about saved states.
    pub hot: HotPlan,
    /// Written after registration.
    pub ready_file: Option<PathBuf>,
}

/// A bearer token; never printed.
#[derive(Clone)]
pub struct Token(Arc<str>);

impl Token {
    /// The token itself.
    pub fn secret(&self) -> &str {
        &self.0
    }

    fn read(path: &Path) -> Result<Self, String> {
        let told = |e: &dyn fmt::Display| format!("--token-file: {path:?} cannot be read ({e})");
        let text = fs::read_to_string(path).map_err(|e| told(&e))?;
        let token = text.trim();
        if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(format!("--token-file: {path:?} must hold one line of printable ASCII"));
        }
        Ok(Self(token.into()))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// All that is wrong with the settings.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [one] => f.write_str(one),
            many => {
                write!(f, "{} settings are wrong:", many.len())?;
                many.iter().try_for_each(|m| write!(f, "\n  - {m}"))
            }
        }
    }
}

impl std::error::Error for Mistakes {}

impl Mistakes {
    fn take<T>(&mut self, result: Result<T, String>) -> Option<T> {
        result.map_err(|e| self.0.push(e)).ok()
    }

    fn take_all<T>(&mut self, result: Result<T, Vec<String>>) -> Option<T> {
        result.map_err(|all| self.0.extend(all)).ok()
    }
}

impl Settings {
    /// Checks everything `raw` says, on this host.
    pub fn check(raw: &Raw) -> Result<Self, Mistakes> {
        let mut wrong = Mistakes(raw.mistakes.clone());
        let template_path = raw.path("template-path").unwrap_or("/opt/myshoes/vz/templates/macos-26".into());
        let template =
            wrong.take(TemplateDir::open(&template_path).map_err(|e| format!("--template-path: {e}")));
        let hypervisor = wrong.take(values::hypervisor(raw)).flatten();
        if let (Some(template), Some(kind)) = (&template, hypervisor) {
            wrong.take(hypervisor_fits(kind, template.meta.os));
        }
        let macos = template.as_ref().is_some_and(|t| t.meta.os == Os::Macos);
        let max_runners = wrong.take(values::max_runners(raw, macos));
        let runners_path =
            wrong.take(usable_runners_path(&raw.path("runners-path").unwrap_or(DEFAULT_RUNNERS_PATH.into())));
        let state_dir = match raw.path("state-dir") {
            Some(dir) => wrong.take(usable_dir("--state-dir", &dir)),
            None => runners_path.clone(),
        };
        let key = raw.path("ssh-key").or_else(|| template.as_ref().and_then(TemplateDir::ssh_key));
        let keys = LoginKeys::file_or_users(key);
        let login = template.as_ref().and_then(|t| {
            wrong.take(Login::new(&t.meta.ssh_user, keys, &t.meta.ssh_host_key).map_err(|e| e.to_string()))
        });
        if login.is_none() && template.is_none() {
            // With no template nobody can log in, but a wrong --ssh-key is a mistake of its own.
            if let Some(key) = raw.path("ssh-key") {
                wrong.take(Login::new("runner", &key, "").map_err(|e| e.to_string()));
            }
        }
        let needs_tcp = template.as_ref().is_some_and(|t| t.meta.guest_agent == Transport::Tcp);
        let port = wrong.take(values::port(raw, "ip-notify-port"));
        let ip_notify_port = port.and_then(|given| given.or(needs_tcp.then_some(8081)));
        let token = raw.path("token-file").and_then(|path| wrong.take(Token::read(&path)));
        let server = wrong.take(values::server(raw));
        let hostname = wrong.take(values::hostname(raw));
        let display = wrong.take(values::display(raw));
        let accelerator = wrong.take(values::accelerator(raw));
        let network = wrong.take(values::network(raw, hypervisor));
        let start_deadline = wrong.take(values::duration(raw, "start-deadline", 300, values::Zero::Refused));
        let max_lifetime =
            wrong.take(values::duration(raw, "max-lifetime", 24 * 3600, values::Zero::MeansNone));
        let registration =
            wrong.take(values::duration(raw, "registration-deadline", 600, values::Zero::Refused));
        let silence = wrong.take(values::duration(raw, "silent-guest-limit", 600, values::Zero::MeansNone));
        let min_free_disk = wrong.take(values::size(raw, "min-free-disk", disk::DEFAULT_MIN_FREE));
        let hot = wrong.take_all(values::hot(raw, needs_tcp));
        wrong.take(values::log_format(raw));

        let whole = || {
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
                hypervisor: hypervisor.unwrap_or(HypervisorKind::of_this_host()),
                accelerator: accelerator?,
                network: network?,
                start_deadline: start_deadline?,
                max_lifetime: max_lifetime.filter(|d| !d.is_zero()),
                registration_deadline: registration?,
                silent_guest_limit: silence.filter(|d| !d.is_zero()),
                min_free_disk: min_free_disk?,
                hot: hot?,
                ready_file: raw.path("ready-file"),
            })
        };
        match whole() {
            Some(settings) if wrong.0.is_empty() => Ok(settings),
            _ => Err(wrong),
        }
    }
}

/// The runners path of the other subcommands, which need nothing else: it must be there.
pub fn runners_path(place: &PlaceArgs) -> Result<PathBuf, Mistakes> {
    let raw = Raw::of_place(place);
    if !raw.mistakes.is_empty() {
        return Err(Mistakes(raw.mistakes));
    }
    let path = raw.path("runners-path").unwrap_or(DEFAULT_RUNNERS_PATH.into());
    fs::canonicalize(&path)
        .map_err(|e| Mistakes(vec![format!("--runners-path: {path:?} cannot be opened ({e})")]))
}

fn hypervisor_fits(kind: HypervisorKind, os: Os) -> Result<(), String> {
    match (kind, os) {
        (HypervisorKind::Vz, _) if !vz::Vz::available() => {
            Err("--hypervisor: this build has no Virtualization.framework, nor its \
             stand-in (feature \"swift\"; `make setup-swift build` on Linux); use qemu with a Linux template"
                .into())
        }
        (HypervisorKind::Qemu, Os::Linux) | (HypervisorKind::Vz, _) => Ok(()),
        (HypervisorKind::Qemu, Os::Macos) => {
            Err("--hypervisor: qemu runs Linux guests, and the template is for macOS; \
             macOS guests need a macOS host, Linux ones a Template.json with \"os\": \"linux\""
                .into())
        }
    }
}

fn usable_runners_path(path: &Path) -> Result<PathBuf, String> {
    let path = usable_dir("--runners-path", path)?;
    if path.to_str().is_none() {
        return Err(format!(
            "--runners-path: {path:?} is not UTF-8, as the settings of VMs must be; use another path"
        ));
    }
    let longest = path.join(bundle::dir_name(RunnerId::random())).join(bundle::file::GUEST_SOCKET);
    let over = longest.as_os_str().len().saturating_sub(MAX_SOCKET_PATH);
    match over {
        0 => Ok(path),
        n => Err(format!(
            "--runners-path: {path:?} is {n} bytes too long for the sockets inside ({MAX_SOCKET_PATH} bytes are all a \
             Unix socket's path may have); use a shorter one"
        )),
    }
}

/// Makes the directory if need be, and writes into it to see whether that works.
fn usable_dir(flag: &str, path: &Path) -> Result<PathBuf, String> {
    let fail = |what: &str, e: io::Error| format!("{flag}: {path:?} {what} ({e})");
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|e| fail("cannot be made", e))?;
    let path = fs::canonicalize(path).map_err(|e| fail("cannot be opened", e))?;
    let probe = path.join(format!(".probe-{}", std::process::id()));
    fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe)).map_err(|e| fail("is not writable", e))?;
    Ok(path)
}

/// Whether `text` is HOST:PORT that could be resolved in principle; DNS itself is asked at each connection.
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

    pub(crate) fn raw(pairs: &[(&'static str, &str)]) -> Raw {
        let mut raw = Raw::default();
        for (name, value) in pairs {
            raw.set(name, value);
        }
        raw
    }

    #[test]
    fn every_mistake_is_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let in_file = file.join("runners");
        let mut raw = raw(&[
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
        ]);
        raw.file("max_runers = 1\n[odd]\n", Path::new("agent.toml"));
        let wrong = Settings::check(&raw).unwrap_err();
        for word in [
            "server",
            "max-runners",
            "/no/template",
            "runners-path",
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
        ] {
            assert_eq!(wrong.0.iter().filter(|m| m.contains(word)).count(), 1, "{word}: {wrong}");
        }
        assert_eq!(wrong.0.len(), 15, "{wrong}");
    }

    #[test]
    fn a_runners_path_too_long_for_its_sockets_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(60));
        let wrong = usable_runners_path(&long).unwrap_err();
        assert!(wrong.contains("too long") && wrong.contains("--runners-path"), "{wrong}");
        assert!(usable_runners_path(&dir.path().join("r")).is_ok());
    }

    #[test]
    fn a_token_is_read_from_its_file_and_never_printed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        fs::write(&path, "s3cret\n").unwrap();
        let token = Token::read(&path).unwrap();
        assert_eq!(token.secret(), "s3cret");
        assert!(!format!("{token:?}").contains("s3cret"));
        fs::write(&path, "two words\n").unwrap();
        assert!(!Token::read(&path).unwrap_err().contains("two words"));
    }
}
