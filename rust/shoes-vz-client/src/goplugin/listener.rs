//! Where the host connects: a unix socket in a folder of its own, else loopback TCP.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use tokio::net::{TcpListener, UnixListener};

use super::Settings;

/// Why neither a unix socket nor a TCP port could be had.
#[derive(Debug, thiserror::Error)]
#[error("the plugin could listen nowhere: {}", .0.join("; "))]
pub struct BindError(Vec<String>);

/// A bound listener.
#[derive(Debug)]
pub(super) struct Listener {
    socket: Option<SocketFile>,
    stream: Stream,
    address: String,
}

/// What connections arrive on.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A socket and its folder; both are removed when this is dropped.
#[derive(Debug)]
pub(super) struct SocketFile {
    dir: PathBuf,
    path: PathBuf,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let gone = fs::remove_file(&self.path).or_else(|e| match e.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(e),
        });
        // The host removes PLUGIN_UNIX_SOCKET_DIR itself, possibly first.
        match gone.and_then(|()| fs::remove_dir(&self.dir)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(dir = %self.dir.display(), error = %e, "the plugin's socket could not be removed");
            }
            _ => {}
        }
    }
}

impl Listener {
    /// `unix` or `tcp`.
    pub(super) fn network(&self) -> &'static str {
        match self.stream {
            Stream::Unix(_) => "unix",
            Stream::Tcp(_) => "tcp",
        }
    }

    /// The path, or `ip:port`.
    pub(super) fn address(&self) -> String {
        self.address.clone()
    }

    /// The file to drop at the end, and the listener to serve.
    pub(super) fn split(self) -> (Option<SocketFile>, Stream) {
        (self.socket, self.stream)
    }
}

/// Binds what the host can reach.
pub(super) fn bind(settings: &Settings) -> Result<Listener, BindError> {
    let mut refusals = Vec::new();
    // A folder the host chose is the only one it may be able to see. Long TMPDIRs do not fit a socket's address.
    let bases = match &settings.socket_dir {
        Some(dir) => vec![dir.clone()],
        None => vec![settings.temp_dir.clone(), PathBuf::from("/tmp")],
    };
    for base in bases {
        match unix(&base, settings.socket_group.as_deref()) {
            Ok(listener) => return Ok(listener),
            Err(words) => refusals.push(words),
        }
    }
    match &settings.ports {
        Ok((min, max)) => match tcp(*min, *max) {
            Ok(listener) => return Ok(listener),
            Err(words) => refusals.push(words),
        },
        Err(words) => refusals.push(words.clone()),
    }
    Err(BindError(refusals))
}

fn unix(base: &Path, group: Option<&str>) -> Result<Listener, String> {
    let failed = |what: &str, e: &dyn std::fmt::Display| format!("{what} in {}: {e}", base.display());
    let dir = base.join(format!("shoes-vz-{}", uuid::Uuid::new_v4().simple()));
    let path = dir.join("plugin");
    let address = path.to_str().ok_or_else(|| failed("the socket's path is not UTF-8", &""))?.to_owned();
    if address.contains(['|', '\n', '\r']) {
        return Err(failed("the handshake line cannot hold a path with '|' or a newline", &""));
    }
    fs::DirBuilder::new().mode(0o700).create(&dir).map_err(|e| failed("making the socket's folder", &e))?;
    let socket = SocketFile { dir, path };
    let listener = UnixListener::bind(&socket.path).map_err(|e| failed("binding a unix socket", &e))?;
    if let Some(group) = group {
        open_to(group, &socket).map_err(|e| failed(&format!("opening the socket to group {group}"), &e))?;
    }
    Ok(Listener { socket: Some(socket), stream: Stream::Unix(listener), address })
}

/// Lets a group's members connect, and nobody else.
fn open_to(group: &str, socket: &SocketFile) -> io::Result<()> {
    let gid = match group.parse::<u32>() {
        Ok(gid) => gid,
        Err(_) => nix::unistd::Group::from_name(group)?
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, "there is no such group"))?
            .gid
            .as_raw(),
    };
    for (path, mode) in [(&socket.dir, 0o710), (&socket.path, 0o660)] {
        std::os::unix::fs::chown(path, None, Some(gid))?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    }
    Ok(())
}

fn tcp(min: u16, max: u16) -> Result<Listener, String> {
    let bound = (min..=max).find_map(|port| std::net::TcpListener::bind(("127.0.0.1", port)).ok());
    let listener = bound.ok_or_else(|| format!("no port of {min} to {max} on 127.0.0.1 is free"))?;
    let nonblocking = listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener));
    let listener = nonblocking.map_err(|e| format!("listening on 127.0.0.1: {e}"))?;
    let address = listener.local_addr().map_err(|e| format!("asking for the port: {e}"))?.to_string();
    Ok(Listener { socket: None, stream: Stream::Tcp(listener), address })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goplugin::Handshake;

    fn settings(vars: &[(&str, &Path)]) -> Settings {
        let shake = Handshake { cookie_key: "C", cookie_value: "c", version: 1 };
        Settings::from_env(shake, |name| match name {
            "C" => Some("c".into()),
            _ => vars.iter().find(|(k, _)| *k == name).map(|(_, v)| v.to_str().unwrap().to_owned()),
        })
        .unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn the_socket_lies_in_a_folder_only_its_owner_can_enter_and_goes_with_the_listener() {
        let temp = tempfile::tempdir().unwrap();
        let listener = bind(&settings(&[("TMPDIR", temp.path())])).unwrap();
        assert_eq!(listener.network(), "unix");
        let path = PathBuf::from(listener.address());
        assert!(path.starts_with(temp.path()));
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        drop(listener);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn the_hosts_folder_is_preferred_to_the_temporary_one() {
        let (host, temp) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let vars = [("PLUGIN_UNIX_SOCKET_DIR", host.path()), ("TMPDIR", temp.path())];
        assert!(Path::new(&bind(&settings(&vars)).unwrap().address()).starts_with(host.path()));
    }

    #[tokio::test]
    async fn a_temporary_folder_too_deep_for_a_socket_address_is_passed_over() {
        let temp = tempfile::tempdir().unwrap();
        let deep = temp.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let listener = bind(&settings(&[("TMPDIR", &deep)])).unwrap();
        assert_eq!(listener.network(), "unix");
        assert!(listener.address().starts_with("/tmp/"));
        assert_eq!(fs::read_dir(&deep).unwrap().count(), 0, "the failed try leaves its folder behind");
    }

    #[tokio::test]
    async fn without_any_folder_loopback_tcp_within_the_hosts_ports_is_used() {
        let free =
            std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let port = Path::new(&free);
        let vars = [
            ("PLUGIN_UNIX_SOCKET_DIR", Path::new("/nowhere")),
            ("PLUGIN_MIN_PORT", port),
            ("PLUGIN_MAX_PORT", port),
        ];
        let listener = bind(&settings(&vars)).unwrap();
        assert_eq!((listener.network(), listener.address()), ("tcp", format!("127.0.0.1:{free}")));
        let words = bind(&settings(&vars)).unwrap_err().to_string();
        assert!(words.contains("/nowhere") && words.contains(&free), "{words}");
    }

    #[tokio::test]
    async fn a_group_that_does_not_exist_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let vars = [
            ("PLUGIN_UNIX_SOCKET_DIR", temp.path()),
            ("PLUGIN_UNIX_SOCKET_GROUP", Path::new("no-such-group-here")),
            ("PLUGIN_MIN_PORT", Path::new("x")),
        ];
        let words = bind(&settings(&vars)).unwrap_err().to_string();
        assert!(words.contains("no-such-group-here") && words.contains("no such group"), "{words}");
    }
}
