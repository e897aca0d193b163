//! `POST /notify-ip`: guests with the Go guest agent report their address here, in its JSON and with its status codes.
//!
//! The reported `runner_id` is the guest's hardware UUID, which identifies no runner, so it is ignored. A notice counts only
//! if the reported address is the source of the connection. An address is never attributed by guessing: only one VM at a
//! time may be between its start and its notice, and an address that a VM has is not assigned to another.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError, Weak,
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

/// The address to listen on. On macOS, guests connect over vmnet's interface, which exists only once a VM runs; on Linux they
/// connect through the hypervisor's process.
const INTERFACE: Ipv4Addr =
    if cfg!(target_os = "macos") { Ipv4Addr::UNSPECIFIED } else { Ipv4Addr::LOCALHOST };

/// Bytes of a notice, which is an ID and an address.
const MAX_NOTICE: usize = 4 << 10;

/// Addresses of guests. Cheap to clone.
#[derive(Clone)]
pub struct IpNotices {
    shared: Arc<Shared>,
}

struct Shared {
    claim: Arc<Semaphore>,
    state: Mutex<Assignments>,
    address: SocketAddr,
    /// Notices whose address was not that of their sender.
    refused: AtomicU64,
    _server: Mutex<Option<AbortOnDropHandle<()>>>,
}

#[derive(Default)]
struct Assignments {
    waiter: Option<oneshot::Sender<IpAddr>>,
    assigned: BTreeSet<IpAddr>,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "--ip-notify-port: cannot listen on {address}: {source}; is another agent running, or is the port in use?"
)]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

impl IpNotices {
    /// Listens on `port`; 0 picks a free one. The listener is one of `tasks`.
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
        let server = serve(listener, Arc::downgrade(&shared), tasks.clone());
        let server = tasks.spawn("the address listener (--ip-notify-port)", server);
        *shared._server.lock().unwrap_or_else(PoisonError::into_inner) = Some(AbortOnDropHandle::new(server));
        Ok(notices)
    }

    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// The right to be the only VM whose address is unknown. Take it before the VM is started.
    pub async fn claim(&self) -> IpClaim {
        IpClaim { _permit: self.shared.claim.clone().acquire_owned().await.ok(), notices: self.clone() }
    }

    /// Records that a guest has `ip`: its further notices are not given to another VM.
    pub fn assign(&self, ip: IpAddr) -> IpAddr {
        self.assignments().assigned.insert(ip);
        ip
    }

    /// The guest has ended, so another may get its address.
    pub fn release(&self, ip: IpAddr) {
        self.assignments().assigned.remove(&ip);
    }

    fn assignments(&self) -> std::sync::MutexGuard<'_, Assignments> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`IpNotices::claim`].
pub struct IpClaim {
    // Always `Some`: the semaphore is never closed.
    _permit: Option<OwnedSemaphorePermit>,
    notices: IpNotices,
}

impl IpClaim {
    /// Waits for the address that the VM reports.
    pub async fn address(self) -> IpAddr {
        loop {
            let (sender, receiver) = oneshot::channel();
            self.notices.assignments().waiter = Some(sender);
            if let Ok(ip) = receiver.await {
                return ip;
            }
        }
    }
}

async fn serve(listener: TcpListener, shared: Weak<Shared>, tasks: Tasks) {
    let app = Router::new()
        .route("/notify-ip", post(notice))
        .layer(DefaultBodyLimit::max(MAX_NOTICE))
        .with_state(shared);
    let served = axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await;
    if let Err(error) = served {
        tasks.fail(format!("the address listener (--ip-notify-port) ended: {error}"));
    }
}

async fn notice(
    ConnectInfo(source): ConnectInfo<SocketAddr>,
    State(shared): State<Weak<Shared>>,
    body: Bytes,
) -> (StatusCode, String) {
    let respond = |code, text: &str| (code, format!("{text}\n"));
    let Ok(notice) = serde_json::from_slice::<IpNotice>(&body) else {
        return respond(StatusCode::BAD_REQUEST, "invalid JSON");
    };
    if notice.runner_id.is_empty() || notice.ip_address.is_empty() {
        return respond(StatusCode::BAD_REQUEST, "runner_id and ip_address are required");
    }
    let Ok(claimed) = notice.ip_address.parse::<IpAddr>() else {
        return respond(StatusCode::BAD_REQUEST, "ip_address is not a valid IP address");
    };
    let Some(shared) = shared.upgrade() else { return respond(StatusCode::NOT_FOUND, "No pending requests") };
    if claimed.to_canonical() != source.ip().to_canonical() {
        let times = shared.refused.fetch_add(1, Ordering::Relaxed) + 1;
        match is_logged(times) {
            true => tracing::warn!(
                %source, %claimed, times,
                "address notice refused: another source sent it; more of them are counted and rarely logged"
            ),
            false => {
                tracing::debug!(%source, %claimed, times, "address notice refused: another source sent it")
            }
        }
        return respond(StatusCode::FORBIDDEN, "ip_address is not the source of this request");
    }
    let mut assignments = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
    let ok = || (StatusCode::OK, "{\"status\":\"ok\"}\n".to_owned());
    if assignments.assigned.contains(&claimed) {
        return ok();
    }
    match assignments.waiter.take().map(|waiter| waiter.send(claimed)) {
        Some(Ok(())) => {
            assignments.assigned.insert(claimed);
            tracing::info!(ip = %claimed, "guest reported its address");
            ok()
        }
        _ => respond(StatusCode::NOT_FOUND, "No pending requests"),
    }
}

/// The first, tenth, hundredth notice and so on: a sender must not be able to fill the log.
fn is_logged(times: u64) -> bool {
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

    fn notice_of(ip: &str) -> String {
        format!(r#"{{"runner_id":"564D-…","ip_address":"{ip}"}}"#)
    }

    async fn until_waiting(notices: &IpNotices) {
        while notices.assignments().waiter.is_none() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn fault_18_a_guests_address_reaches_only_the_vm_that_waits_for_it() {
        let notices = IpNotices::listen(0, &Tasks::default()).await.unwrap();
        let address = notices.address();
        assert_eq!(post(address, &notice_of("127.0.0.1")).await.0, 404, "no VM waits");
        let waiting = tokio::spawn({
            let notices = notices.clone();
            async move { notices.claim().await.address().await }
        });
        until_waiting(&notices).await;
        assert_eq!(post(address, &notice_of("192.168.64.7")).await.0, 403, "not the source");
        assert_eq!(post(address, "{").await.0, 400);
        assert_eq!(post(address, r#"{"runner_id":"","ip_address":"127.0.0.1"}"#).await.0, 400);
        let (code, body) = post(address, &notice_of("127.0.0.1")).await;
        assert_eq!((code, body.trim()), (200, r#"{"status":"ok"}"#));
        assert_eq!(waiting.await.unwrap().to_string(), "127.0.0.1");
    }

    #[tokio::test]
    async fn fault_16_a_known_guests_repeated_notice_is_not_given_to_another_vm() {
        let notices = IpNotices::listen(0, &Tasks::default()).await.unwrap();
        let ip = notices.assign(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let waiting = tokio::spawn({
            let notices = notices.clone();
            async move { notices.claim().await.address().await }
        });
        until_waiting(&notices).await;
        assert_eq!(post(notices.address(), &notice_of("127.0.0.1")).await.0, 200);
        assert!(notices.assignments().waiter.is_some(), "the other VM still waits");
        notices.release(ip);
        assert_eq!(post(notices.address(), &notice_of("127.0.0.1")).await.0, 200);
        assert_eq!(waiting.await.unwrap(), ip);
    }

    #[tokio::test]
    async fn fault_18_refused_addresses_are_counted_and_logged_more_and_more_rarely() {
        let notices = IpNotices::listen(0, &Tasks::default()).await.unwrap();
        for _ in 0..3 {
            assert_eq!(post(notices.address(), &notice_of("10.0.0.1")).await.0, 403);
        }
        assert_eq!(notices.shared.refused.load(Ordering::Relaxed), 3);
        let logged: Vec<u64> = (0..=2000).filter(|n| is_logged(*n)).collect();
        assert_eq!(logged, [1, 10, 100, 1000]);
        let long = format!(r#"{{"runner_id":"{}","ip_address":"127.0.0.1"}}"#, "x".repeat(MAX_NOTICE));
        assert_eq!(post(notices.address(), &long).await.0, 413);
    }

    #[tokio::test]
    async fn the_error_for_a_port_in_use_names_its_address() {
        let taken = IpNotices::listen(0, &Tasks::default()).await.unwrap();
        let Err(error) = IpNotices::listen(taken.address().port(), &Tasks::default()).await else {
            panic!("the port is in use")
        };
        assert!(error.to_string().contains(&taken.address().to_string()), "{error}");
    }
}
