//! `POST /notify-ip`: how guests with the Go guest agent tell their address, with its JSON and status codes.
//!
//! The claimed `runner_id` says nothing (it is the guest's hardware UUID), so it is not looked at. A notice counts only
//! when the claimed address is the connection's own source. Whose it is, is never guessed: only one VM at a time may
//! be between its start and its address, and an address that is somebody's already is not given to another.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::{
    Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, State},
    http::StatusCode,
    routing::post,
};
use shoes_vz_model::guest::IpNotice;
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
};
use tokio_util::task::AbortOnDropHandle;

use crate::tasks::Tasks;

/// Where the listener binds: on macOS guests come in over vmnet's interface, which is there only once a VM is; on Linux
/// guests come in through the hypervisor's own process.
const INTERFACE: Ipv4Addr =
    if cfg!(target_os = "macos") { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };

/// Of a notice, which is an id and an address.
const MAX_NOTICE: usize = 4 << 10;

/// Addresses of guests, as they come.
#[derive(Clone)]
pub struct IpNotices {
    shared: Arc<Shared>,
}

struct Shared {
    claim: Arc<Semaphore>,
    state: Mutex<Desk>,
    address: SocketAddr,
    /// Notices of addresses that were not their senders'.
    refused: AtomicU64,
    _server: Mutex<Option<AbortOnDropHandle<()>>>,
}

#[derive(Default)]
struct Desk {
    waiting: Option<oneshot::Sender<IpAddr>>,
    given: BTreeSet<IpAddr>,
}

/// The port could not be had.
#[derive(Debug, thiserror::Error)]
#[error("--ip-notify-port: listening on {address}: {source}; is another agent running, or the port taken?")]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

impl IpNotices {
    /// Listens on `port`; 0 is any. The listener is one of `tasks`.
    pub async fn listen(port: u16, tasks: &Tasks) -> Result<Self, ListenError> {
        let address = SocketAddr::new(INTERFACE.into(), port);
        let fail = |source| ListenError { address, source };
        let listener = TcpListener::bind(address).await.map_err(fail)?;
        let address = listener.local_addr().map_err(fail)?;
        let shared = Arc::new(Shared {
            claim: Arc::new(Semaphore::new(1)),
            state: Mutex::default(),
            address,
            refused: AtomicU64::new(0),
            _server: Mutex::default(),
        });
        let notices = Self { shared: shared.clone() };
        let serving = serve(listener, Arc::downgrade(&shared), tasks.clone());
        let server = tasks.spawn("the address listener (--ip-notify-port)", serving);
        *shared._server.lock().unwrap_or_else(PoisonError::into_inner) = Some(AbortOnDropHandle::new(server));
        Ok(notices)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// The right to be the only VM whose address is not known. To be had before the VM is started.
    pub async fn claim(&self) -> IpClaim {
        IpClaim { _permit: self.shared.claim.clone().acquire_owned().await.ok(), notices: self.clone() }
    }

    /// A guest known from before: its notices are its own.
    pub fn known(&self, ip: IpAddr) -> IpAddr {
        self.desk().given.insert(ip);
        ip
    }

    /// The guest is gone; its address may come again.
    pub fn forget(&self, ip: IpAddr) {
        self.desk().given.remove(&ip);
    }

    fn desk(&self) -> std::sync::MutexGuard<'_, Desk> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`IpNotices::claim`].
pub struct IpClaim {
    // Always there: the semaphore is never closed.
    _permit: Option<OwnedSemaphorePermit>,
    notices: IpNotices,
}

impl IpClaim {
    /// The address the VM tells.
    pub async fn address(self) -> IpAddr {
        loop {
            let (sender, receiver) = oneshot::channel();
            self.notices.desk().waiting = Some(sender);
            if let Ok(ip) = receiver.await {
                return ip;
            }
        }
    }
}

type Desks = std::sync::Weak<Shared>;

async fn serve(listener: TcpListener, shared: Desks, tasks: Tasks) {
    let app = Router::new()
        .route("/notify-ip", post(notice))
        .layer(DefaultBodyLimit::max(MAX_NOTICE))
        .with_state(shared);
    let served = axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await;
    if let Err(error) = served {
        // Guests with the Go guest agent cannot be found any more.
        tasks.fail(format!("the address listener (--ip-notify-port) ended: {error}"));
    }
}

async fn notice(
    ConnectInfo(source): ConnectInfo<SocketAddr>,
    State(shared): State<Desks>,
    body: Bytes,
) -> (StatusCode, String) {
    let said = |code, words: &str| (code, format!("{words}\n"));
    let Ok(notice) = serde_json::from_slice::<IpNotice>(&body) else {
        return said(StatusCode::BAD_REQUEST, "invalid JSON");
    };
    if notice.runner_id.is_empty() || notice.ip_address.is_empty() {
        return said(StatusCode::BAD_REQUEST, "runner_id and ip_address are required");
    }
    let Ok(claimed) = notice.ip_address.parse::<IpAddr>() else {
        return said(StatusCode::BAD_REQUEST, "ip_address is no IP address");
    };
    let Some(shared) = shared.upgrade() else { return said(StatusCode::NOT_FOUND, "No pending requests") };
    if claimed.to_canonical() != source.ip().to_canonical() {
        let times = shared.refused.fetch_add(1, Ordering::Relaxed) + 1;
        match is_said(times) {
            true => tracing::warn!(
                %source, %claimed, times,
                "an address that is not its sender's own is refused; more such notices are counted, not logged each"
            ),
            false => {
                tracing::debug!(%source, %claimed, times, "an address that is not its sender's own is refused")
            }
        }
        return said(StatusCode::FORBIDDEN, "ip_address is not where this request comes from");
    }
    let mut desk = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
    let ok = || (StatusCode::OK, "{\"status\":\"ok\"}\n".to_owned());
    if desk.given.contains(&claimed) {
        return ok();
    }
    match desk.waiting.take().map(|waiting| waiting.send(claimed)) {
        Some(Ok(())) => {
            desk.given.insert(claimed);
            tracing::info!(ip = %claimed, "a guest told its address");
            ok()
        }
        _ => said(StatusCode::NOT_FOUND, "No pending requests"),
    }
}

/// The first time, the tenth, the hundredth and so on: whoever sends them must not be able to fill the log.
fn is_said(times: u64) -> bool {
    times > 0 && times == 10u64.pow(times.ilog10())
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    async fn post(address: SocketAddr, body: &str) -> (u16, String) {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!(
            "POST /notify-ip HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let code = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (code, answer.rsplit("\r\n\r\n").next().unwrap().to_owned())
    }

    fn told(ip: &str) -> String {
        format!(r#"{{"runner_id":"564D-…","ip_address":"{ip}"}}"#)
    }

    /// Waits until somebody waits for an address.
    async fn somebody_waits(notices: &IpNotices) {
        while notices.desk().waiting.is_none() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn fault_18_a_guests_own_address_reaches_whoever_waits_and_nobody_else() {
        let notices = IpNotices::listen(0, &Tasks::default()).await.unwrap();
        let address = notices.address();
        assert_eq!(post(address, &told("127.0.0.1")).await.0, 404, "nobody waits");
        let waiting = tokio::spawn({
            let notices = notices.clone();
            async move { notices.claim().await.address().await }
        });
        somebody_waits(&notices).await;
        assert_eq!(post(address, &told("192.168.64.7")).await.0, 403, "not the source");
        assert_eq!(post(address, "{").await.0, 400);
        assert_eq!(post(address, r#"{"runner_id":"","ip_address":"127.0.0.1"}"#).await.0, 400);
        let (code, body) = post(address, &told("127.0.0.1")).await;
        assert_eq!((code, body.trim()), (200, r#"{"status":"ok"}"#));
        assert_eq!(waiting.await.unwrap().to_string(), "127.0.0.1");
    }

    #[tokio::test]
    async fn fault_16_a_known_guests_repeated_notice_is_not_given_to_another_vm() {
        let notices = IpNotices::listen(0, &Tasks::default()).await.unwrap();
        let ip = notices.known(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let waiting = tokio::spawn({
            let notices = notices.clone();
            async move { notices.claim().await.address().await }
        });
        somebody_waits(&notices).await;
        assert_eq!(post(notices.address(), &told("127.0.0.1")).await.0, 200);
        assert!(notices.desk().waiting.is_some(), "whoever waits still waits");
        notices.forget(ip);
        assert_eq!(post(notices.address(), &told("127.0.0.1")).await.0, 200);
        assert_eq!(waiting.await.unwrap(), ip);
    }

    #[tokio::test]
    async fn fault_18_refused_addresses_are_counted_and_logged_ever_more_rarely() {
        let notices = IpNotices::listen(0, &Tasks::default()).await.unwrap();
        for _ in 0..3 {
            assert_eq!(post(notices.address(), &told("10.0.0.1")).await.0, 403);
        }
        assert_eq!(notices.shared.refused.load(Ordering::Relaxed), 3);
        let said: Vec<u64> = (0..=2000).filter(|n| is_said(*n)).collect();
        assert_eq!(said, [1, 10, 100, 1000]);
        let long = format!(r#"{{"runner_id":"{}","ip_address":"127.0.0.1"}}"#, "x".repeat(MAX_NOTICE));
        assert_eq!(post(notices.address(), &long).await.0, 413);
    }

    #[tokio::test]
    async fn a_taken_port_is_named() {
        let taken = IpNotices::listen(0, &Tasks::default()).await.unwrap();
        let Err(error) = IpNotices::listen(taken.address().port(), &Tasks::default()).await else {
            panic!("the port is taken")
        };
        assert!(error.to_string().contains(&taken.address().to_string()), "{error}");
    }
}
