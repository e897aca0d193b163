//! The agent's handle to one VM process: start one or adopt one, follow it, end it.
//!
//! One task follows the process' status stream. The last value it publishes always has `end` set: what the process
//! reported, else what `VmEnd.json` says, else that the process died. For a process that we started, the end is published
//! once it has exited.

use std::{
    fs, io,
    os::unix::{fs::OpenOptionsExt as _, process::ExitStatusExt as _},
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use shoes_vz_model::bundle::{MAX_SOCKET_PATH, file};
use shoes_vz_proto::vm::{
    PauseRequest, ResumeRequest, SaveRequest, StartRequest, StopRequest, VmEnd, VmStatus, WatchRequest,
    vm_service_client::VmServiceClient,
};
use tokio::{
    io::AsyncReadExt as _,
    net::UnixStream,
    process::{Child, Command},
    sync::watch,
    time::timeout,
};
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};

use crate::{
    end::{End, EndKind, signal_name},
    output::{READY, log_tail},
};

/// Until a VM process is ready: an exec and two sockets.
const READY_DEADLINE: Duration = Duration::from_secs(20);
/// Until a live VM process answers on its socket.
const ANSWER_DEADLINE: Duration = Duration::from_secs(10);
/// Until a forced stop is done; then the VM process is killed, and the hypervisor with it.
const FORCE_DEADLINE: Duration = Duration::from_secs(5);
/// Beyond a polite stop's grace, as much again for the kill that follows it.
const STOP_MARGIN: Duration = FORCE_DEADLINE;
/// From a VM's end to the exit of its process.
const EXIT_DEADLINE: Duration = Duration::from_secs(5);

/// Why a VM process could not be started, or did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    #[error(
        "the bundle's path {path:?} is too long for a Unix socket ({bytes} bytes, at most {MAX_SOCKET_PATH}); use a shorter --runners-path"
    )]
    PathTooLong {
        /// Of the bundle.
        path: PathBuf,
        /// Of the longest socket's path.
        bytes: usize,
    },
    #[error("starting the VM process of {bundle:?} failed")]
    Spawn { bundle: PathBuf, source: io::Error },
    /// The process started and ended, or never became ready.
    #[error("the VM process of {bundle:?} did not become ready: {reason}")]
    NotReady { bundle: PathBuf, reason: String },
    /// `vm.sock` exists, and the answer is wrong or does not come.
    #[error(
        "the VM process behind {socket:?} does not answer: {reason}; it hangs (its log is vm.log beside the socket), and \
         its VM ends with it"
    )]
    NoAnswer { socket: PathBuf, reason: String },
    #[error("the VM process refused to {what}: {reason}")]
    Refused { what: &'static str, reason: String },
}

/// How to stop a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    Force,
    /// The guest is asked first; after this time the VM is ended.
    Grace(Duration),
}

/// One VM process. Cheap to clone; dropping it does nothing to the VM.
#[derive(Clone)]
pub struct Vm {
    service: VmServiceClient<Channel>,
    status: watch::Receiver<VmStatus>,
    bundle: BundleLocation,
}

/// Of the VM's bundle, which may be renamed while the VM runs. Clones share it.
#[derive(Debug, Clone)]
struct BundleLocation(Arc<Mutex<PathBuf>>);

impl BundleLocation {
    fn of(bundle: &Path) -> Self {
        Self(Arc::new(Mutex::new(bundle.to_owned())))
    }

    fn path(&self) -> PathBuf {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).join(name)
    }
}

impl std::fmt::Debug for Vm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vm").field("bundle", &self.bundle.path()).finish_non_exhaustive()
    }
}

impl Vm {
    /// Starts the VM process of `bundle` (made by `clone::make_bundle`) as `agent_exe vm --bundle …`, in a separate
    /// session; returns once it serves `vm.sock`. The VM is not started yet.
    pub async fn spawn(agent_exe: &Path, bundle: &Path) -> Result<Self, VmError> {
        check_length(bundle)?;
        let spawn_error = |source| VmError::Spawn { bundle: bundle.to_owned(), source };
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(bundle.join(file::VM_LOG))
            .map_err(spawn_error)?;
        let mut child = Command::new(agent_exe)
            .args(["vm", "--bundle"])
            .arg(bundle)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .map_err(spawn_error)?;
        if let Err(reason) = ready(&mut child).await {
            // It cannot be used, whatever it does; a VM that it may have started dies with it.
            drop(child.start_kill());
            let exit = child.wait().await;
            let reason = match (reason.as_str(), exit) {
                ("", Ok(status)) => format!("it exited without a message ({status}); {}", log_tail(bundle)),
                _ => reason,
            };
            return Err(VmError::NotReady { bundle: bundle.to_owned(), reason });
        }
        Self::connect(bundle, Some(child)).await
    }

    /// The VM process that an earlier agent started; `None` when no process serves `vm.sock`.
    pub async fn adopt(bundle: &Path) -> Result<Option<Self>, VmError> {
        check_length(bundle)?;
        let socket = bundle.join(file::VM_SOCKET);
        match UnixStream::connect(&socket).await {
            Ok(_) => match Self::connect(bundle, None).await {
                // It ended between the two connects.
                Err(VmError::NoAnswer { .. }) if UnixStream::connect(&socket).await.is_err() => Ok(None),
                vm => vm.map(Some),
            },
            Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(e) => Err(VmError::NoAnswer { socket, reason: e.to_string() }),
        }
    }

    async fn connect(bundle: &Path, child: Option<Child>) -> Result<Self, VmError> {
        let socket = bundle.join(file::VM_SOCKET);
        let no_answer = |reason: String| VmError::NoAnswer { socket: socket.clone(), reason };
        let bundle = BundleLocation::of(bundle);
        let mut service = service(bundle.clone()).map_err(|e| no_answer(e.to_string()))?;
        let first = async {
            let mut stream = service.watch(WatchRequest {}).await?.into_inner();
            Ok::<_, tonic::Status>((stream.message().await?, stream))
        };
        let (first, stream) = match timeout(ANSWER_DEADLINE, first).await {
            Err(_) => return Err(no_answer(format!("no answer within {} s", ANSWER_DEADLINE.as_secs()))),
            Ok(Err(status)) => return Err(no_answer(status.message().to_owned())),
            Ok(Ok((None, _))) => return Err(no_answer("its status stream ended at once".into())),
            Ok(Ok((Some(first), stream))) => (first, stream),
        };
        let (sender, status) = watch::channel(VmStatus { end: None, ..first.clone() });
        let follower = Follower { bundle: bundle.clone(), service: service.clone(), sender, child };
        tokio::spawn(follower.run(first, stream));
        Ok(Self { service, status, bundle })
    }

    /// The present status and each later one. The last has `end` set.
    pub fn status(&self) -> watch::Receiver<VmStatus> {
        self.status.clone()
    }

    /// Starts the VM; returns when the guest runs and [`Vm::status`] shows it.
    pub async fn start(&self) -> Result<(), VmError> {
        self.ask("start the VM", self.service.clone().start(StartRequest {})).await?;
        // The status comes over another stream than the answer, possibly after it.
        let mut status = self.status.clone();
        let shown = status.wait_for(|s| s.started_ms > 0 || s.end.is_some()).await;
        match shown.ok().filter(|s| s.started_ms == 0).and_then(|s| s.end.clone()) {
            Some(end) => Err(VmError::Refused { what: "start the VM", reason: end.reason }),
            // It ran, even if it has ended by now.
            None => Ok(()),
        }
    }

    /// Ends the VM; returns when it, and a process that we started, has ended. A VM that has ended already is fine.
    /// A VM process that hangs is killed, and the hypervisor with it.
    pub async fn stop(&self, how: Stop) -> Result<(), VmError> {
        if self.status.borrow().end.is_some() {
            // No process is left to ask: a VM whose state was saved is ended before its bundle is removed.
            return Ok(());
        }
        let (force, grace) = match how {
            Stop::Force => (true, Duration::ZERO),
            Stop::Grace(grace) => (false, grace),
        };
        // Rounded up: a grace of half a second is more than none.
        let grace_seconds = grace.as_secs() + u64::from(grace.subsec_nanos() > 0);
        let request = StopRequest { force, grace_seconds: u32::try_from(grace_seconds).unwrap_or(u32::MAX) };
        let deadline = if force { FORCE_DEADLINE } else { Duration::from_secs(grace_seconds) + STOP_MARGIN };
        let mut service = self.service.clone();
        let asked = timeout(deadline, service.stop(request)).await;
        if asked.is_err() {
            self.kill_process();
        }
        if timeout(deadline, self.ended()).await.is_ok() {
            // The end says more than the answer, which may not have come.
            return Ok(());
        }
        if let Ok(Err(status)) = asked {
            let reason = status.message();
            tracing::warn!(reason, "VM process did not stop its VM, and did not exit");
        }
        self.kill_process();
        timeout(EXIT_DEADLINE, self.ended()).await.map(drop).map_err(|_| VmError::NoAnswer {
            socket: self.bundle.file(file::VM_SOCKET),
            reason: "it survived SIGKILL".into(),
        })
    }

    pub async fn pause(&self) -> Result<(), VmError> {
        self.ask("pause the VM", self.service.clone().pause(PauseRequest {})).await
    }

    pub async fn resume(&self) -> Result<(), VmError> {
        self.ask("resume the VM", self.service.clone().resume(ResumeRequest {})).await
    }

    /// Writes the paused VM's state to `path`; a relative one is in the bundle.
    pub async fn save(&self, path: &Path) -> Result<(), VmError> {
        let path = path.to_string_lossy().into_owned();
        self.ask("save the VM", self.service.clone().save(SaveRequest { path })).await
    }

    /// Its bundle was renamed.
    pub fn moved(&self, bundle: &Path) {
        *self.bundle.0.lock().unwrap_or_else(PoisonError::into_inner) = bundle.to_owned();
    }

    pub async fn ended(&self) -> VmEnd {
        let mut status = self.status.clone();
        // The follower never ends without an end; if it panics, its sender is dropped.
        let last = status.wait_for(|s| s.end.is_some()).await;
        last.ok().and_then(|s| s.end.clone()).unwrap_or_else(|| {
            End::new(EndKind::HypervisorFailed, "the task that follows the VM process died").to_wire()
        })
    }

    /// For [`shoes_vz_channel::socket::dial`].
    pub fn guest_socket(&self) -> PathBuf {
        self.bundle.file(file::GUEST_SOCKET)
    }

    async fn ask<T>(
        &self,
        what: &'static str,
        answer: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    ) -> Result<(), VmError> {
        answer.await.map(drop).map_err(|status| {
            let end = self.status.borrow().end.clone();
            let reason = end.map_or_else(|| status.message().to_owned(), |end| end.reason);
            VmError::Refused { what, reason }
        })
    }

    /// Only while its stream is open: then no other process can have its number.
    fn kill_process(&self) {
        let status = self.status.borrow();
        let Some(pid) = i32::try_from(status.pid).ok().filter(|pid| *pid > 1 && status.end.is_none()) else {
            return;
        };
        tracing::warn!(pid, "VM process does not answer; killing it");
        if let Err(error) = kill(Pid::from_raw(pid), Signal::SIGKILL) {
            tracing::warn!(pid, reason = %error, "killing the VM process failed");
        }
    }
}

fn check_length(bundle: &Path) -> Result<(), VmError> {
    let bytes = bundle.join(file::GUEST_SOCKET).as_os_str().len();
    if bytes > MAX_SOCKET_PATH {
        return Err(VmError::PathTooLong { path: bundle.to_owned(), bytes });
    }
    Ok(())
}

/// Waits for [`READY`] on its stdout; the error is what it printed instead, or "" when it died without a message.
async fn ready(child: &mut Child) -> Result<(), String> {
    let Some(stdout) = child.stdout.take() else { return Err("it has no stdout".into()) };
    let mut printed = Vec::new();
    // Bounded, and to the end: the process closes its stdout once it is ready, or dies.
    match timeout(READY_DEADLINE, stdout.take(16 << 10).read_to_end(&mut printed)).await {
        Err(_) => return Err(format!("it was not ready within {} s", READY_DEADLINE.as_secs())),
        Ok(Err(e)) => return Err(e.to_string()),
        Ok(Ok(_)) => {}
    }
    let printed = String::from_utf8_lossy(&printed);
    if printed.trim_end() == READY { Ok(()) } else { Err(printed.trim_end().to_owned()) }
}

fn service(bundle: BundleLocation) -> Result<VmServiceClient<Channel>, tonic::transport::Error> {
    let connector = tower::service_fn(move |_: http::Uri| {
        let socket = bundle.file(file::VM_SOCKET);
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The address is only for the `Host` header.
    let channel = Endpoint::from_shared("http://vm.sock")?.connect_with_connector_lazy(connector);
    Ok(VmServiceClient::new(channel))
}

/// Publishes the process' statuses, and its end.
struct Follower {
    bundle: BundleLocation,
    service: VmServiceClient<Channel>,
    sender: watch::Sender<VmStatus>,
    child: Option<Child>,
}

impl Follower {
    async fn run(mut self, first: VmStatus, stream: Streaming<VmStatus>) {
        let reported = if first.end.is_some() { Some(first) } else { self.follow(stream).await };
        let exit = self.exit().await;
        let mut last = reported.unwrap_or_else(|| self.sender.borrow().clone());
        let end = last.end.take().unwrap_or_else(|| died(&self.bundle.path(), exit).to_wire());
        self.sender.send_replace(VmStatus {
            state: End::from_wire(&end).state().into(),
            end: Some(end),
            guest_up: false,
            ..last
        });
    }

    /// Follows the process until it reports its VM's end, or dies (`None`).
    async fn follow(&mut self, mut stream: Streaming<VmStatus>) -> Option<VmStatus> {
        loop {
            match stream.message().await {
                Ok(Some(status)) if status.end.is_some() => return Some(status),
                Ok(Some(status)) => {
                    self.sender.send_replace(status);
                }
                // A stream breaks when the process has died, unless the process still listens.
                Ok(None) | Err(_) => match self.service.watch(WatchRequest {}).await {
                    Ok(again) => stream = again.into_inner(),
                    Err(_) => return None,
                },
            }
        }
    }

    /// Waits for the exit of a process that we started.
    async fn exit(&mut self) -> Option<ExitStatus> {
        let child = self.child.as_mut()?;
        match timeout(EXIT_DEADLINE, child.wait()).await {
            Ok(Ok(status)) => Some(status),
            Ok(Err(error)) => {
                tracing::warn!(reason = %error, "reading the VM process' exit status failed");
                None
            }
            Err(_) => {
                let pid = child.id();
                tracing::warn!(pid, "VM process has not exited after its VM's end; killing it");
                drop(child.start_kill());
                child.wait().await.ok()
            }
        }
    }
}

/// The end of a VM whose process died without reporting one.
fn died(bundle: &Path, exit: Option<ExitStatus>) -> End {
    match End::read(bundle) {
        Ok(Some(end)) => return end,
        Ok(None) => {}
        Err(error) => tracing::warn!(?bundle, reason = %error, "reading VmEnd.json failed"),
    }
    let how = exit.map_or_else(String::new, |status| match status.signal() {
        Some(signal) => format!(" of signal {signal} ({})", signal_name(signal)),
        None => format!(" ({status})"),
    });
    let reason = format!("the VM process died{how}, and its VM with it; {}", log_tail(bundle));
    End::new(EndKind::HypervisorFailed, reason)
}
