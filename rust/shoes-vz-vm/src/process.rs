//! The VM process: exactly one VM, from `vm.sock` to `VmEnd.json`.
//!
//! Happy path: lock the bundle, listen, print "ready" on stdout, wait for Start, run the VM, record its end, exit.
//!
//! | what fails | what happens |
//! |---|---|
//! | the agent dies | nothing: a later agent finds `vm.sock` |
//! | the agent dies before Start | this process exits after a minute |
//! | the hypervisor dies | the reason is recorded and published; this process exits |
//! | a task of this process panics | the VM is ended, with that as its reason |
//! | this process dies | the hypervisor dies with it (parent-death signal); the client makes up the end report |
//! | the maximum lifetime passes | the VM is ended, with or without an agent |

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
use shoes_vz_process::{chain::Chain, files::if_any, log, say};
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
    output::READY,
    spec::{Display, HypervisorKind, SpecError, VmSpec},
    temporary::Temporary,
};

mod guest;
mod intent;
mod owner;
mod service;

/// Until Start; a VM process whose agent has died before exits then.
const START_DEADLINE: Duration = Duration::from_secs(60);
/// Until the watchers have read the VM's end; they read it at once unless they hang.
const LAST_STATUS_DEADLINE: Duration = Duration::from_secs(2);

/// Why a VM process cannot start.
#[derive(Debug, thiserror::Error)]
enum ProcessError {
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("{what} {path:?} failed")]
    Io { what: &'static str, path: PathBuf, source: io::Error },
    #[error("another VM process already runs the bundle {0:?}")]
    Taken(PathBuf),
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
}

fn io_error<'a>(what: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> ProcessError + 'a {
    move |source| ProcessError::Io { what, path: path.to_owned(), source }
}

/// Whether this bundle's VM has an AppKit window, for which the process' main thread must be in [`main_loop`] while
/// [`run`] has another. A bundle that cannot be read has none; `run` reports the reason.
pub fn needs_main_loop(bundle: &Path) -> bool {
    VmSpec::read(bundle).is_ok_and(|s| s.hypervisor == HypervisorKind::Vz && s.display == Display::Window)
}

/// Runs the process' main loop; never returns.
pub fn main_loop() {
    shoes_vz_bridge::run_main_loop();
}

/// The body of `shoes-vz-agent vm --bundle DIR`. It sets up the process-wide things (session, working directory,
/// umask, log), so it must be all the process does; `tracing` must not be set up before.
pub async fn run(bundle: &Path) -> ExitCode {
    let ready = || {
        print_to_parent(READY);
        close_stdout();
    };
    let served = async {
        let (spec, hypervisor) = prepare(bundle)?;
        serve(Path::new("."), spec, hypervisor, START_DEADLINE, terminated(), ready).await
    };
    if let Err(error) = served.await {
        let reason = Chain(&error).to_string();
        tracing::error!(reason, "VM process failed");
        print_to_parent(&reason);
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// A parent that does not read any more is not a reason to end a VM.
fn print_to_parent(line: &str) {
    let mut stdout = io::stdout();
    if let Err(error) = writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        tracing::warn!(reason = %error, line, "writing to the parent process failed");
    }
}

fn prepare(bundle: &Path) -> Result<(VmSpec, Arc<dyn Hypervisor>), ProcessError> {
    let session = nix::unistd::setsid();
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    // Socket names are relative from here on: a Unix socket's whole path must fit in 103 bytes.
    env::set_current_dir(bundle).map_err(io_error("entering the bundle", bundle))?;
    log_to(Path::new(file::VM_LOG)).map_err(io_error("opening the VM's log", &bundle.join(file::VM_LOG)))?;
    if let Err(error) = session {
        // Started as a process group's leader, as from a shell, which may end this group as a whole.
        tracing::info!(reason = %error, "starting a new session failed; the VM process shares its parent's");
    }
    let spec = VmSpec::read(Path::new("."))?;
    let hypervisor = hypervisor(&spec)?;
    tracing::info!(bundle = %bundle.display(), ?spec, pid = std::process::id(), version = env!("CARGO_PKG_VERSION"), "VM process started");
    Ok((spec, hypervisor))
}

fn log_to(path: &Path) -> io::Result<()> {
    let file = fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    // The agent's log settings, as far as a child inherits them.
    let filter = log::Filter::of_env(&["SHOESVZ_AGENT_LOG", "SHOESVZ_LOG"]);
    log::start_to(file, &filter, log::Format::Text, false);
    Ok(())
}

fn hypervisor(spec: &VmSpec) -> Result<Arc<dyn Hypervisor>, HypervisorError> {
    match spec.hypervisor {
        HypervisorKind::Vz => Ok(Arc::new(Vz)),
        // This program, even when an upgrade has replaced its file since it was started.
        #[cfg(target_os = "linux")]
        HypervisorKind::Qemu => Ok(Arc::new(crate::hypervisor::qemu::Qemu::new("/proc/self/exe")?)),
        #[cfg(not(target_os = "linux"))]
        HypervisorKind::Qemu => Err(HypervisorError::Unsupported("QEMU guests are for Linux hosts".into())),
    }
}

/// The parent sees stdout's end, and nothing blocks on it later.
fn close_stdout() {
    let null = fs::OpenOptions::new().write(true).open("/dev/null");
    if let Err(error) = null.and_then(|null| nix::unistd::dup2_stdout(null).map_err(io::Error::from)) {
        tracing::warn!(reason = %error, "closing stdout failed");
    }
}

/// SIGTERM or SIGINT. The other signals that end a process by default are ignored, so that they cost no job.
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
            tracing::warn!(reason = %error, "catching signals failed; SIGTERM ends the VM without a reason");
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
        tracing::info!(signal = ignored, "signal ignored; SIGTERM ends the VM");
    }
}

/// Serves the bundle's VM until it has ended. `ready` is called once both sockets are served.
async fn serve(
    bundle: &Path,
    spec: VmSpec,
    hypervisor: Arc<dyn Hypervisor>,
    start_deadline: Duration,
    terminated: impl Future<Output = ()>,
    ready: impl FnOnce(),
) -> Result<End, ProcessError> {
    let _lock = lock(bundle)?;
    let (vm, guest) =
        (BoundSocket::bind(bundle, file::VM_SOCKET)?, BoundSocket::bind(bundle, file::GUEST_SOCKET)?);
    let (owner, handle) = Owner::new(spec, bundle.to_owned(), hypervisor, start_deadline);

    let mut guests = tokio::spawn(socket::serve(guest.listener, Guest(handle.guest.clone())));
    let (ended, has_ended) = oneshot::channel::<()>();
    let service = tonic::transport::Server::builder()
        .add_service(VmServiceServer::new(Service { owner: handle }))
        .serve_with_incoming_shutdown(UnixListenerStream::new(vm.listener), async { drop(has_ended.await) });
    let mut service = tokio::spawn(service);
    ready();

    let record = |end: &End| {
        if let Err(error) = end.write(bundle) {
            tracing::error!(reason = %error, "writing VmEnd.json failed");
        }
        vm.file.remove();
        guest.file.remove();
    };
    let status = owner.status();
    let outcome = tokio::select! {
        biased;
        end = AssertUnwindSafe(owner.run(terminated, &record)).catch_unwind() => {
            end.map_err(|panic| format!("it panicked: {}", text::panic_reason(&*panic)))
        }
        // From then on no client could ask for anything, or reach the guest.
        fault = socket_task_ended(&mut service, &mut guests) => Err(fault),
    };
    let end = match outcome {
        Ok(end) => end,
        Err(fault) => {
            // The VM has ended with its owner.
            let end =
                End::new(EndKind::HypervisorFailed, format!("a bug in the VM process ended the VM: {fault}"));
            tracing::error!(reason = %end.reason, "VM ended");
            record(&end);
            owner::publish_end(&status, &end);
            if service.is_finished() {
                return Ok(end);
            }
            end
        }
    };
    drop(ended);
    guests.abort();
    match timeout(LAST_STATUS_DEADLINE, &mut service).await {
        Ok(Ok(Ok(()))) => {}
        Ok(Ok(Err(error))) => tracing::error!(reason = %error, "serving vm.sock failed"),
        Ok(Err(error)) => tracing::error!(reason = %error, "serving vm.sock failed"),
        Err(_) => {
            tracing::warn!("a client keeps its connection to vm.sock; exiting anyway");
            service.abort();
        }
    }
    Ok(end)
}

/// Waits until one of the two tasks that serve the sockets has ended, which neither does before the VM.
async fn socket_task_ended<E: std::fmt::Display>(
    service: &mut JoinHandle<Result<(), E>>,
    guests: &mut JoinHandle<()>,
) -> String {
    tokio::select! {
        ended = service => match ended {
            Ok(Ok(())) => "serving vm.sock ended".into(),
            Ok(Err(error)) => format!("serving vm.sock failed: {error}"),
            Err(panic) => format!("serving vm.sock failed: {panic}"),
        },
        ended = guests => match ended {
            Ok(()) => "serving guest.sock ended".into(),
            Err(panic) => format!("serving guest.sock failed: {panic}"),
        },
    }
}

/// Two processes on one disk would destroy it. The lock is held as long as the file is open; the process' end frees it.
fn lock(bundle: &Path) -> Result<fs::File, ProcessError> {
    let path = bundle.join(file::VM_SPEC);
    let opened = fs::File::open(&path).map_err(io_error("opening the VM's settings", &path))?;
    match opened.try_lock() {
        Ok(()) => Ok(opened),
        Err(fs::TryLockError::WouldBlock) => Err(ProcessError::Taken(bundle.to_owned())),
        Err(fs::TryLockError::Error(source)) => Err(io_error("locking the VM's settings", &path)(source)),
    }
}

struct BoundSocket {
    listener: UnixListener,
    file: Temporary,
}

impl BoundSocket {
    fn bind(bundle: &Path, name: &str) -> Result<Self, ProcessError> {
        let path = bundle.join(name);
        // We hold the lock, so a socket that exists belongs to a process that has ended.
        if_any(fs::remove_file(&path)).map_err(io_error("removing the old socket", &path))?;
        let listener = UnixListener::bind(&path).map_err(io_error("listening on", &path))?;
        let private = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&path, private)
            .map_err(io_error("restricting the permissions of the socket", &path))?;
        Ok(Self { listener, file: Temporary { path, failure: "removing a socket failed" } })
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
        say(format_args!("requesting a parent-death signal failed: {error}"));
        return ExitCode::FAILURE;
    }
    // The parent may have died before the line above; then the signal never comes.
    if nix::unistd::getppid().as_raw() != parent {
        say(format_args!("the VM process {parent} has ended"));
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
