//! `start`, `stop`, `delete`.

use std::time::Duration;

use anyhow::Context as _;
use jiff::Timestamp;
use shoes_vz_channel::socket;
use shoes_vz_model::{
    bundle::{DiskState, file},
    guest::port,
    template::Transport,
};
use shoes_vz_process::backoff::Backoff;
use shoes_vz_process::settings::Zero;
use shoes_vz_process::units;
use shoes_vz_terminal::progress::{Progress, ProgressTarget};
use shoes_vz_vm::{
    client::{Stop, Vm},
    clone,
    spec::VmSpec,
    template::TemplateDir,
};
use tokio::time::{sleep, timeout};

use super::print;
use crate::{
    bundles::{Bundle, Lock, LockError},
    cli::{DeleteArgs, StartArgs, StopArgs},
    files::{self, Readers},
    settings,
    ssh::{Login, LoginKeys, Ssh},
};

/// Attempts to remove a bundle while an agent may be writing into it.
const REMOVE_ATTEMPTS: usize = 5;

/// Boots a stopped VM and waits until SSH answers.
pub async fn start(args: &StartArgs) -> anyhow::Result<()> {
    let mut values = settings::gather(&args.host);
    let deadline = values.duration("start-deadline", Zero::Refused).unwrap_or_default();
    let given_key = values.path("ssh-key");
    let bundle = super::bundle(values, &args.id)?;
    anyhow::ensure!(Vm::adopt(&bundle.path).await?.is_none(), "the VM {} is already running", bundle.runner);
    // A running agent removes stopped VMs, and does not follow a VM that it did not start.
    let _lock = lock(&bundle)?;
    let mut spec = super::spec(&bundle.path)?;
    anyhow::ensure!(
        spec.transport == Transport::Channel,
        "the VM {} reports its address to the agent that starts it, so only an agent can start it",
        bundle.runner
    );
    let template = TemplateDir::open(&spec.template)?;
    let keys = LoginKeys::file_or_user(given_key.or_else(|| template.ssh_key()));
    let ssh = Login::new(&template.meta.ssh_user, keys, &template.meta.ssh_host_key)?.for_one_vm();
    extend_lifetime(&bundle, &mut spec)?;

    let mut progress = Progress::new(ProgressTarget::of_stderr());
    let vm = Vm::spawn(&std::env::current_exe()?, &bundle.path).await?;
    let started = async {
        vm.start().await?;
        progress.now("booting", &format!("the VM {}", bundle.runner));
        tokio::select! {
            end = vm.ended() => anyhow::bail!("the VM ended: {}", end.reason),
            ready = until_ssh_answers(&vm, &ssh) => ready,
        }
    };
    let started = timeout(deadline, started).await;
    drop(progress);
    match started {
        Ok(Ok(())) => {}
        other => {
            let reason = match other {
                Ok(outcome) => outcome.err().map_or_else(String::new, |e| format!("{e:#}")),
                Err(_) => format!("SSH did not answer within {}", units::show_duration(deadline)),
            };
            vm.stop(Stop::Force).await.with_context(|| format!("{reason}; the VM could not be stopped"))?;
            anyhow::bail!("{reason}; the VM was stopped, see {:?}", bundle.file(file::CONSOLE_LOG));
        }
    }
    set_state(&bundle, DiskState::Running)?;
    print(&format!("the VM {} is running, and SSH answers", bundle.runner))
}

async fn until_ssh_answers(vm: &Vm, ssh: &Ssh) -> anyhow::Result<()> {
    let mut pauses = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
    loop {
        let stream = socket::dial(&vm.guest_socket(), port::SSH).await?;
        match ssh.ready(stream).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_final() => return Err(error.into()),
            Err(_) => {}
        }
        sleep(pauses.pause()).await;
    }
}

/// A deadline that has passed would end the VM at once, so it is extended by the original lifetime.
fn extend_lifetime(bundle: &Bundle, spec: &mut VmSpec) -> anyhow::Result<()> {
    let now = Timestamp::now();
    if spec.max_lifetime.is_none_or(|end| end > now) {
        return Ok(());
    }
    let seconds = bundle.metadata()?.map_or(0, |m| m.max_lifetime_seconds).max(3600);
    spec.max_lifetime = Some(now + Duration::from_secs(seconds));
    files::replace(&bundle.file(file::VM_SPEC), &serde_json::to_vec_pretty(spec)?, Readers::Owner)
        .context("cannot write Vm.json")
}

/// Stops a VM and keeps its bundle.
pub async fn stop(args: &StopArgs) -> anyhow::Result<()> {
    let bundle = super::bundle(settings::gather(&args.host), &args.id)?;
    let vm = Vm::adopt(&bundle.path).await?;
    let vm = vm.with_context(|| format!("the VM {} is not running", bundle.runner))?;
    // An agent that holds the lock follows the VM, and removes the bundle.
    let has_agent = lock(&bundle).is_err();
    let mut progress = Progress::new(ProgressTarget::of_stderr());
    progress
        .now("stopping", &format!("the VM {}, at most {}", bundle.runner, units::show_duration(args.grace)));
    vm.stop(Stop::Grace(args.grace)).await?;
    drop(progress);
    match has_agent {
        false => {
            set_state(&bundle, DiskState::Stopped)?;
            print(&format!("the VM {} is stopped", bundle.runner))
        }
        true => print(&format!("the VM {} is stopped; the running agent removes its files", bundle.runner)),
    }
}

/// Stops a VM and removes its bundle. A running agent notices both, and reports the runner as deleted.
pub async fn delete(args: &DeleteArgs) -> anyhow::Result<()> {
    let bundle = super::bundle(settings::gather(&args.host), &args.id)?;
    if let Some(vm) = Vm::adopt(&bundle.path).await? {
        vm.stop(Stop::Force).await?;
    }
    let mut last = Ok(());
    for _ in 0..REMOVE_ATTEMPTS {
        last = clone::remove_bundle(&bundle.path);
        if last.is_ok() {
            return print(&format!("the VM {} was deleted", bundle.runner));
        }
    }
    Ok(last?)
}

fn lock(bundle: &Bundle) -> Result<Lock, anyhow::Error> {
    let runners_path = bundle.path.parent().context("the bundle has no parent directory")?;
    Lock::take(runners_path).map_err(|error| match error {
        LockError::Held { holder, .. } => anyhow::anyhow!(
            "an agent (pid {holder}) manages the VMs of this host; it removes stopped VMs and does not follow those it did not start"
        ),
        error @ LockError::Io { .. } => error.into(),
    })
}

fn set_state(bundle: &Bundle, state: DiskState) -> anyhow::Result<()> {
    if let Some(mut metadata) = bundle.metadata()? {
        metadata.state = state;
        metadata.updated_at = Timestamp::now();
        bundle.set_metadata(&metadata).context("cannot write RuntimeMetadata.json")?;
    }
    Ok(())
}
