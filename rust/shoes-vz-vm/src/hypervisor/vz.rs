//! Virtualization.framework, through the bridge to VZCore; on Linux, in builds with Swift, VZCore's stand-in.
//!
//! ```text
//! create: spec ─▶ JSON ─▶ Machine::open          every call: spawn_blocking, with its deadline on Swift's side
//! owner:  events ─▶ state, announcements         guest stopped, failed, killed ─▶ reason ─▶ close ─▶ Ended
//! ```
//! The framework's VM lives in this process and always ends with it. Dropping the last handle ends the VM.

use std::{
    io,
    os::unix::net::UnixStream as StdUnixStream,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use serde::Serialize;
use shoes_vz_bridge::{Code, Event, Failure, Machine as VzVm, State};
use shoes_vz_channel::{
    BoxedStream,
    sockets::{Dial, Sockets},
};
use shoes_vz_model::{
    bundle::file,
    guest::port,
    template::{self, Os},
};
use tokio::{
    net::UnixStream,
    sync::{Notify, mpsc, watch},
    task::spawn_blocking,
};

use super::{Channel, Hypervisor, HypervisorError, Machine, MachineState};
use crate::{
    end::{End, EndKind},
    saved,
    spec::{Display, Network, StateUse, VmSpec},
};

/// Until the framework runs the guest's first instruction; it takes about a second.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Until a short command is done.
const COMMAND_DEADLINE: Duration = Duration::from_secs(20);
/// Until a guest's memory is read from disk.
const RESTORE_DEADLINE: Duration = Duration::from_secs(120);
/// Until a guest's memory is on disk.
const SAVE_DEADLINE: Duration = Duration::from_secs(300);
/// Until the framework has ended a guest; a guest that hangs longer ends with this process.
const KILL_DEADLINE: Duration = Duration::from_secs(5);

/// macOS' hypervisor.
#[derive(Debug, Clone, Copy, Default)]
pub struct Vz;

impl Vz {
    /// Whether this build can run it.
    pub const fn available() -> bool {
        shoes_vz_bridge::available()
    }
}

#[async_trait]
impl Hypervisor for Vz {
    async fn create(&self, spec: &VmSpec, bundle: &Path) -> Result<Arc<dyn Machine>, HypervisorError> {
        let bundle = std::path::absolute(bundle)
            .map_err(HypervisorError::io(format!("resolving the bundle's path {bundle:?}")))?;
        let json = machine_spec(spec, &bundle)?;
        let title = bundle.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let window = spec.display == Display::Window;
        let (vm, events) = blocking(move || {
            let (vm, events) = VzVm::open(&json)?;
            if window {
                vm.show_window(&title, COMMAND_DEADLINE)?;
            }
            Ok((vm, events))
        })
        .await
        .map_err(|failure| refused("create the VM", failure))?;
        let vm = Arc::new(vm);

        let (state, _) = watch::channel(MachineState::Created);
        let (announced, announcements) = mpsc::unbounded_channel();
        let restore = match &spec.state {
            StateUse::Restore(dir) => Some(dir.join(saved::file::STATE)),
            StateUse::None | StateUse::Save(_) => None,
        };
        let shared = Arc::new(Shared { vm, state, asked: AtomicBool::new(false), kill: Notify::new() });
        tokio::spawn(own(shared.clone(), events, announced));
        let sockets = Sockets { dial: Arc::new(Dialer(shared.vm.clone())), announcements };
        let saved = AtomicBool::new(false);
        Ok(Arc::new(VzMachine { shared, restore, saved, channel: Mutex::new(Some(sockets)) }))
    }
}

/// VZCore's `MachineSpec`.
#[derive(Debug, Serialize)]
struct MachineSpec<'a> {
    bundle: &'a Path,
    os: &'static str,
    cpus: u32,
    memory_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac_address: Option<&'a str>,
    network: Network,
    display: Display,
    disk_sync: &'static str,
    console_log: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    linux: Option<LinuxBoot<'a>>,
    vsock_listen: [u32; 1],
    savable: bool,
}

#[derive(Debug, Serialize)]
struct LinuxBoot<'a> {
    kernel: PathBuf,
    initrd: PathBuf,
    command_line: &'a str,
    efi: bool,
}

fn machine_spec(spec: &VmSpec, bundle: &Path) -> Result<String, HypervisorError> {
    let linux = (spec.os == Os::Linux).then(|| LinuxBoot {
        kernel: spec.template.join(template::file::KERNEL),
        initrd: spec.template.join(template::file::INITRD),
        command_line: &spec.kernel_cmdline,
        efi: false,
    });
    let spec = MachineSpec {
        bundle,
        os: spec.os.as_str(),
        cpus: spec.cpus,
        memory_bytes: spec.memory_bytes,
        mac_address: spec.mac_address.as_deref(),
        network: spec.network,
        display: spec.display,
        // The disk lives as long as the VM: nothing on it must survive a crash of the host.
        disk_sync: "none",
        console_log: file::CONSOLE_LOG,
        linux,
        vsock_listen: [port::VSOCK],
        savable: spec.state != StateUse::None,
    };
    // Only a path that is not UTF-8 cannot be written.
    serde_json::to_string(&spec).map_err(|error| HypervisorError::Refused {
        what: "create the VM",
        reason: format!(
            "the settings of the bundle {bundle:?} cannot be written as JSON for VZCore ({error})"
        ),
    })
}

/// Runs a call of the bridge where it may block.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    spawn_blocking(call).await.unwrap_or_else(|panic| {
        Err(Failure { code: Code::Internal, reason: format!("a call into VZCore failed: {panic}") })
    })
}

fn refused(what: &'static str, failure: Failure) -> HypervisorError {
    match failure.code {
        Code::NotSupported => HypervisorError::Unsupported(failure.reason),
        Code::DiskFull => HypervisorError::Ended(End::new(EndKind::DiskError, failure.reason)),
        _ => HypervisorError::Refused { what, reason: failure.reason },
    }
}

/// The hypervisor's end of [`Sockets::announcements`].
type Announced = mpsc::UnboundedSender<BoxedStream>;

struct Shared {
    vm: Arc<VzVm>,
    state: watch::Sender<MachineState>,
    /// The VM's end was asked for.
    asked: AtomicBool,
    kill: Notify,
}

struct VzMachine {
    shared: Arc<Shared>,
    /// The state that its guest goes on from.
    restore: Option<PathBuf>,
    /// What the guest did after the save would not be in the state.
    saved: AtomicBool,
    channel: Mutex<Option<Sockets>>,
}

impl VzMachine {
    async fn call(
        &self,
        what: &'static str,
        call: impl FnOnce(&VzVm) -> Result<(), Failure> + Send + 'static,
    ) -> Result<(), HypervisorError> {
        let vm = self.shared.vm.clone();
        let done = blocking(move || call(&vm)).await;
        done.map_err(|failure| match &*self.shared.state.borrow() {
            // That it has ended says more than that the call came too late.
            MachineState::Ended(end) => HypervisorError::Ended(end.clone()),
            _ => refused(what, failure),
        })
    }
}

#[async_trait]
impl Machine for VzMachine {
    async fn start(&self) -> Result<(), HypervisorError> {
        let Some(state) = self.restore.clone() else {
            return self.call("start the guest", |vm| vm.start(START_DEADLINE)).await;
        };
        let (vm, path) = (self.shared.vm.clone(), state.clone());
        blocking(move || vm.restore(&path, RESTORE_DEADLINE)).await.map_err(|failure| {
            match failure.code {
                // The fault is not in the state: the host is full, or its disk.
                Code::LimitExceeded | Code::DiskFull => refused("restore the guest", failure),
                _ => {
                    let reason = format!("the saved state {state:?} cannot be restored: {failure}");
                    HypervisorError::Ended(End::new(EndKind::RestoreRefused, reason))
                }
            }
        })?;
        self.call("start the guest", |vm| vm.resume(COMMAND_DEADLINE)).await
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        self.call("pause the guest", |vm| vm.pause(COMMAND_DEADLINE)).await
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        let what = "resume the guest";
        if self.saved.load(Ordering::Acquire) {
            let reason = "its state is saved; end this VM and restore another".into();
            return Err(HypervisorError::Refused { what, reason });
        }
        self.call(what, |vm| vm.resume(COMMAND_DEADLINE)).await
    }

    async fn save(&self, path: &Path) -> Result<(), HypervisorError> {
        // Before any other refusal: the reason why this configuration's state cannot be saved at all.
        let what = "save the guest's state";
        if self.restore.is_some() {
            let reason = "this VM was not created for saving its state".into();
            return Err(HypervisorError::Refused { what, reason });
        }
        let path =
            std::path::absolute(path).map_err(HypervisorError::io(format!("resolving the path {path:?}")))?;
        self.call(what, move |vm| vm.save_support().and_then(|()| vm.save(&path, SAVE_DEADLINE))).await?;
        self.saved.store(true, Ordering::Release);
        Ok(())
    }

    async fn request_stop(&self) -> Result<(), HypervisorError> {
        self.call("press the power button", |vm| vm.request_stop(COMMAND_DEADLINE)).await
    }

    fn kill(&self) {
        self.shared.asked.store(true, Ordering::Release);
        self.shared.kill.notify_one();
    }

    fn state(&self) -> watch::Receiver<MachineState> {
        self.shared.state.subscribe()
    }

    fn take_channel(&self) -> Option<Channel> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner).take().map(Channel::Sockets)
    }

    fn accelerator(&self) -> &'static str {
        "vz"
    }

    fn pid(&self) -> u32 {
        0
    }
}

impl Drop for VzMachine {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Follows the VM until it has ended, closes it, and publishes its end.
async fn own(shared: Arc<Shared>, mut events: mpsc::UnboundedReceiver<Event>, announced: Announced) {
    let end = loop {
        tokio::select! {
            // Events first: an end that came from the guest says more than that an end was also asked for.
            biased;
            event = events.recv() => if let Some(end) = note(event, &shared, &announced) { break end },
            () = shared.kill.notified() => {
                let vm = shared.vm.clone();
                break match blocking(move || vm.stop(KILL_DEADLINE)).await {
                    Ok(()) => End::as_asked(),
                    Err(failure) => {
                        tracing::warn!(reason = %failure, "stopping the VM failed; it ends with this process");
                        End::new(EndKind::Requested, format!("{} (stopping it failed: {failure})", End::as_asked()))
                    }
                };
            }
        }
    };
    let vm = shared.vm.clone();
    if let Err(failure) = blocking(move || vm.close(KILL_DEADLINE)).await {
        tracing::warn!(reason = %failure, "closing the VM failed; what is left of it ends with this process");
    }
    tracing::info!(kind = ?end.kind, reason = %end.reason, "VM ended");
    shared.state.send_replace(MachineState::Ended(end));
}

/// Returns the VM's end when the event is that.
fn note(event: Option<Event>, shared: &Shared, announced: &Announced) -> Option<End> {
    match event {
        None => {
            return Some(End::new(EndKind::HypervisorFailed, "VZCore sends no more events of the VM"));
        }
        Some(Event::State(State::Running)) => drop(shared.state.send_replace(MachineState::Running)),
        Some(Event::State(State::Paused)) => drop(shared.state.send_replace(MachineState::Paused)),
        // On the way to the next; `Stopped` and `Error` come with their reason.
        Some(Event::State(_) | Event::Progress(_)) => {}
        Some(Event::GuestStopped) => {
            return Some(End::new(EndKind::GuestPoweroff, "the guest powered itself off"));
        }
        Some(Event::Stopped(failure)) => {
            return Some(stopped(&failure, shared.asked.load(Ordering::Acquire)));
        }
        Some(Event::NetworkDisconnected(reason)) => {
            tracing::error!(reason, "guest network disconnected; the job continues without it");
        }
        Some(Event::GuestConnected { connection, port }) => match stream(connection) {
            // Fails only when the channel is not served any more.
            Ok(stream) => drop(announced.send(stream)),
            Err(error) => {
                tracing::warn!(port, reason = %error, "accepting a connection from the guest failed")
            }
        },
        Some(Event::Unknown(event)) => {
            tracing::warn!(event, "unknown event from VZCore; ignored");
        }
    }
    None
}

/// The end of a VM that stopped by itself.
fn stopped(failure: &Failure, asked: bool) -> End {
    match failure.code {
        Code::DiskFull => End::new(
            EndKind::DiskError,
            format!("the host's disk is full: free space where the runners' bundles are ({failure})"),
        ),
        Code::DiskImage => End::new(EndKind::DiskError, failure.reason.clone()),
        _ if asked => End::as_asked(),
        _ => End::new(EndKind::HypervisorFailed, failure.reason.clone()),
    }
}

struct Dialer(Arc<VzVm>);

#[async_trait]
impl Dial for Dialer {
    async fn dial(&self, port: u32) -> io::Result<BoxedStream> {
        let vm = self.0.clone();
        let connection = blocking(move || vm.connect(port, COMMAND_DEADLINE)).await.map_err(|failure| {
            let kind = match failure.code {
                Code::ConnectFailed => io::ErrorKind::ConnectionRefused,
                Code::TimedOut => io::ErrorKind::TimedOut,
                _ => io::ErrorKind::Other,
            };
            io::Error::new(kind, failure)
        })?;
        stream(connection)
    }
}

/// A virtio socket is a stream socket like any other once it is open; tokio has no closer type for its descriptor.
fn stream(connection: std::os::fd::OwnedFd) -> io::Result<BoxedStream> {
    let stream = StdUnixStream::from(connection);
    stream.set_nonblocking(true)?;
    Ok(Box::new(UnixStream::from_std(stream)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(code: Code) -> Failure {
        Failure { code, reason: "because".into() }
    }

    #[test]
    fn how_the_vm_stopped_decides_its_end() {
        for (code, asked, kind) in [
            (Code::Internal, false, EndKind::HypervisorFailed),
            (Code::Internal, true, EndKind::Requested),
            (Code::DiskFull, true, EndKind::DiskError),
            (Code::DiskImage, false, EndKind::DiskError),
        ] {
            assert_eq!(stopped(&failure(code), asked).kind, kind, "{code:?} {asked}");
        }
        assert!(stopped(&failure(Code::Internal), false).reason.contains("because"));
    }

    #[test]
    fn a_path_that_is_not_utf8_is_refused_by_name() {
        use std::os::unix::ffi::OsStrExt as _;
        let spec: VmSpec = serde_json::from_str(
            r#"{"hypervisor":"vz","cpus":1,"memory_bytes":1,"template":"/t","os":"macos","transport":"channel"}"#,
        )
        .unwrap();
        assert!(machine_spec(&spec, Path::new("/b")).unwrap().contains(r#""bundle":"/b""#));
        let odd = Path::new(std::ffi::OsStr::from_bytes(b"/odd-\xff"));
        let error = machine_spec(&spec, odd).unwrap_err().to_string();
        assert!(error.contains("odd-") && error.contains("UTF-8"), "{error}");
    }

    #[test]
    fn a_failure_before_the_guest_runs_keeps_its_reason() {
        assert!(matches!(refused("x", failure(Code::NotSupported)), HypervisorError::Unsupported(_)));
        let HypervisorError::Ended(end) = refused("x", failure(Code::DiskFull)) else { panic!() };
        assert_eq!(end.kind, EndKind::DiskError);
        let error = refused("start the guest", failure(Code::LimitExceeded)).to_string();
        assert!(error.contains("start the guest") && error.contains("because"), "{error}");
    }
}
