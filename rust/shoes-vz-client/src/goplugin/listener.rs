//! Where the host connects: a Unix socket in a private directory, else loopback TCP.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use tokio::net::{TcpListener, UnixListener};

use super::handshake::Settings;

#[derive(Debug, thiserror::Error)]
#[error("the plugin cannot listen on any address: {}", .0.join("; "))]
pub struct BindError(Vec<String>);

#[derive(Debug)]
pub(super) struct Listener {
    /// To be dropped after serving.
    pub(super) socket: Option<SocketFile>,
    pub(super) stream: Stream,
    /// The path, or `ip:port`.
    pub(super) address: String,
}

#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixListener),
    Tcp(TcpListener),
}

/// A socket and its directory; both are removed on drop.
#[derive(Debug)]
pub(super) struct SocketFile {
    dir: PathBuf,
    path: PathBuf,
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let removed = fs::remove_file(&self.path).or_else(|e| match e.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(e),
        });
        // The host also removes PLUGIN_UNIX_SOCKET_DIR, possibly first.
        match removed.and_then(|()| fs::remove_dir(&self.dir)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(dir = %self.dir.display(), reason = %e, "removing the plugin's socket failed");
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
}

/// Binds what the host can reach.
pub(super) fn bind(settings: &Settings) -> Result<Listener, BindError> {
    let mut reasons = Vec::new();
    // A host may see only the directory it chose. A long TMPDIR does not fit into a socket address.
    let bases = match &settings.socket_dir {
        Some(dir) => vec![dir.clone()],
        None => vec![settings.temp_dir.clone(), PathBuf::from("/tmp")],
    };
    for base in bases {
        match unix(&base, settings.socket_group.as_deref()) {
            Ok(listener) => return Ok(listener),
            Err(reason) => reasons.push(reason),
        }
    }
    match &settings.ports {
        Ok((min, max)) => match tcp(*min, *max) {
            Ok(listener) => return Ok(listener),
            Err(reason) => reasons.push(reason),
        },
        Err(reason) => reasons.push(reason.clone()),
    }
    Err(BindError(reasons))
}

fn unix(base: &Path, group: Option<&str>) -> Result<Listener, String> {
    let failed = |what: &str, e: &dyn std::fmt::Display| format!("{what} in {} failed: {e}", base.display());
    let dir = base.join(format!("shoes-vz-{}", uuid::Uuid::new_v4().simple()));
    let path = dir.join("plugin");
    let address =
        path.to_str().ok_or_else(|| failed("creating a socket", &"the path is not UTF-8"))?.to_owned();
    if address.contains(['|', '\n', '\r']) {
        return Err(failed(
            "creating a socket",
            &"the handshake line cannot hold a path with '|' or a newline",
        ));
    }
    fs::DirBuilder::new()
        .mode(0o700)
        .create(&dir)
        .map_err(|e| failed("creating the socket directory", &e))?;
    let socket = SocketFile { dir, path };
    let listener = UnixListener::bind(&socket.path).map_err(|e| failed("binding a Unix socket", &e))?;
    if let Some(group) = group {
        open_to(group, &socket)
            .map_err(|e| failed(&format!("giving group {group} access to the socket"), &e))?;
    }
    Ok(Listener { socket: Some(socket), stream: Stream::Unix(listener), address })
}

/// Lets the members of a group connect, and no others.
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
    let listener = nonblocking.map_err(|e| format!("listening on 127.0.0.1 failed: {e}"))?;
    let address = listener
        .local_addr()
        .map_err(|e| format!("reading the port of the listener on 127.0.0.1 failed: {e}"))?
        .to_string();
    Ok(Listener { socket: None, stream: Stream::Tcp(listener), address })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::goplugin::handshake::Handshake;

    fn settings(vars: &[(&str, &Path)]) -> Settings {
        let handshake = Handshake { cookie_key: "C", cookie_value: "c", version: 1 };
        Settings::from_env(handshake, |name| match name {
            "C" => Some("c".into()),
            _ => vars.iter().find(|(k, _)| *k == name).map(|(_, v)| v.to_str().unwrap().to_owned()),
        })
        .unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[tokio::test]
    async fn the_socket_lies_in_a_directory_that_only_its_owner_can_enter_and_is_removed_with_the_listener() {
        let temp = tempfile::tempdir().unwrap();
        let listener = bind(&settings(&[("TMPDIR", temp.path())])).unwrap();
        assert_eq!(listener.network(), "unix");
        let path = PathBuf::from(&listener.address);
        assert!(path.starts_with(temp.path()));
        assert_eq!(mode(path.parent().unwrap()), 0o700);
        drop(listener);
        assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn the_hosts_directory_is_preferred_to_the_temporary_one() {
        let (host, temp) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let vars = [("PLUGIN_UNIX_SOCKET_DIR", host.path()), ("TMPDIR", temp.path())];
        assert!(Path::new(&bind(&settings(&vars)).unwrap().address).starts_with(host.path()));
    }

    #[tokio::test]
    async fn a_temporary_directory_too_deep_for_a_socket_address_is_skipped() {
        let temp = tempfile::tempdir().unwrap();
        let deep = temp.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let listener = bind(&settings(&[("TMPDIR", &deep)])).unwrap();
        assert_eq!(listener.network(), "unix");
        assert!(listener.address.starts_with("/tmp/"));
        assert_eq!(fs::read_dir(&deep).unwrap().count(), 0, "the failed attempt leaves its directory behind");
    }

    #[tokio::test]
    async fn without_any_directory_loopback_tcp_within_the_hosts_ports_is_used() {
        let free =
            std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
        let port = Path::new(&free);
        let vars = [
            ("PLUGIN_UNIX_SOCKET_DIR", Path::new("/nowhere")),
            ("PLUGIN_MIN_PORT", port),
            ("PLUGIN_MAX_PORT", port),
        ];
        let listener = bind(&settings(&vars)).unwrap();
        assert_eq!((listener.network(), listener.address.clone()), ("tcp", format!("127.0.0.1:{free}")));
        let reason = bind(&settings(&vars)).unwrap_err().to_string();
        assert!(reason.contains("/nowhere") && reason.contains(&free), "{reason}");
    }

    #[tokio::test]
    async fn a_group_that_does_not_exist_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let vars = [
            ("PLUGIN_UNIX_SOCKET_DIR", temp.path()),
            ("PLUGIN_UNIX_SOCKET_GROUP", Path::new("no-such-group-here")),
            ("PLUGIN_MIN_PORT", Path::new("x")),
        ];
        let reason = bind(&settings(&vars)).unwrap_err().to_string();
        assert!(reason.contains("no-such-group-here") && reason.contains("no such group"), "{reason}");
    }
}
