//! `run`: settings, build, serve, go. The VMs stay.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use shoes_vz_model::{Ambient, id::AgentId};
use shoes_vz_process::signals::Signals;
use shoes_vz_vm::spec::{Accelerator, Display, HypervisorKind};

use crate::{
    bundles::Lock,
    context::{Board, Context, OwnProgram},
    disk::{self, Disk},
    ends::Ends,
    files,
    hot::Pool,
    machines::OnThisHost,
    notify_ip::Notices,
    runners::Runners,
    server::{Host, Server},
    settings::Settings,
    slots::Slots,
    states::{self, States},
    tasks::Tasks,
};

/// Serves this host until told to stop.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let mut signals = Signals::catch().context("cannot install signal handlers")?;
    let _lock = Lock::take(&settings.runners_path)?;
    let agent_id = agent_id(&settings.state_dir)?;
    let tasks = Tasks::default();
    let notices = match settings.ip_notify_port {
        Some(port) => Some(Notices::listen(port, &tasks).await?),
        None => None,
    };
    let host = Host { agent_id, hostname: settings.hostname.clone(), max_runners: settings.max_runners };
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"), %agent_id, hostname = host.hostname, slots = host.max_runners,
        template = settings.template.name, runners_path = %settings.runners_path.display(), "agent"
    );
    let address = notices.as_ref().map(Notices::address);
    let ready_file = settings.ready_file.clone();
    let (server, token) = (settings.server.clone(), settings.token.clone());
    let ctx = tokio::select! {
        ctx = context(settings, agent_id, notices, tasks.clone()) => ctx?,
        _ = signals.stop() => return Ok(()),
    };
    let runners = Arc::new(Runners::new(ctx.clone()));
    runners.adopt_all().await.context("looking through the runners path")?;
    let server = Server::new(&server, token.as_ref(), &host, runners)?;
    let ready = ReadyFile { path: ready_file, agent_id, address };
    ready.remove()?;
    let (pool, disk) = (ctx.pool.clone(), ctx.disk.clone());
    tokio::select! {
        () = tasks.watched("the server's stream", server.serve(|_| ready.write())) => {}
        () = tasks.watched("watching the disk", disk.look_on(disk::LOOK_EVERY)) => {}
        () = tasks.watched("keeping VMs hot", pool.keep(ctx)) => {}
        _ = tasks.failed() => {}
        _ = signals.stop() => {}
    }
    let removed = ready.remove();
    match tasks.failure() {
        Some(reason) => anyhow::bail!(
            "a fault of the agent's own: {reason}. Its VMs go on; the next agent adopts them. Please report this"
        ),
        None => tracing::info!("the agent stops; its VMs go on, and the next agent adopts them"),
    }
    removed
}

/// What every VM of this host shares.
pub(crate) async fn context(
    settings: Settings,
    agent_id: AgentId,
    notices: Option<Notices>,
    tasks: Tasks,
) -> anyhow::Result<Arc<Context>> {
    settings.login.say().await;
    let display = display(&settings);
    let accelerator = accelerator(&settings).await;
    let mut hot = settings.hot;
    if hot.states.uses() {
        let possible = states::possible(settings.hypervisor, &settings.state_dir).await;
        hot.states = states::mode(hot.states, possible).map_err(anyhow::Error::msg)?;
    }
    let disk = Disk::new(settings.runners_path.clone(), settings.min_free_disk, Arc::new(disk::free_bytes));
    let slots = Slots::new(settings.max_runners);
    let states = States::below(&settings.runners_path);
    states.sweep(settings.max_runners).await;
    let program = std::env::current_exe().context("finding this program's own file")?;
    Ok(Arc::new(Context {
        agent_id: agent_id.to_string(),
        template: settings.template,
        runners_path: settings.runners_path,
        login: settings.login,
        hypervisor: settings.hypervisor,
        accelerator,
        display,
        network: settings.network,
        start_deadline: settings.start_deadline,
        max_lifetime: settings.max_lifetime,
        registration_deadline: settings.registration_deadline,
        unresponsive_guest_limit: settings.unresponsive_guest_limit,
        machines: Arc::new(OnThisHost::new(Arc::new(OwnProgram(program)))),
        ambient: Ambient::real(),
        board: Board::default(),
        ends: Ends::open(&settings.state_dir).with_context(|| {
            format!("reading the kept ends in {:?}; if the file is broken, remove it", settings.state_dir)
        })?,
        pool: Pool::new(hot, slots.clone()),
        slots,
        states,
        disk,
        notices,
        tasks,
    }))
}

/// A window, where one was asked for and this host can open it.
fn display(settings: &Settings) -> Display {
    match (settings.hypervisor, settings.display) {
        (HypervisorKind::Qemu, Display::Window) => match qemu_opens_windows() {
            Ok(()) => Display::Window,
            Err(reason) => {
                tracing::warn!(reason, "--enable-graphics: no windows can be opened here; VMs run without");
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
    match files::read(&path).with_context(|| format!("reading {path:?}"))? {
        Some(bytes) => String::from_utf8_lossy(&bytes)
            .trim()
            .parse()
            .with_context(|| format!("{path:?} holds no agent id; remove it to get a new one")),
        None => {
            let id = AgentId::random();
            files::write(&path, format!("{id}\n").as_bytes()).with_context(|| format!("writing {path:?}"))?;
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

/// There while the server has accepted this agent, for whoever starts it to wait for.
struct ReadyFile {
    path: Option<PathBuf>,
    agent_id: AgentId,
    address: Option<std::net::SocketAddr>,
}

impl ReadyFile {
    fn write(&self) {
        let Some(path) = &self.path else { return };
        let words = serde_json::json!({
            "agent_id": self.agent_id,
            "pid": std::process::id(),
            "ip_notify_addr": self.address,
        });
        if let Err(error) = files::write(path, format!("{words}\n").as_bytes()) {
            tracing::error!(?path, %error, "--ready-file cannot be written");
        }
    }

    fn remove(&self) -> anyhow::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        match fs::remove_file(path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(e).with_context(|| format!("--ready-file: removing the old {path:?}"))
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
