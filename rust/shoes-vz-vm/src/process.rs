//! The VM process: exactly one VM, from `vm.sock` to `VmEnd.json`.
//!
//! Happy path: lock the bundle, listen, say "ready" on stdout, wait for Start, run the VM, note its end, go.
//!
//! | what fails | what happens |
//! |---|---|
//! | the agent dies | nothing: a later agent finds `vm.sock` |
//! | the agent dies before Start | this process ends itself after a minute |
//! | the hypervisor dies | its reason is noted and told; this process ends |
//! | a task of this process panics | the VM is ended, with that as its reason |
//! | this process dies | the hypervisor dies with it (parent-death signal); the client words the end |
//! | the maximum lifetime passes | the VM is ended, agent or no agent |

use std::{
    env,
    ffi::OsString,
    fs,
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    panic::AssertUnwindSafe,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use futures::FutureExt as _;
use shoes_vz_channel::socket;
use shoes_vz_model::{bundle::file, text};
use shoes_vz_process::{log, say};
use shoes_vz_proto::vm::vm_service_server::VmServiceServer;
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use tokio_stream::wrappers::UnixListenerStream;

use self::{guest::Guest, owner::Owner, service::Service};
use crate::{
    end::{End, EndKind},
    hypervisor::{Hypervisor, HypervisorError, vz::Vz},
    spec::{Display, HypervisorKind, SpecError, VmSpec},
};

mod guest;
mod intent;
mod owner;
mod service;

/// What the client reads on our stdout once `vm.sock` is served; anything else is why it never will be.
pub(crate) const READY: &str = "ready";
/// A VM process whose agent vanished before Start ends itself after this.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Until the watchers have read the VM's end; they read it at once unless they hang.
const FAREWELL: Duration = Duration::from_secs(2);

/// Why a VM process cannot begin.
#[derive(Debug, thiserror::Error)]
enum ProcessError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("{what} {path:?}: {source}")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("another VM process already runs the bundle {0:?}")]
    Taken(PathBuf),
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ProcessError + 'a {
    move |source| ProcessError::Io { what, path: path.to_owned(), source }
}

/// Whether this bundle's VM has a window of AppKit's, for which the process' main thread must be in [`main_loop`] while
/// [`run`] has another. A bundle that cannot be read has none; `run` says why.
pub fn needs_main_loop(bundle: &Path) -> bool {
    VmSpec::read(bundle).is_ok_and(|s| s.hypervisor == HypervisorKind::Vz && s.display == Display::Window)
}

/// Runs the process' main loop, for ever.
pub fn main_loop() {
    shoes_vz_bridge::run_main_loop();
}

/// The body of `shoes-vz-agent vm --bundle DIR`. It sets up the process-wide things (session, working directory,
/// umask, log), so it must be all the process does; `tracing` must not be set up before.
pub async fn run(bundle: &Path) -> ExitCode {
    match prepare(bundle) {
        Ok((spec, hypervisor)) => {
            let ready = || {
                announce(READY);
                hang_up();
            };
            match serve(Path::new("."), spec, hypervisor, START_DEADLINE, terminated(), ready).await {
                Ok(_) => ExitCode::SUCCESS,
                Err(error) => fail(&error),
            }
        }
        Err(error) => fail(&error),
    }
}

fn fail(error: &ProcessError) -> ExitCode {
    tracing::error!(%error, "the VM process cannot begin");
    announce(&error.to_string());
    ExitCode::FAILURE
}

/// To the process that started us. That it does not read any more is no reason to end a VM.
fn announce(line: &str) {
    let mut stdout = io::stdout();
    if let Err(error) = writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        tracing::warn!(%error, line, "the parent has closed our stdout");
    }
}

fn prepare(bundle: &Path) -> Result<(VmSpec, Arc<dyn Hypervisor>), ProcessError> {
    let session = nix::unistd::setsid();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    // Socket names are relative from here on: a Unix socket's whole path must fit in 103 bytes.
    env::set_current_dir(bundle).map_err(io_error("entering the bundle", bundle))?;
    log_to(Path::new(file::VM_LOG)).map_err(io_error("opening the VM's log", &bundle.join(file::VM_LOG)))?;
    if let Err(error) = session {
        // Started as a process group's leader, as from a shell: whoever did so may end this group as a whole.
        tracing::info!(%error, "no session of its own");
    }
    let spec = VmSpec::read(Path::new("."))?;
    let hypervisor = hypervisor(&spec)?;
    tracing::info!(bundle = %bundle.display(), ?spec, pid = std::process::id(), version = env!("CARGO_PKG_VERSION"), "VM process");
    Ok((spec, hypervisor))
}

fn log_to(path: &Path) -> io::Result<()> {
    let file = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    // The agent's settings, as far as a child inherits them.
    log::start_to(
        file,
        &log::Filter::of_env(&["SHOESVZ_AGENT_LOG", "SHOESVZ_LOG"]),
        log::Format::Text,
        false,
    );
    Ok(())
}

#[cfg(target_os = "linux")]
fn hypervisor(spec: &VmSpec) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    match spec.hypervisor {
        // Ourselves, even when the file was replaced by an upgrade since we were started.
        HypervisorKind::Qemu => Ok(Arc::new(crate::hypervisor::qemu::Qemu::new("/proc/self/exe")?)),
        HypervisorKind::Vz => Ok(Arc::new(Vz)),
    }
}

#[cfg(not(target_os = "linux"))]
fn hypervisor(spec: &VmSpec) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    match spec.hypervisor {
        HypervisorKind::Vz => Ok(Arc::new(Vz)),
        HypervisorKind::Qemu => Err(HypervisorError::Unsupported("QEMU guests are for Linux hosts".into())),
    }
}

/// stdout leads nowhere from now on: whoever waits on it sees its end, and nobody is blocked by it later.
fn hang_up() {
    let hung_up = fs::OpenOptions::new().write(true).open("/dev/null");
    if let Err(error) = hung_up.and_then(|null| nix::unistd::dup2_stdout(null).map_err(io::Error::from)) {
        tracing::warn!(%error, "stdout stays open");
    }
}

/// SIGTERM or SIGINT. The other signals that would end a process by default mean nothing here, and must not cost a job.
async fn terminated() {
    let caught = || {
        let [hup, usr1, usr2] =
            [SignalKind::hangup(), SignalKind::user_defined1(), SignalKind::user_defined2()].map(signal);
        let (term, int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok::<_, io::Error>((term, int, hup?, usr1?, usr2?))
    };
    let (mut term, mut int, mut hup, mut usr1, mut usr2) = match caught() {
        Ok(all) => all,
        Err(error) => {
            tracing::warn!(%error, "signals cannot be caught: SIGTERM will end the VM without a word");
            return std::future::pending().await;
        }
    };
    loop {
        let ignored = tokio::select! {
            _ = term.recv() => return,
            _ = int.recv() => return,
            _ = hup.recv() => "SIGHUP",
            _ = usr1.recv() => "SIGUSR1",
            _ = usr2.recv() => "SIGUSR2",
        };
        tracing::info!(signal = ignored, "this signal means nothing to a VM process; SIGTERM ends the VM");
    }
}

/// Serves the bundle's VM until it is over. `ready` is called once both sockets are served.
async fn serve(
    bundle: &Path,
    spec: VmSpec,
    hypervisor: Arc<dyn Hypervisor>,
    start_deadline: Duration,
    terminated: impl Future<Output = ()>,
    ready: impl FnOnce(),
) -> Result<End, ProcessError> {
    let _lock = lock(bundle)?;
    let (vm, guest) = (Name::bind(bundle, file::VM_SOCKET)?, Name::bind(bundle, file::GUEST_SOCKET)?);
    let (owner, handle) = Owner::new(spec, bundle.to_owned(), hypervisor, start_deadline);

    let mut guests = tokio::spawn(socket::serve(guest.listener, Guest(handle.guest.clone())));
    let (over, is_over) = oneshot::channel::<()>();
    let service = tonic::transport::Server::builder()
        .add_service(VmServiceServer::new(Service { owner: handle }))
        .serve_with_incoming_shutdown(UnixListenerStream::new(vm.listener), async { drop(is_over.await) });
    let mut service = tokio::spawn(service);
    ready();

    let record = |end: &End| {
        if let Err(error) = end.write(bundle) {
            tracing::error!(%error, "how the VM ended cannot be written down");
        }
        vm.path.remove();
        guest.path.remove();
    };
    let status = owner.status();
    let outcome = tokio::select! {
        biased;
        end = AssertUnwindSafe(owner.run(terminated, &record)).catch_unwind() => {
            end.map_err(|panic| format!("it panicked: {}", text::of_panic(&*panic)))
        }
        // Nobody could ask for anything any more, nor reach the guest.
        fault = lost(&mut service, &mut guests) => Err(fault),
    };
    let end = match outcome {
        Ok(end) => end,
        Err(fault) => {
            // The VM is over with its owner.
            let end = End::new(
                EndKind::HypervisorFailed,
                format!("a fault of the VM process ended the VM: {fault}"),
            );
            tracing::error!(reason = %end.reason, "the VM is over");
            record(&end);
            owner::tell(&status, &end);
            if service.is_finished() {
                return Ok(end);
            }
            end
        }
    };
    drop(over);
    guests.abort();
    match timeout(FAREWELL, &mut service).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::error!(%error, "vm.sock failed"),
        Ok(Err(error)) => tracing::error!(%error, "vm.sock failed"),
        Err(_) => {
            tracing::warn!("somebody still holds vm.sock; leaving anyway");
            service.abort();
        }
    }
    Ok(end)
}

/// Waits until one of the two tasks that serve the sockets has ended, which neither does before the VM.
async fn lost<E: std::fmt::Display>(
    service: &mut JoinHandle<Result<(), E>>,
    guests: &mut JoinHandle<()>,
) -> String {
    tokio::select! {
        ended = service => match ended {
            Ok(Ok(())) => "serving vm.sock ended".into(),
            Ok(Err(error)) => format!("serving vm.sock ended: {error}"),
            Err(panic) => format!("serving vm.sock: {panic}"),
        },
        ended = guests => match ended {
            Ok(()) => "serving guest.sock ended".into(),
            Err(panic) => format!("serving guest.sock: {panic}"),
        },
    }
}

/// Two processes on one disk would destroy it. Held as long as the file is open, and freed by any death.
fn lock(bundle: &Path) -> Result<fs::File, ProcessError> {
    let path = bundle.join(file::VM_SPEC);
    let opened = fs::File::open(&path).map_err(io_error("opening the VM's settings", &path))?;
    match opened.try_lock() {
        Ok(()) => Ok(opened),
        Err(fs::TryLockError::WouldBlock) => Err(ProcessError::Taken(bundle.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(io_error("locking the VM's settings", &path)(source)),
    }
}

struct Name {
    listener: UnixListener,
    path: SocketPath,
}

/// A socket's name, removed at the end however the end comes.
struct SocketPath(PathBuf);

impl Name {
    fn bind(bundle: &Path, name: &str) -> Result<Self, ProcessError> {
        let path = bundle.join(name);
        // We hold the lock, so a socket that is there is a dead process'.
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("removing the old socket", &path)(e));
            }
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(io_error("listening on", &path))?;
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&path, private).map_err(io_error("closing to others the socket", &path))?;
        Ok(Self { listener, path: SocketPath(path) })
    }
}

impl SocketPath {
    fn remove(&self) {
        if let Err(error) = fs::remove_file(&self.0)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(path = ?self.0, %error, "a socket's name stays behind");
        }
    }
}

impl Drop for SocketPath {
    fn drop(&mut self) {
        self.remove();
    }
}

/// The body of `shoes-vz-agent exec-with-parent PID -- PROGRAM ARG…`: becomes PROGRAM, which the kernel kills when the
/// thread of process PID that forked us ends. `args` begin after the subcommand's name.
pub fn exec_with_parent(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut args = args.into_iter();
    let parent = args.next().and_then(|a| a.to_str()?.parse::<i32>().ok());
    let (Some(parent), Some(_), Some(program)) = (parent, args.next().filter(|a| a == "--"), args.next())
    else {
        say("usage: exec-with-parent PID -- PROGRAM ARG…");
        return ExitCode::from(2);
    };
    become_child_of(parent, program, args)
}

#[cfg(target_os = "linux")]
fn become_child_of(parent: i32, program: OsString, args: impl Iterator<Item = OsString>) -> ExitCode {
    use std::os::unix::process::CommandExt as _;

    if let Err(error) = nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL) {
        say(format_args!("asking the kernel for a parent-death signal: {error}"));
        return ExitCode::FAILURE;
    }
    // The parent may have died before the line above; then no signal will ever come.
    if nix::unistd::getppid().as_raw() != parent {
        say(format_args!("the VM process {parent} is gone"));
        return ExitCode::FAILURE;
    }
    let error = std::process::Command::new(&program).args(args).exec();
    say(format_args!("{program:?} cannot be run ({error}); is it installed?"));
    ExitCode::from(127)
}

#[cfg(not(target_os = "linux"))]
fn become_child_of(_: i32, program: OsString, _: impl Iterator<Item = OsString>) -> ExitCode {
    say(format_args!("running {program:?} with a parent-death signal needs Linux"));
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests;
