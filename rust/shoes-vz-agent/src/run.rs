//! `run`: build from the settings, serve, stop. The VMs stay.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use shoes_vz_model::id::AgentId;
use shoes_vz_process::signals::Signals;
use shoes_vz_vm::spec::{Accelerator, Display, HypervisorKind};

use crate::{
    agent::{Agent, Limits},
    bundles::Lock,
    control_plane::{ControlPlane, Registration},
    disk::{self, Disk},
    ends::Ends,
    files,
    host::Host,
    ip_notices::IpNotices,
    runners::Runners,
    saved_states::{self, States},
    settings::Settings,
    slots::Slots,
    tasks::Tasks,
    vms::{LocalVms, ThisProgram},
};

/// Serves this host until a signal stops it.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut signals = Signals::catch().context("cannot install signal handlers")?;
    let _lock = Lock::take(&settings.runners_path)?;
    let agent_id = agent_id(&settings.state_dir)?;
    let tasks = Tasks::default();
    let notices = match settings.ip_notify_port {
        Some(port) => Some(IpNotices::listen(port, &tasks).await?),
        None => None,
    };
    let registration =
        Registration { agent_id, hostname: settings.hostname.clone(), max_runners: settings.max_runners };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), %agent_id, hostname = registration.hostname, slots = registration.max_runners,
        template = settings.template.name, runners_path = %settings.runners_path.display(), "agent starting"
    );
    let address = notices.as_ref().map(IpNotices::address);
    let ready_file = settings.ready_file.clone();
    let (server, token) = (settings.server.clone(), settings.token.clone());
    let agent = tokio::select! {
        agent = agent(settings, agent_id, notices, tasks.clone()) => agent?,
        _ = signals.stop() => return Ok(()),
    };
    let runners = Arc::new(Runners::new(agent.clone()));
    runners.adopt_all().await.context("cannot clean up and adopt the VMs below the runners path")?;
    let server = ControlPlane::new(&server, token.as_ref(), &registration, runners)?;
    let ready = ReadyFile { path: ready_file, agent_id, address };
    ready.remove()?;
    let disk = agent.disk.clone();
    tokio::select! {
        () = tasks.supervise("the server's stream", server.serve(|_| ready.write())) => {}
        () = tasks.supervise("watching the disk", disk.check_periodically(disk::CHECK_INTERVAL)) => {}
        () = tasks.supervise("keeping VMs hot", agent.pool.keep()) => {}
        _ = tasks.failed() => {}
        _ = signals.stop() => {}
    }
    let removed = ready.remove();
    match tasks.failure() {
        Some(reason) => anyhow::bail!(
            "a task of the agent failed, which is a bug in shoes-vz: {reason}; its VMs keep \
             running, and the next agent adopts them: restart the agent, and report this"
        ),
        None => tracing::info!("agent stopping; its VMs keep running, and the next agent adopts them"),
    }
    removed
}

/// An agent without runners.
pub(crate) async fn agent(
    settings: Settings,
    id: AgentId,
    notices: Option<IpNotices>,
    tasks: Tasks,
) -> anyhow::Result<Arc<Agent>> {
    settings.login.log().await;
    let display = display(&settings);
    let accelerator = accelerator(&settings).await;
    let mut mode = settings.saved_states;
    if mode.uses() {
        let possible = saved_states::possible(settings.hypervisor, &settings.state_dir).await;
        mode = saved_states::mode(mode, possible).map_err(anyhow::Error::msg)?;
    }
    let saved_states = States::below(&settings.runners_path, settings.template.clone(), mode);
    saved_states.sweep(settings.max_runners).await;
    let disk = Disk::new(settings.runners_path.clone(), settings.min_free_disk, Arc::new(disk::free_bytes));
    let program = std::env::current_exe().context("cannot find this program's file")?;
    let vms = Arc::new(LocalVms::new(Arc::new(ThisProgram(program))));
    let host = Host {
        hypervisor: settings.hypervisor,
        accelerator,
        display,
        network: settings.network,
        saved_states,
        notices,
        tasks,
        ..Host::new(id, settings.template, settings.runners_path, settings.login, vms)
    };
    let limits = Limits {
        start_deadline: settings.start_deadline,
        max_lifetime: settings.max_lifetime,
        registration_deadline: settings.registration_deadline,
        unresponsive_guest_limit: settings.unresponsive_guest_limit,
    };
    let ends = Ends::open(&settings.state_dir).with_context(|| {
        format!(
            "cannot read the kept end reports in {:?}; if that file is damaged, remove it",
            settings.state_dir
        )
    })?;
    Ok(Agent::new(host, limits, Slots::new(settings.max_runners), settings.hot, disk, ends))
}

/// A window, where one was asked for and this host can open it.
fn display(settings: &Settings) -> Display {
    match (settings.hypervisor, settings.display) {
        (HypervisorKind::Qemu, Display::Window) => match qemu_opens_windows() {
            Ok(()) => Display::Window,
            Err(reason) => {
                tracing::warn!(reason, "windows unavailable (--enable-graphics); VMs run without them");
                Display::Headless
            }
        },
        (HypervisorKind::Qemu | HypervisorKind::Vz, wanted) => wanted,
    }
}

/// Whether QEMU can show a guest's screen on this host. Asked once at the start: else each runner would fail.
#[cfg(target_os = "linux")]
fn qemu_opens_windows() -> Result<(), String> {
    if ["DISPLAY", "WAYLAND_DISPLAY"].iter().all(|name| std::env::var_os(name).is_none_or(|v| v.is_empty())) {
        return Err(
            "there is no desktop to show windows on (neither DISPLAY nor WAYLAND_DISPLAY is set)".into()
        );
    }
    let program = format!("qemu-system-{}", std::env::consts::ARCH);
    let listed = std::process::Command::new(&program).args(["-display", "help"]).output();
    let listed = listed.map_err(|e| format!("cannot run {program}: {e}; is it installed?"))?;
    match String::from_utf8_lossy(&listed.stdout).lines().any(|line| line.trim() == "gtk") {
        true => Ok(()),
        false => Err(format!(
            "this host's {program} cannot open windows (it lists no \"gtk\" display); on Debian and Ubuntu \
                              install qemu-system-gui"
        )),
    }
}

#[cfg(not(target_os = "linux"))]
fn qemu_opens_windows() -> Result<(), String> {
    Ok(())
}

/// The one on disk, or a new one put there.
pub(crate) fn agent_id(state_dir: &Path) -> anyhow::Result<AgentId> {
    let path = state_dir.join(".agent-id");
    match files::read(&path).with_context(|| format!("cannot read {path:?}"))? {
        Some(bytes) => String::from_utf8_lossy(&bytes)
            .trim()
            .parse()
            .with_context(|| format!("{path:?} does not hold a valid agent ID; remove it to get a new one")),
        None => {
            let id = AgentId::random();
            files::replace(&path, format!("{id}\n").as_bytes(), files::Readers::Owner)
                .with_context(|| format!("cannot write {path:?}"))?;
            Ok(id)
        }
    }
}

/// Found out once, here, rather than by every VM.
async fn accelerator(settings: &Settings) -> Accelerator {
    match (settings.hypervisor, settings.accelerator) {
        #[cfg(target_os = "linux")]
        (HypervisorKind::Qemu, Accelerator::Auto) => shoes_vz_vm::accel::detect(&settings.state_dir).await,
        (HypervisorKind::Qemu | HypervisorKind::Vz, given) => given,
    }
}

/// Present while the server has accepted this agent, so that scripts can wait for it.
struct ReadyFile {
    path: Option<PathBuf>,
    agent_id: AgentId,
    address: Option<std::net::SocketAddr>,
}

impl ReadyFile {
    fn write(&self) {
        let Some(path) = &self.path else { return };
        let content = serde_json::json!({
            "agent_id": self.agent_id,
            "pid": std::process::id(),
            "ip_notify_addr": self.address,
        });
        if let Err(error) = files::replace(path, format!("{content}\n").as_bytes(), files::Readers::Owner) {
            tracing::error!(?path, reason = %error, "writing --ready-file failed");
        }
    }

    fn remove(&self) -> anyhow::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("--ready-file: cannot remove the old {path:?}"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_03_an_agents_id_stays_its_own_and_a_broken_one_is_not_replaced_silently() {
        let dir = tempfile::tempdir().unwrap();
        let id = agent_id(dir.path()).unwrap();
        assert_eq!(agent_id(dir.path()).unwrap(), id);
        fs::write(dir.path().join(".agent-id"), "garbage").unwrap();
        assert!(agent_id(dir.path()).is_err());
    }
}
