//! The handshake: what the host sets in the environment, and the line it gets back.

use std::path::PathBuf;

/// go-plugin's core protocol: the first field of the line.
const CORE_PROTOCOL: u32 = 1;

/// What the plugin and its host must agree on.
#[derive(Debug, Clone, Copy)]
pub struct Handshake {
    /// Environment variable by which a plugin knows that a plugin host started it.
    pub cookie_key: &'static str,
    pub cookie_value: &'static str,
    /// Version of the plugin's protocol.
    pub version: u32,
}

/// What the host asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub(super) version: u32,
    /// The versions that the host listed, when ours is not among them.
    pub(super) foreign_versions: Option<String>,
    /// PLUGIN_UNIX_SOCKET_DIR.
    pub(super) socket_dir: Option<PathBuf>,
    /// Group that may connect: PLUGIN_UNIX_SOCKET_GROUP.
    pub(super) socket_group: Option<String>,
    /// Where temporary files go: TMPDIR, else /tmp.
    pub(super) temp_dir: PathBuf,
    /// PLUGIN_MIN_PORT and PLUGIN_MAX_PORT, or why they are not valid.
    pub(super) ports: Result<(u16, u16), String>,
    pub(super) auto_mtls: bool,
    multiplex_requested: bool,
}

impl Settings {
    /// `None` when the cookie says that no plugin host started this process.
    pub fn from_env(handshake: Handshake, env: impl Fn(&str) -> Option<String>) -> Option<Self> {
        if env(handshake.cookie_key).as_deref() != Some(handshake.cookie_value) {
            return None;
        }
        let set = |name: &str| env(name).filter(|value| !value.is_empty());
        let ours = handshake.version;
        Some(Self {
            version: ours,
            foreign_versions: set("PLUGIN_PROTOCOL_VERSIONS").filter(|hosts| !lists(hosts, ours)),
            socket_dir: set("PLUGIN_UNIX_SOCKET_DIR").map(PathBuf::from),
            socket_group: set("PLUGIN_UNIX_SOCKET_GROUP"),
            temp_dir: set("TMPDIR").map_or_else(|| PathBuf::from("/tmp"), PathBuf::from),
            ports: ports(set("PLUGIN_MIN_PORT").as_deref(), set("PLUGIN_MAX_PORT").as_deref()),
            auto_mtls: set("PLUGIN_CLIENT_CERT").is_some(),
            multiplex_requested: set("PLUGIN_MULTIPLEX_GRPC").is_some(),
        })
    }

    /// The handshake line, without its newline. The sixth field is the plugin's certificate: none. A seventh, only for
    /// hosts that ask, says that brokered connections are not multiplexed over one (older hosts would misread it).
    pub fn line(&self, network: &str, address: &str) -> String {
        let seventh = if self.multiplex_requested { "|false" } else { "" };
        format!("{CORE_PROTOCOL}|{}|{network}|{address}|grpc|{seventh}", self.version)
    }
}

/// The plugin offers its only version whatever the host lists, as plugins built with go-plugin do: a host that does not
/// support it reports that more clearly than a plugin that never answers.
fn lists(hosts: &str, ours: u32) -> bool {
    hosts.split(',').any(|version| version.trim().parse() == Ok(ours))
}

fn ports(min: Option<&str>, max: Option<&str>) -> Result<(u16, u16), String> {
    let parse = |name: &str, text: Option<&str>| match text {
        None => Ok(0),
        Some(text) => text.parse::<u16>().map_err(|_| format!("{name}={text} is not a port number")),
    };
    let (min, max) = (parse("PLUGIN_MIN_PORT", min)?, parse("PLUGIN_MAX_PORT", max)?);
    if min > max {
        return Err(format!("PLUGIN_MIN_PORT={min} is greater than PLUGIN_MAX_PORT={max}"));
    }
    Ok((min, max))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDSHAKE: Handshake = Handshake { cookie_key: "COOKIE", cookie_value: "yes?", version: 1 };

    fn settings(vars: &[(&str, &str)]) -> Option<Settings> {
        Settings::from_env(HANDSHAKE, |name| {
            vars.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn without_the_right_cookie_the_program_is_not_a_plugin() {
        assert_eq!(settings(&[]), None);
        assert_eq!(settings(&[("COOKIE", "no")]), None);
        assert_eq!(settings(&[("COOKIE", "")]), None);
        assert!(settings(&[("COOKIE", "yes?")]).is_some());
    }

    #[test]
    fn the_line_has_six_fields_and_a_seventh_only_for_hosts_that_ask() {
        let plain = settings(&[("COOKIE", "yes?"), ("PLUGIN_PROTOCOL_VERSIONS", "1")]).unwrap();
        assert_eq!(plain.line("unix", "/tmp/x"), "1|1|unix|/tmp/x|grpc|");
        let asked = settings(&[("COOKIE", "yes?"), ("PLUGIN_MULTIPLEX_GRPC", "true")]).unwrap();
        assert_eq!(asked.line("tcp", "127.0.0.1:9"), "1|1|tcp|127.0.0.1:9|grpc||false");
    }

    #[test]
    fn a_host_that_lists_other_versions_is_offered_the_only_version() {
        for (list, foreign) in [("1", false), ("3,2,1", false), ("7", true), ("x", true)] {
            let s = settings(&[("COOKIE", "yes?"), ("PLUGIN_PROTOCOL_VERSIONS", list)]).unwrap();
            assert_eq!((s.version, s.foreign_versions.is_some()), (1, foreign), "{list}");
        }
    }

    #[test]
    fn ports_are_any_unless_the_host_bounds_them() {
        assert_eq!(ports(None, None), Ok((0, 0)));
        assert_eq!(ports(Some("10000"), Some("25000")), Ok((10_000, 25_000)));
        assert!(ports(Some("2"), Some("1")).unwrap_err().contains("greater"));
        assert!(ports(Some("many"), None).unwrap_err().contains("PLUGIN_MIN_PORT=many"));
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        let s = settings(&[("COOKIE", "yes?"), ("TMPDIR", ""), ("PLUGIN_CLIENT_CERT", "")]).unwrap();
        assert_eq!(s.temp_dir, PathBuf::from("/tmp"));
        assert!(!s.auto_mtls);
    }
}
