//! A VM process inside the test's process: `vm.sock`, `guest.sock`, and the guest behind them, controlled by the test.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{Path as UrlPath, Query, Request, State},
    middleware::{self, Next},
    response::Response,
    routing::{get, put},
};
use futures::{Stream, StreamExt as _};
use russh::{
    Channel, ChannelId,
    keys::{PrivateKey, PublicKey, ssh_key::private::Ed25519Keypair},
    server::{self, Auth, ChannelOpenHandle, Msg, Session, VerifiedPublicKey},
};
use shoes_vz_agent::vms::Launcher;
use shoes_vz_channel::socket;
use shoes_vz_model::{
    bundle::file,
    guest::{RunnerActivity, SetupPhase, Status, port},
};
use shoes_vz_proto::vm::{
    PauseRequest, PauseResponse, ResumeRequest, ResumeResponse, SaveRequest, SaveResponse, StartRequest,
    StartResponse, StopRequest, StopResponse, VmEnd, VmEndKind, VmState, VmStatus, WatchRequest,
    vm_service_server::{VmService, VmServiceServer},
};
use shoes_vz_vm::client::{Vm, VmError};
use tokio::{
    io::DuplexStream,
    net::UnixListener,
    sync::{Semaphore, watch},
};
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};

use crate::host::TIMEOUT;

pub(crate) fn key(seed: u8) -> PrivateKey {
    PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]))
}

pub(crate) const LOGIN_KEY: u8 = 1;
pub(crate) const HOST_KEY: u8 = 2;

/// Every VM of one test, by bundle.
#[derive(Clone)]
pub(crate) struct FakeVms {
    vms: Arc<Mutex<BTreeMap<PathBuf, FakeVm>>>,
    /// A launch needs a permit, so that a test can delay it.
    pub(crate) launches: Arc<Semaphore>,
    /// Whether guests boot when they are started.
    pub(crate) boots: Arc<watch::Sender<bool>>,
    pub(crate) host_key: u8,
}

impl FakeVms {
    pub(crate) fn new() -> Self {
        Self {
            vms: Arc::default(),
            launches: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)),
            boots: Arc::new(watch::Sender::new(true)),
            host_key: HOST_KEY,
        }
    }

    /// Including those that have ended.
    pub(crate) fn all(&self) -> Vec<FakeVm> {
        self.vms.lock().unwrap().values().cloned().collect()
    }

    pub(crate) fn only(&self) -> FakeVm {
        let all = self.all();
        assert_eq!(all.len(), 1, "{} VMs", all.len());
        all[0].clone()
    }
}

#[async_trait]
impl Launcher for FakeVms {
    async fn launch(&self, bundle: &Path) -> Result<Vm, VmError> {
        self.launches.acquire().await.expect("never closed").forget();
        let vm = FakeVm::start(bundle, *self.boots.borrow(), self.host_key);
        self.vms.lock().unwrap().insert(bundle.to_owned(), vm);
        Vm::adopt(bundle).await.map(|vm| vm.expect("it was just started"))
    }
}

/// One VM. Cheap to clone.
#[derive(Clone)]
pub(crate) struct FakeVm {
    inner: Arc<Inner>,
}

struct Inner {
    bundle: PathBuf,
    boots: bool,
    host_key: u8,
    status: watch::Sender<VmStatus>,
    guest: watch::Sender<Status>,
    log: watch::Sender<Vec<u8>>,
    scripts: Mutex<Vec<(String, Bytes)>>,
    /// While unresponsive, the guest accepts every request and answers none.
    unresponsive: watch::Sender<bool>,
    /// While stuck, the VM accepts a stop and does not end.
    stuck: watch::Sender<bool>,
    /// How often the agent queried the guest's status.
    status_queries: watch::Sender<usize>,
    /// A change stalls the event streams that are open then.
    stalls: watch::Sender<usize>,
    /// Not the test's: all of its tasks end at once, like a process.
    process: Mutex<Option<tokio::runtime::Runtime>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(process) = self.process.get_mut().unwrap().take() {
            process.shutdown_background();
        }
    }
}

impl FakeVm {
    fn start(bundle: &Path, boots: bool, host_key: u8) -> Self {
        let created = VmStatus { state: VmState::Created.into(), pid: 0, ..VmStatus::default() };
        let inner = Arc::new(Inner {
            bundle: bundle.to_owned(),
            boots,
            host_key,
            status: watch::Sender::new(created),
            guest: watch::Sender::new(Status::default()),
            log: watch::Sender::default(),
            scripts: Mutex::default(),
            unresponsive: watch::Sender::new(false),
            stuck: watch::Sender::new(false),
            status_queries: watch::Sender::new(0),
            stalls: watch::Sender::new(0),
            process: Mutex::default(),
        });
        let vm = Self { inner };
        let process =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let guard = process.enter();
        let vm_sock = UnixListener::bind(bundle.join(file::VM_SOCKET)).unwrap();
        let guest_sock = UnixListener::bind(bundle.join(file::GUEST_SOCKET)).unwrap();
        let service = tonic::transport::Server::builder()
            .add_service(VmServiceServer::new(vm.clone()))
            .serve_with_incoming(UnixListenerStream::new(vm_sock));
        process.spawn(async move { service.await.unwrap() });
        process.spawn(socket::serve(guest_sock, vm.clone()));
        drop(guard);
        *vm.inner.process.lock().unwrap() = Some(process);
        vm
    }

    fn stream(&self, to: u16) -> DuplexStream {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        match to {
            port::API => {
                let app = hyper_util::service::TowerToHyperService::new(self.api());
                tokio::spawn(async move {
                    let io = hyper_util::rt::TokioIo::new(theirs);
                    drop(hyper::server::conn::http1::Builder::new().serve_connection(io, app).await);
                });
            }
            port::SSH => {
                let config =
                    server::Config { keys: vec![key(self.inner.host_key)], ..server::Config::default() };
                tokio::spawn(async move {
                    if let Ok(session) = server::run_stream(Arc::new(config), theirs, Sshd).await {
                        drop(session.await);
                    }
                });
            }
            _ => drop(theirs),
        }
        ours
    }

    fn api(&self) -> Router {
        Router::new()
            .route("/status", get(status))
            .route("/events", get(events))
            .route("/setup/{id}", put(put_setup))
            .route("/setup/log", get(setup_log))
            .layer(middleware::from_fn_with_state(self.clone(), unless_unresponsive))
            .with_state(self.clone())
    }

    /// Whether its guest agent hangs.
    pub(crate) fn set_unresponsive(&self, unresponsive: bool) {
        self.inner.unresponsive.send_replace(unresponsive);
    }

    /// Whether its stop hangs.
    pub(crate) fn set_stuck(&self, stuck: bool) {
        self.inner.stuck.send_replace(stuck);
    }

    /// Event streams that are open now deliver nothing more, and do not end.
    pub(crate) fn stall_events(&self) {
        self.inner.stalls.send_modify(|n| *n += 1);
    }

    /// Waits until the agent has queried the guest's status `times` more times.
    pub(crate) async fn until_queried(&self, times: usize) {
        let mut queries = self.inner.status_queries.subscribe();
        let all = *queries.borrow() + times;
        tokio::time::timeout(TIMEOUT, queries.wait_for(|n| *n >= all))
            .await
            .expect("the status is queried in time")
            .unwrap();
    }

    /// Whether the operator has paused it.
    pub(crate) fn set_paused(&self, paused: bool) {
        let state = if paused { VmState::Paused } else { VmState::Running };
        self.inner.status.send_modify(|s| s.state = state.into());
    }

    /// Sets what the Actions runner does.
    pub(crate) fn runner(&self, state: RunnerActivity) {
        self.inner.guest.send_modify(|s| s.state = state);
    }

    /// The setup script prints this.
    pub(crate) fn print(&self, text: &str) {
        self.inner.log.send_modify(|log| log.extend_from_slice(text.as_bytes()));
    }

    /// The setup script exits.
    pub(crate) fn script_exits(&self, code: i32) {
        let log_bytes = self.inner.log.borrow().len() as u64;
        self.inner.guest.send_modify(|s| {
            (s.setup.phase, s.setup.exit_code, s.setup.log_bytes) =
                (SetupPhase::Exited, Some(code), log_bytes);
        });
        // Wakes the followers of the log, which ends now.
        self.inner.log.send_modify(|_| {});
    }

    /// Every script handed over, with its id.
    pub(crate) fn scripts(&self) -> Vec<(String, Bytes)> {
        self.inner.scripts.lock().unwrap().clone()
    }

    /// Waits until a script was handed over.
    pub(crate) async fn until_set_up(&self) {
        let mut guest = self.inner.guest.subscribe();
        let set_up = guest.wait_for(|s| s.setup.phase != SetupPhase::None);
        tokio::time::timeout(TIMEOUT, set_up).await.expect("a script is handed over in time").unwrap();
    }

    /// It counts as restored from a saved state.
    pub(crate) fn restored(&self) {
        self.inner.status.send_modify(|s| s.restored = true);
    }

    /// Boots a guest that was held back.
    pub(crate) fn boot(&self) {
        self.inner.status.send_modify(|s| s.guest_up = true);
    }

    /// The guest agent closes the guest channel.
    pub(crate) fn close_channel(&self) {
        self.inner.status.send_modify(|s| s.guest_up = false);
    }

    /// The VM and its process end.
    pub(crate) fn end(&self, kind: VmEndKind, reason: &str) {
        self.inner.status.send_modify(|s| {
            s.state = VmState::Stopped.into();
            s.end.get_or_insert(VmEnd { kind: kind.into(), reason: reason.into() });
        });
        for name in [file::VM_SOCKET, file::GUEST_SOCKET] {
            drop(std::fs::remove_file(self.inner.bundle.join(name)));
        }
    }

    /// It ends without a report, as after a power failure of the host.
    pub(crate) fn vanish(&self) {
        self.inner.process.lock().unwrap().take().unwrap().shutdown_background();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.inner.status.borrow().end.is_some()
    }
}

impl socket::Open for FakeVm {
    type Stream = DuplexStream;
    type Error = String;

    async fn open(&self, port: u16) -> Result<DuplexStream, String> {
        Ok(self.stream(port))
    }
}

type Statuses = std::pin::Pin<Box<dyn Stream<Item = Result<VmStatus, tonic::Status>> + Send>>;

#[tonic::async_trait]
impl VmService for FakeVm {
    type WatchStream = Statuses;

    async fn watch(
        &self,
        _: tonic::Request<WatchRequest>,
    ) -> Result<tonic::Response<Statuses>, tonic::Status> {
        let mut ended = false;
        let statuses = WatchStream::new(self.inner.status.subscribe()).take_while(move |s| {
            let has_more = !ended;
            ended = s.end.is_some();
            std::future::ready(has_more)
        });
        Ok(tonic::Response::new(Box::pin(statuses.map(Ok))))
    }

    async fn start(
        &self,
        _: tonic::Request<StartRequest>,
    ) -> Result<tonic::Response<StartResponse>, tonic::Status> {
        self.inner.status.send_modify(|s| {
            s.state = VmState::Running.into();
            s.started_ms = 1;
            s.guest_up = self.inner.boots;
        });
        Ok(tonic::Response::new(StartResponse {}))
    }

    async fn stop(
        &self,
        _: tonic::Request<StopRequest>,
    ) -> Result<tonic::Response<StopResponse>, tonic::Status> {
        self.inner.stuck.subscribe().wait_for(|stuck| !stuck).await.expect("not dropped");
        self.end(VmEndKind::Requested, "stopped as asked");
        Ok(tonic::Response::new(StopResponse {}))
    }

    async fn pause(
        &self,
        _: tonic::Request<PauseRequest>,
    ) -> Result<tonic::Response<PauseResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not in this test"))
    }

    async fn resume(
        &self,
        _: tonic::Request<ResumeRequest>,
    ) -> Result<tonic::Response<ResumeResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not in this test"))
    }

    async fn save(
        &self,
        _: tonic::Request<SaveRequest>,
    ) -> Result<tonic::Response<SaveResponse>, tonic::Status> {
        Err(tonic::Status::unimplemented("not in this test"))
    }
}

async fn events(State(vm): State<FakeVm>) -> Body {
    let mut stalls = vm.inner.stalls.subscribe();
    stalls.borrow_and_update();
    let stalled = async move { drop(stalls.changed().await) };
    let lines = WatchStream::new(vm.inner.guest.subscribe())
        .take_until(stalled)
        .chain(futures::stream::pending())
        .map(|s| Ok::<_, std::io::Error>(format!("{}\n", serde_json::to_string(&s).unwrap())));
    Body::from_stream(lines)
}

async fn status(State(vm): State<FakeVm>) -> axum::Json<Status> {
    axum::Json(vm.inner.guest.borrow().clone())
}

async fn unless_unresponsive(State(vm): State<FakeVm>, request: Request, next: Next) -> Response {
    if request.uri().path() == "/status" {
        vm.inner.status_queries.send_modify(|n| *n += 1);
    }
    // The fake VM outlives its guest's connections.
    vm.inner.unresponsive.subscribe().wait_for(|unresponsive| !unresponsive).await.expect("not dropped");
    next.run(request).await
}

async fn put_setup(State(vm): State<FakeVm>, UrlPath(id): UrlPath<String>, script: Bytes) -> String {
    vm.inner.scripts.lock().unwrap().push((id.clone(), script));
    vm.inner.guest.send_modify(|s| {
        if s.setup.phase == SetupPhase::None {
            (s.setup.id, s.setup.phase) = (id, SetupPhase::Running);
        }
    });
    serde_json::to_string(&vm.inner.guest.borrow().setup).unwrap()
}

async fn setup_log(State(vm): State<FakeVm>, Query(query): Query<BTreeMap<String, usize>>) -> Body {
    let offset = query["offset"];
    let chunks = futures::stream::unfold((vm, offset), |(vm, offset)| async move {
        let mut log = vm.inner.log.subscribe();
        let guest = vm.inner.guest.subscribe();
        let more = |log: &Vec<u8>| log.len() > offset || guest.borrow().setup.phase == SetupPhase::Exited;
        let chunk = Bytes::copy_from_slice(&log.wait_for(more).await.ok()?[offset..]);
        let next = offset + chunk.len();
        (!chunk.is_empty()).then_some((Ok::<_, std::io::Error>(chunk), (vm, next)))
    });
    Body::from_stream(chunks)
}

/// Accepts one key, and exits with 0 whatever is run.
struct Sshd;

impl server::Handler for Sshd {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        user: &str,
        shown: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        let known = PublicKey::from(&key(LOGIN_KEY));
        let ok = user == "runner" && shown.public_key.key_data() == known.key_data();
        Ok(if ok { Auth::Accept } else { Auth::reject() })
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn exec_request(
        &mut self,
        id: ChannelId,
        _: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.channel_success(id)?;
        session.exit_status_request(id, 0)?;
        session.eof(id)?;
        session.close(id)
    }
}
