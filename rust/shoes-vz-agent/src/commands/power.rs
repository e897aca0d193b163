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
use shoes_vz_terminal::progress::{Place, Progress};
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
    cli::{OneArgs, StartArgs, StopArgs},
    files, settings,
    ssh::{Login, LoginKeys, Ssh},
};

/// How often a bundle is tried to be removed while an agent may be writing into it.
const REMOVALS: usize = 5;

/// Boots a stopped VM and waits until SSH answers.
pub async fn start(args: &StartArgs) -> anyhow::Result<()> {
    let mut values = settings::of(&args.place);
    let deadline = values.duration("start-deadline", Zero::Refused).unwrap_or_default();
    let given_key = values.path("ssh-key");
    let bundle = super::bundle(values, &args.id)?;
    anyhow::ensure!(Vm::adopt(&bundle.path).await?.is_none(), "the VM {} is running already", bundle.runner);
    // A running agent removes stopped VMs, and follows none that it did not start.
    let _lock = lock(&bundle)?;
    let mut spec = super::spec(&bundle.path)?;
    anyhow::ensure!(
        spec.transport == Transport::Channel,
        "the VM {} tells its address to the agent that starts it, so only an agent can start it",
        bundle.runner
    );
    let template = TemplateDir::open(&spec.template)?;
    let keys = LoginKeys::file_or_users(given_key.or_else(|| template.ssh_key()));
    let ssh = Login::new(&template.meta.ssh_user, keys, &template.meta.ssh_host_key)?.of_one_vm();
    renew_lifetime(&bundle, &mut spec)?;

    let mut progress = Progress::new(Place::of_stderr());
    let vm = Vm::spawn(&std::env::current_exe()?, &bundle.path).await?;
    let started = async {
        vm.start().await?;
        progress.now("booting", &format!("the VM {}", bundle.runner));
        tokio::select! {
            end = vm.ended() => anyhow::bail!("the VM ended: {}", end.reason),
            ready = reach(&vm, &ssh) => ready,
        }
    };
    let started = timeout(deadline, started).await;
    drop(progress);
    match started {
        Ok(Ok(())) => {}
        other => {
            let words = match other {
                Ok(outcome) => outcome.err().map_or_else(String::new, |e| format!("{e:#}")),
                Err(_) => format!("SSH did not answer within {}", units::show_duration(deadline)),
            };
            vm.stop(Stop::Force)
                .await
                .with_context(|| format!("{words}; and the VM could not be stopped again"))?;
            anyhow::bail!("{words}; the VM is stopped again, see {:?}", bundle.file(file::CONSOLE_LOG));
        }
    }
    set_state(&bundle, DiskState::Running)?;
    print(&format!("the VM {} is up, and SSH answers", bundle.runner))
}

async fn reach(vm: &Vm, ssh: &Ssh) -> anyhow::Result<()> {
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

/// A limit that has passed would end the VM at once: it gets as long again.
fn renew_lifetime(bundle: &Bundle, spec: &mut VmSpec) -> anyhow::Result<()> {
    let now = Timestamp::now();
    if spec.max_lifetime.is_none_or(|end| end > now) {
        return Ok(());
    }
    let seconds = bundle.metadata()?.map_or(0, |m| m.max_lifetime_seconds).max(3600);
    spec.max_lifetime = Some(now + Duration::from_secs(seconds));
    files::write(&bundle.file(file::VM_SPEC), &serde_json::to_vec_pretty(spec)?).context("writing Vm.json")
}

/// Ends a VM; its bundle stays.
pub async fn stop(args: &StopArgs) -> anyhow::Result<()> {
    let bundle = super::bundle(settings::of(&args.place), &args.id)?;
    let vm = Vm::adopt(&bundle.path).await?;
    let vm = vm.with_context(|| format!("the VM {} is not running", bundle.runner))?;
    // Whoever has it knows the VM as its own, and removes the bundle.
    let agent = lock(&bundle).err();
    let mut progress = Progress::new(Place::of_stderr());
    progress
        .now("stopping", &format!("the VM {}, at most {}", bundle.runner, units::show_duration(args.grace)));
    vm.stop(Stop::Grace(args.grace)).await?;
    drop(progress);
    match agent {
        None => {
            set_state(&bundle, DiskState::Stopped)?;
            print(&format!("the VM {} is stopped", bundle.runner))
        }
        Some(_) => {
            print(&format!("the VM {} is stopped; the running agent removes its files", bundle.runner))
        }
    }
}

/// Ends a VM and removes its bundle. An agent that runs sees both and reports the runner deleted.
pub async fn delete(args: &OneArgs) -> anyhow::Result<()> {
    let bundle = super::bundle(settings::of(&args.place), &args.id)?;
    if let Some(vm) = Vm::adopt(&bundle.path).await? {
        vm.stop(Stop::Force).await?;
    }
    let mut last = Ok(());
    for _ in 0..REMOVALS {
        last = clone::remove_bundle(&bundle.path);
        if last.is_ok() {
            return print(&format!("the VM {} is deleted", bundle.runner));
        }
    }
    Ok(last?)
}

/// The lock on all VMs, or who has it.
fn lock(bundle: &Bundle) -> Result<Lock, anyhow::Error> {
    let runners_path = bundle.path.parent().context("the bundle is in no directory")?;
    Lock::take(runners_path).map_err(|error| match error {
        LockError::Held { holder, .. } => anyhow::anyhow!(
            "an agent (pid {holder}) runs the VMs here; it removes stopped ones and does not follow those it did not start"
        ),
        error @ LockError::Io { .. } => error.into(),
    })
}

fn set_state(bundle: &Bundle, state: DiskState) -> anyhow::Result<()> {
    if let Some(mut metadata) = bundle.metadata()? {
        metadata.state = state;
        metadata.updated_at = Timestamp::now();
        bundle.set_metadata(&metadata).context("writing RuntimeMetadata.json")?;
    }
    Ok(())
}
