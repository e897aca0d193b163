//! This guest's addresses: published when they change, and reported to the host agent if there is no guest channel.

use std::{
    future::Future,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    path::Path,
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrLike, socket};
use shoes_vz_model::guest::IpNotice;
use shoes_vz_process::backoff::Backoff;
use tokio::{
    io::unix::AsyncFd,
    net::TcpStream,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use crate::{settings::Settings, state::State};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(5);
/// Without the kernel's notices of changes.
const POLL_INTERVAL: Duration = Duration::from_secs(10);

/// Publishes the addresses; with `notify`, also reports each change to the host agent until it accepts.
pub(crate) async fn run(state: State, notify: Option<Arc<Settings>>) -> anyhow::Result<()> {
    let mut changes = Changes::open()
        .inspect_err(
            |e| warn!(reason = %e, interval = ?POLL_INTERVAL, "watching for address changes failed; polling"),
        )
        .ok();
    loop {
        let now = addresses();
        let texts = now.iter().map(IpAddr::to_string).collect();
        state.update(|status| status.ip_addresses = texts);
        let changed = async {
            // Some notices are about other changes.
            while addresses() == now {
                match &mut changes {
                    Some(changes) => changes.next().await,
                    None => sleep(POLL_INTERVAL).await,
                }
            }
        };
        match &notify {
            Some(settings) => report_until(settings, changed).await,
            None => changed.await,
        }
    }
}

/// Reports the address to the host agent until it accepts, then waits for `changed`. Returns as soon as that comes.
async fn report_until(settings: &Settings, changed: impl Future<Output = ()>) {
    tokio::pin!(changed);
    let runner_id = runner_id(settings).await;
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    let began = Instant::now();
    let mut is_logged = false;
    loop {
        // Each attempt finds the address again: the guest may have got it since.
        match timeout(ATTEMPT_TIMEOUT, report(settings.host, &runner_id)).await {
            Ok(Ok(ip)) => {
                info!(%ip, host = %settings.host, "address reported to the host agent");
                return changed.await;
            }
            Ok(Err(error)) if !is_logged && began.elapsed() > LONGEST_PAUSE => {
                is_logged = true;
                warn!(reason = %error, host = %settings.host, "reporting the address to the host agent failed; retrying");
            }
            Ok(Err(error)) => debug!(reason = %error, host = %settings.host, "reporting the address failed"),
            Err(_) => debug!(host = %settings.host, "host agent does not answer"),
        }
        tokio::select! {
            () = &mut changed => return,
            () = sleep(backoff.pause()) => {}
        }
    }
}

/// Reports the address of the connection itself: the host agent accepts no other.
async fn report(host: SocketAddr, runner_id: &str) -> io::Result<IpAddr> {
    let stream = TcpStream::connect(host).await?;
    let ip = stream.local_addr()?.ip();
    let notice = IpNotice { runner_id: runner_id.to_owned(), ip_address: ip.to_string() };
    let body = Full::new(Bytes::from(serde_json::to_vec(&notice)?));
    let request = Request::post("/notify-ip")
        .header(http::header::HOST, host.to_string())
        .header(http::header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(io::Error::other)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    tokio::spawn(connection);
    let answer = sender.send_request(request).await.map_err(io::Error::other)?;
    match answer.status() {
        StatusCode::OK => Ok(ip),
        other => Err(io::Error::other(format!("the host agent answered {other}"))),
    }
}

/// The present addresses, without loopback and link-local ones.
fn addresses() -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else { return Vec::new() };
    let mut found: Vec<IpAddr> = interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            match address.family()? {
                AddressFamily::Inet => Some(IpAddr::V4(address.as_sockaddr_in()?.ip())),
                AddressFamily::Inet6 => Some(IpAddr::V6(address.as_sockaddr_in6()?.ip())),
                _ => None,
            }
        })
        .filter(|ip| {
            let link_local = match ip {
                IpAddr::V4(ip) => ip.is_link_local(),
                IpAddr::V6(ip) => ip.is_unicast_link_local(),
            };
            !ip.is_loopback() && !link_local
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

/// The kernel's notices that addresses have changed.
struct Changes(AsyncFd<OwnedFd>);

impl Changes {
    #[cfg(target_os = "linux")]
    fn open() -> io::Result<Self> {
        use nix::sys::socket::{NetlinkAddr, SockProtocol, bind};
        use std::os::fd::AsRawFd;
        /// RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR (linux/rtnetlink.h)
        const ADDRESSES: u32 = 0x10 | 0x100;
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkRoute)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, ADDRESSES))?;
        Ok(Self(crate::fd::register(fd)?))
    }

    /// route(4)
    #[cfg(not(target_os = "linux"))]
    fn open() -> io::Result<Self> {
        use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
        let fd = socket(AddressFamily::Route, SockType::Raw, SockFlag::empty(), None)?;
        fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        Ok(Self(crate::fd::register(fd)?))
    }

    async fn next(&mut self) {
        let mut buffer = [0; 8192];
        loop {
            let Ok(mut ready) = self.0.readable().await else { return std::future::pending().await };
            // An overflow (ENOBUFS) is a notice as well.
            match ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut buffer)?)) {
                Ok(_) => return,
                Err(_would_block) => {}
            }
        }
    }
}

async fn runner_id(settings: &Settings) -> String {
    match &settings.runner_id {
        Some(id) => id.clone(),
        None if cfg!(target_os = "macos") => hardware_uuid().await,
        None => {
            let id = ["/sys/class/dmi/id/product_uuid", "/etc/machine-id"]
                .iter()
                .find_map(|file| shoes_vz_process::files::read_text(Path::new(file), 4 << 10).ok());
            id.map(|id| id.trim().to_lowercase()).unwrap_or_else(|| "unknown".into())
        }
    }
}

/// The hardware's UUID in lower case, as the Go guest agent sends it.
async fn hardware_uuid() -> String {
    let output = tokio::process::Command::new("/usr/sbin/ioreg")
        .args(["-rd1", "-c", "IOPlatformExpertDevice"])
        .stdin(Stdio::null())
        .output()
        .await;
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    uuid_of(&text).unwrap_or_else(|| "unknown".into())
}

fn uuid_of(ioreg: &str) -> Option<String> {
    let (_, after) = ioreg.split_once("\"IOPlatformUUID\" = \"")?;
    after.split_once('"').map(|(uuid, _)| uuid.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hardware_uuid_is_found_in_ioregs_output() {
        let ioreg = "    \"IOPlatformUUID\" = \"ABCD-1\"\n    \"IOPlatformSerialNumber\" = \"Z\"\n";
        assert_eq!(uuid_of(ioreg).as_deref(), Some("abcd-1"));
        assert_eq!(uuid_of(""), None);
    }

    #[tokio::test]
    async fn fault_17_the_address_is_reported_until_the_host_accepts_and_again_after_a_change() {
        use tokio::{
            io::{AsyncReadExt, AsyncWriteExt},
            net::TcpListener,
            sync::Notify,
        };
        let host = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = host.local_addr().unwrap().port().to_string();
        let args = ["x", "--host-ip", "127.0.0.1", "--agent-port", &port, "--runner-id", "me"];
        let settings = crate::settings::Settings::read(args.map(Into::into), []).unwrap();
        let change = Arc::new(Notify::new());
        let changed = change.clone();
        tokio::spawn(async move {
            loop {
                report_until(&settings, changed.notified()).await;
            }
        });
        let answer = async |status: &str| {
            let (mut stream, _) =
                timeout(Duration::from_secs(20), host.accept()).await.expect("a report").unwrap();
            let mut request = vec![0; 4096];
            let n = stream.read(&mut request).await.unwrap();
            let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..n]).into_owned()
        };
        let request = answer("404 Not Found").await;
        assert!(request.starts_with("POST /notify-ip "), "{request}");
        assert!(request.ends_with(r#"{"runner_id":"me","ip_address":"127.0.0.1"}"#), "{request}");
        answer("500 Full").await;
        answer("200 OK").await;
        assert!(
            timeout(Duration::from_millis(300), host.accept()).await.is_err(),
            "after it has accepted, no report follows"
        );
        change.notify_one();
        answer("200 OK").await;
    }

    #[test]
    fn loopback_is_not_an_address_of_the_guest() {
        assert!(addresses().iter().all(|ip| !ip.is_loopback()));
    }
}
