//! QEMU on Linux, driven over QMP.
//!
//! ```text
//! create: listen on qmp.sock, serial.sock ─▶ QEMU (paused, child of one of our threads) ─▶ it connects to both ─▶ QMP greeting
//! owner:  QMP events ─▶ state          process exited ─▶ last events ─▶ reason (reason.rs) ─▶ Ended
//! ```
//! One owner task has the process and its events; dropping the last handle kills the process.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::OpenOptionsExt as _},
    path::{Path, PathBuf},
    process::{ChildStderr, Command, Stdio},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ::qapi::qmp as api;
use async_trait::async_trait;
use futures::StreamExt as _;
use shoes_vz_model::{bundle, text};
use shoes_vz_process::{backoff::Backoff, chain::Chain};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::{UnixStream, unix::pipe},
    sync::watch,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use self::{
    child::{Child, Killer},
    qmp::{Callback, Events, Qmp, QmpAction},
    reason::Observations,
};
use super::{Channel, Hypervisor, HypervisorError, Machine, MachineState};
use crate::{
    accel,
    arch::Arch,
    end::{End, EndKind},
    saved,
    spec::{Accelerator, StateUse, VmSpec},
};

mod child;
pub mod command;
mod qmp;
mod reason;

/// Until QEMU has built the machine and connected to us; a swapping host may need seconds.
const CREATE_DEADLINE: Duration = Duration::from_secs(30);
/// Until QMP answers; a stopped QEMU never does.
const COMMAND_DEADLINE: Duration = Duration::from_secs(10);
/// Until a guest's devices are on disk; its memory is on disk already.
const SAVE_DEADLINE: Duration = Duration::from_secs(60);
/// Until its devices are read again.
const LOAD_DEADLINE: Duration = Duration::from_secs(30);
/// Until the sockets and pipes of a QEMU that has exited are read to their end; they are closed already.
const DRAIN_DEADLINE: Duration = Duration::from_secs(1);
/// How much of QEMU's stderr is kept for the reason.
const STDERR_LINES: usize = 20;
const STDERR_BYTES: usize = 4096;

/// Runs VMs by `qemu-system-*`.
#[derive(Debug, Clone)]
pub struct Qemu {
    /// A program with the agent's subcommand `exec-with-parent`.
    launcher: PathBuf,
    arch: Arch,
}

impl Qemu {
    /// QEMU for this host's architecture, from PATH, started through `launcher`.
    pub fn new(launcher: impl Into<PathBuf>) -> Result<Self, HypervisorError> {
        let unsupported = || format!("QEMU guests are not supported on {}", std::env::consts::ARCH);
        let arch = Arch::of_this_host().ok_or_else(|| HypervisorError::Unsupported(unsupported()))?;
        Ok(Self { launcher: launcher.into(), arch })
    }

    fn command(&self, spec: &VmSpec, accelerator: Accelerator, bundle: &Path) -> Command {
        let args = command::arguments(self.arch, accelerator, spec);
        let mut command = Command::new(&self.launcher);
        command
            .args(command::with_parent(std::process::id(), self.arch.program(), args))
            .current_dir(bundle)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        command
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    async fn create(&self, spec: &VmSpec, bundle: &Path) -> Result<Arc<dyn Machine>, HypervisorError> {
        if let StateUse::Restore(dir) = &spec.state {
            // QEMU would create a missing file, and extend a short one.
            saved::check_memory(dir, command::memory_mib(spec) << 20)
                .map_err(|reason| HypervisorError::Ended(End::new(EndKind::RestoreRefused, reason)))?;
        }
        let accelerator = match spec.accelerator {
            Accelerator::Auto => accel::detect(bundle).await,
            known => known,
        };
        let console = bundle.join(bundle::file::CONSOLE_LOG);
        let created = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&console);
        created.map_err(HypervisorError::io(format!("creating the console's log {console:?}")))?;
        let (qmp, channel) =
            (Callback::bind(bundle, command::QMP_SOCKET)?, Callback::bind(bundle, command::CHANNEL_SOCKET)?);
        let what = format!("starting {} through {:?}", self.arch.program(), self.launcher);
        let started = Child::spawn(self.command(spec, accelerator, bundle)).await;
        let (mut child, stderr) = started.map_err(HypervisorError::io(what))?;
        let mut stderr = Stderr::follow(stderr);
        let (qmp, events, channel) = come_up(&mut child, &mut stderr, qmp, channel, &spec.state).await?;
        tracing::info!(pid = child.pid(), accelerator = %accelerator, "QEMU started");
        let (state_sender, state) = watch::channel(MachineState::Created);
        let (migration_sender, migration) = watch::channel(None);
        let machine = QemuMachine {
            qmp,
            state,
            migration,
            state_use: spec.state.clone(),
            saved: AtomicBool::new(false),
            channel: Mutex::new(Some(channel)),
            accelerator,
            pid: child.pid(),
            killer: child.killer(),
            kill_asked: Arc::default(),
        };
        let owner = Owner {
            child,
            stderr,
            events,
            seen: Observations { up: true, ..Observations::default() },
            state: state_sender,
            migration: migration_sender,
            kill_asked: machine.kill_asked.clone(),
        };
        tokio::spawn(owner.run());
        Ok(Arc::new(machine))
    }
}

/// Waits until QEMU has built the machine and connected to both sockets.
async fn come_up(
    child: &mut Child,
    stderr: &mut Stderr,
    qmp: Callback,
    channel: Callback,
    state_use: &StateUse,
) -> Result<(Qmp, Events, UnixStream), HypervisorError> {
    let connected = async {
        let (qmp, channel) = tokio::try_join!(qmp.accept(), channel.accept())?;
        let greeted = Qmp::open(qmp).await;
        let (qmp, events) = greeted.map_err(HypervisorError::io("QEMU's QMP greeting".into()))?;
        Ok::<_, HypervisorError>((qmp, events, channel))
    };
    let timed_out = |_| HypervisorError::TimedOut { what: "start QEMU", seconds: CREATE_DEADLINE.as_secs() };
    let exit = tokio::select! {
        // First: a QEMU that has exited explains every other failure.
        biased;
        exit = child.exited() => exit,
        done = timeout(CREATE_DEADLINE, connected) => match done.map_err(timed_out)? {
            Ok(all) => return Ok(all),
            Err(error) => {
                // Most likely it has just exited; its stderr says more.
                tracing::debug!(reason = %Chain(&error), "QEMU did not start");
                timeout(DRAIN_DEADLINE, child.exited()).await.map_err(timed_out)?
            }
        },
    };
    let end = end_of(&Observations::default(), exit, &stderr.rest().await);
    Err(HypervisorError::Ended(match state_use {
        // The fault is in the state, or else a boot fails in the same way.
        StateUse::Restore(_) => End::new(EndKind::RestoreRefused, end.reason),
        StateUse::None | StateUse::Save(_) => end,
    }))
}

fn end_of(seen: &Observations, exit: io::Result<std::process::ExitStatus>, stderr: &str) -> End {
    match exit {
        Ok(status) => reason::classify(seen, status, stderr),
        Err(e) => End::new(
            EndKind::HypervisorFailed,
            format!("QEMU exited, and reading its exit status failed ({e})"),
        ),
    }
}

struct QemuMachine {
    qmp: Qmp,
    state: watch::Receiver<MachineState>,
    /// Of a save or a restore.
    migration: watch::Receiver<Option<api::MigrationStatus>>,
    state_use: StateUse,
    /// Its memory file must not change any more.
    saved: AtomicBool,
    channel: Mutex<Option<UnixStream>>,
    accelerator: Accelerator,
    pid: u32,
    killer: Killer,
    kill_asked: Arc<AtomicBool>,
}

impl QemuMachine {
    async fn reach(&self, wanted: MachineState, what: &'static str) -> Result<(), HypervisorError> {
        let mut state = self.state.clone();
        let reached = state.wait_for(|s| *s == wanted || matches!(s, MachineState::Ended(_)));
        match timeout(COMMAND_DEADLINE, reached).await {
            Err(_) => Err(HypervisorError::TimedOut { what, seconds: COMMAND_DEADLINE.as_secs() }),
            Ok(Ok(now)) => match &*now {
                MachineState::Ended(end) => Err(HypervisorError::Ended(end.clone())),
                _ => Ok(()),
            },
            Ok(Err(_)) => Err(HypervisorError::Ended(owner_died())),
        }
    }

    /// Puts the machine, paused, into the state saved in `path`.
    async fn load(&self, path: &Path) -> Result<(), HypervisorError> {
        let what = "read the saved state";
        self.without_memory(what).await?;
        let uri = Some(format!("file:{}", path.display()));
        let incoming = api::migrate_incoming { channels: None, exit_on_error: None, uri };
        let reason = || format!("{path:?} is damaged, or was saved from another VM");
        let begun = self.qmp.run(what, incoming, COMMAND_DEADLINE);
        let migrated = self.migrate(what, begun, LOAD_DEADLINE, reason).await;
        if !matches!(migrated, Err(HypervisorError::Refused { .. })) {
            return migrated;
        }
        // A QEMU that cannot read a state writes the reason to its stderr, and exits.
        let mut state = self.state.clone();
        let ended = timeout(DRAIN_DEADLINE, state.wait_for(|s| matches!(s, MachineState::Ended(_)))).await;
        match ended.as_ref().map(|ended| ended.as_deref()) {
            Ok(Ok(MachineState::Ended(end))) => Err(HypervisorError::Ended(end.clone())),
            _ => migrated,
        }
    }

    /// From now on a save or restore is of the devices only: the memory is a file already.
    async fn without_memory(&self, what: &'static str) -> Result<(), HypervisorError> {
        // Without `events` no event reports a migration's progress.
        let capabilities = [api::MigrationCapability::events, api::MigrationCapability::x_ignore_shared]
            .map(|capability| api::MigrationCapabilityStatus { capability, state: true })
            .to_vec();
        let set = api::migrate_set_capabilities { capabilities };
        self.run(self.qmp.run(what, set, COMMAND_DEADLINE)).await.map(drop)
    }

    /// Runs a save or restore, which the command `begun` begins, to its end.
    async fn migrate<T>(
        &self,
        what: &'static str,
        begun: impl Future<Output = Result<T, HypervisorError>>,
        deadline: Duration,
        reason: impl Fn() -> String,
    ) -> Result<(), HypervisorError> {
        let mut migration = self.migration.clone();
        migration.mark_unchanged();
        self.run(begun).await?;
        let migrated = async {
            let mut state = self.state.clone();
            loop {
                tokio::select! {
                    changed = migration.changed() => if changed.is_err() {
                        return Err(HypervisorError::Ended(owner_died()));
                    },
                    // A QEMU that cannot read a state may exit at once.
                    ended = state.wait_for(|s| matches!(s, MachineState::Ended(_))) => {
                        return Err(match ended.as_deref() {
                            Ok(MachineState::Ended(end)) => HypervisorError::Ended(end.clone()),
                            _ => HypervisorError::Ended(owner_died()),
                        });
                    }
                }
                match *migration.borrow_and_update() {
                    Some(api::MigrationStatus::completed) => return Ok(()),
                    Some(api::MigrationStatus::failed | api::MigrationStatus::cancelled) => {
                        return Err(HypervisorError::Refused { what, reason: reason() });
                    }
                    _ => {}
                }
            }
        };
        let timed_out = |_| HypervisorError::TimedOut { what, seconds: deadline.as_secs() };
        self.run(async { timeout(deadline, migrated).await.map_err(timed_out)? }).await
    }

    /// Runs one command; when the machine has ended, its end explains the failure better than QMP does.
    async fn run<T>(
        &self,
        command: impl Future<Output = Result<T, HypervisorError>>,
    ) -> Result<T, HypervisorError> {
        let answer = command.await;
        if answer.is_err()
            && let MachineState::Ended(end) = &*self.state.borrow()
        {
            return Err(HypervisorError::Ended(end.clone()));
        }
        answer
    }
}

fn owner_died() -> End {
    End::new(EndKind::HypervisorFailed, "the task that owns QEMU died, which is a bug in the VM process")
}

impl Drop for QemuMachine {
    fn drop(&mut self) {
        self.kill();
    }
}

#[async_trait]
impl Machine for QemuMachine {
    async fn start(&self) -> Result<(), HypervisorError> {
        if let StateUse::Restore(dir) = &self.state_use {
            self.load(&dir.join(saved::file::STATE)).await.map_err(|error| {
                self.kill();
                HypervisorError::Ended(End::new(
                    EndKind::RestoreRefused,
                    format!("the saved state {dir:?} cannot be restored: {error}"),
                ))
            })?;
        }
        let what = "start the guest";
        self.run(self.qmp.run(what, api::cont {}, COMMAND_DEADLINE)).await?;
        self.reach(MachineState::Running, what).await
    }

    async fn pause(&self) -> Result<(), HypervisorError> {
        let what = "pause the guest";
        self.run(self.qmp.run(what, api::stop {}, COMMAND_DEADLINE)).await?;
        self.reach(MachineState::Paused, what).await
    }

    async fn resume(&self) -> Result<(), HypervisorError> {
        let what = "resume the guest";
        if self.saved.load(Ordering::Acquire) {
            let reason =
                "its state is saved, and its memory is part of that; end this VM and restore another".into();
            return Err(HypervisorError::Refused { what, reason });
        }
        self.run(self.qmp.run(what, api::cont {}, COMMAND_DEADLINE)).await?;
        self.reach(MachineState::Running, what).await
    }

    async fn save(&self, path: &Path) -> Result<(), HypervisorError> {
        let what = "save the guest";
        let refused = |reason: String| HypervisorError::Refused { what, reason };
        if !matches!(self.state_use, StateUse::Save(_)) {
            return Err(refused("this VM was not created for saving its state".into()));
        }
        if *self.state.borrow() != MachineState::Paused {
            return Err(refused("the VM must be paused first".into()));
        }
        self.saved.store(true, Ordering::Release);
        self.without_memory(what).await?;
        let uri = Some(format!("file:{}", path.display()));
        let migrate = api::migrate { channels: None, detach: None, resume: None, uri };
        let reason = || format!("writing {path:?} failed; is the disk full?");
        let begun = self.qmp.run(what, migrate, COMMAND_DEADLINE);
        self.migrate(what, begun, SAVE_DEADLINE, reason).await?;
        let timed_out = |_| HypervisorError::TimedOut { what, seconds: SAVE_DEADLINE.as_secs() };
        // The event "completed" comes a moment before the file is whole, and no event comes for the latter.
        let mut pauses = Backoff::new(Duration::from_millis(1), Duration::from_millis(50));
        let finalized = async {
            while self.qmp.run(what, api::query_status {}, COMMAND_DEADLINE).await?.status
                == api::RunState::finish_migrate
            {
                sleep(pauses.pause()).await;
            }
            Ok(())
        };
        self.run(async { timeout(SAVE_DEADLINE, finalized).await.map_err(timed_out)? }).await
    }

    async fn request_stop(&self) -> Result<(), HypervisorError> {
        self.run(self.qmp.run("press the power button", api::system_powerdown {}, COMMAND_DEADLINE))
            .await
            .map(drop)
    }

    fn kill(&self) {
        self.kill_asked.store(true, Ordering::Release);
        self.killer.kill();
    }

    fn state(&self) -> watch::Receiver<MachineState> {
        self.state.clone()
    }

    fn take_channel(&self) -> Option<Channel> {
        let mut channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.take().map(|stream| Channel::Stream(Box::new(stream)))
    }

    fn accelerator(&self) -> &'static str {
        self.accelerator.as_str()
    }

    fn pid(&self) -> u32 {
        self.pid
    }
}

/// Owns the process and its events until it has exited.
struct Owner {
    child: Child,
    stderr: Stderr,
    events: Events,
    seen: Observations,
    state: watch::Sender<MachineState>,
    migration: watch::Sender<Option<api::MigrationStatus>>,
    kill_asked: Arc<AtomicBool>,
}

impl Owner {
    async fn run(mut self) {
        let mut listening = true;
        let exit = loop {
            tokio::select! {
                // Events first: they give the reason for the exit.
                biased;
                event = self.events.next(), if listening => listening = self.note(event),
                exit = self.child.exited() => break exit,
            }
        };
        // What QEMU wrote before it exited is still in the sockets.
        let drained = timeout(DRAIN_DEADLINE, async {
            while listening {
                let event = self.events.next().await;
                listening = self.note(event);
            }
        });
        if drained.await.is_err() {
            tracing::warn!("QEMU exited, but its QMP connection stays open; some events may be lost");
        }
        self.seen.kill_asked = self.kill_asked.load(Ordering::Acquire);
        let end = end_of(&self.seen, exit, &self.stderr.rest().await);
        tracing::info!(kind = ?end.kind, reason = %end.reason, "QEMU exited");
        self.state.send_replace(MachineState::Ended(end));
    }

    /// Returns whether more may come.
    fn note(&mut self, event: Option<io::Result<api::Event>>) -> bool {
        match event {
            None => return false,
            // An answer that came after its deadline, or an event newer than our schema.
            Some(Err(error)) => tracing::warn!(reason = %error, "QMP message ignored"),
            Some(Ok(event)) => match qmp::note(event, &mut self.seen, &self.state, &self.migration) {
                QmpAction::None => {}
                QmpAction::Kill => self.child.killer().kill(),
            },
        }
        true
    }
}

/// Copies QEMU's stderr to our log, and keeps its last lines.
struct Stderr {
    tail: Arc<Mutex<Vec<u8>>>,
    reader: AbortOnDropHandle<()>,
}

impl Stderr {
    fn follow(stderr: Option<ChildStderr>) -> Self {
        let tail = Arc::new(Mutex::new(Vec::new()));
        let kept = tail.clone();
        let reader = tokio::spawn(async move {
            let Some(stderr) = stderr else { return };
            if let Err(error) = read_lines(stderr, &kept).await {
                tracing::warn!(reason = %error, "reading QEMU's stderr failed");
            }
        });
        Self { tail, reader: AbortOnDropHandle::new(reader) }
    }

    /// Its last lines, once all is read.
    async fn rest(&mut self) -> String {
        if timeout(DRAIN_DEADLINE, &mut self.reader).await.is_err() {
            tracing::warn!("QEMU exited, but its stderr stays open");
        }
        text::tail(&self.tail.lock().unwrap_or_else(PoisonError::into_inner), STDERR_LINES, STDERR_BYTES)
    }
}

async fn read_lines(stderr: ChildStderr, kept: &Mutex<Vec<u8>>) -> io::Result<()> {
    let mut lines = BufReader::new(pipe::Receiver::from_owned_fd(OwnedFd::from(stderr))?);
    let mut line = Vec::new();
    // A line without an end comes in pieces.
    while (&mut lines).take(STDERR_BYTES as u64).read_until(b'\n', &mut line).await? > 0 {
        tracing::warn!(line = %String::from_utf8_lossy(&line).trim_end(), "QEMU wrote to stderr");
        let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.append(&mut line);
        let excess = kept.len().saturating_sub(2 * STDERR_BYTES);
        kept.drain(..excess);
    }
    Ok(())
}
