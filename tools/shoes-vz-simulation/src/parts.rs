//! The product's server and agents, as the software of simulated hosts.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use russh::keys::{
    PrivateKey,
    ssh_key::{LineEnding, private::Ed25519Keypair},
};
use shoes_vz_agent::{
    agent::{Agent, Limits},
    bundles::Lock,
    control_plane::{ControlPlane, Registration},
    disk::Disk,
    ends::Ends,
    host::Host,
    pool::{HotPlan, Idle},
    runners::Runners,
    slots::Slots,
    ssh::Login,
};
use shoes_vz_model::{AgentId, ResourceType};
use shoes_vz_server::{
    edge::Defaults,
    fleet::{
        core::{Core, Policy},
        event::Write,
        runner::Phase,
    },
    metrics::Metrics,
    owner::{self, Fleet},
    serve::{GrpcOptions, serve_grpc},
    store::{Loaded, Sqlite, Store, StoreError},
};
use shoes_vz_vm::template::TemplateDir;
use tokio::time::sleep;

use crate::{machines::SimHost, mutation::Mutation, net, plan, vm::SLOWEST_START, world::World};

/// How long a runner outlives its last caller here.
pub(crate) const GRACE: Duration = Duration::from_secs(4);
/// From the script's end to a runner.
const REGISTRATION: Duration = Duration::from_secs(5);
/// How long a guest may answer nothing.
const UNRESPONSIVE_GUEST: Duration = Duration::from_secs(30);
/// Bytes a host must have free.
const WANTED_FREE: u64 = 1 << 30;
/// HTTP/2 pings, and the time to answer one: a dead connection is found within their sum.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// The server's present life, for the driver.
pub(crate) type RunningServer = Arc<std::sync::Mutex<Option<Fleet>>>;

/// A process, until it has ended or is to die.
pub(crate) async fn process(
    world: Arc<World>,
    host: String,
    life: impl Future<Output = turmoil::Result>,
) -> turmoil::Result {
    tokio::select! {
        biased;
        () = world.until_dying(&host) => Ok(()),
        ended = life => ended,
    }
}

/// The server, from its start to its end.
pub(crate) async fn server(world: Arc<World>, running: RunningServer) -> turmoil::Result {
    let state = world.dir.join("server");
    let (store, mut loaded) = Sqlite::open(&state)?;
    mutate_loaded(&world, &mut loaded);
    let policy = Policy {
        grace: if world.has_mutation(Mutation::AbandonedRunnersStay) {
            Duration::from_secs(1 << 30)
        } else {
            GRACE
        },
        agent_forget: if world.has_mutation(Mutation::AgentsAreForgottenAtOnce) {
            Duration::ZERO
        } else {
            Duration::from_secs(7 * 24 * 3600)
        },
        ..Policy::default()
    };
    let metrics = Arc::new(Metrics::new()?);
    let durable = Durable { sqlite: store, world: Arc::clone(&world) };
    let (fleet, owner) =
        owner::new(policy, loaded, durable, Arc::clone(&metrics), world.ambient(plan::SERVER));
    let inspected = Arc::clone(&world);
    let owner = owner.inspected(move |core: &Core| {
        if let Some(reason) = core.broken_invariant() {
            inspected.violated(format!("an invariant of the server: {reason}"));
        }
        inspected.set_servers_view(core.living(), core.waiting());
        inspected.server_writes(core.can_write());
    });
    let options = GrpcOptions {
        token: None,
        defaults: Defaults {
            resource_type: ResourceType::Nano,
            add_timeout: Duration::from_secs(300),
            delete_timeout: Duration::from_secs(120),
        },
        keepalive: KEEPALIVE,
    };
    world.note(format_args!("the server is up"));
    let incoming = net::incoming(Arc::clone(&world), plan::SERVER).await?;
    *running.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(fleet.clone());
    let grpc = serve_grpc(fleet, metrics, options, incoming).await?;
    let (owner, grpc) = tokio::join!(owner.run(), grpc);
    owner?;
    grpc?;
    world.note(format_args!("the server has stopped"));
    Ok(())
}

fn mutate_loaded(world: &World, loaded: &mut Loaded) {
    if world.has_mutation(Mutation::TombstonesAreLost) {
        loaded.runners.retain(|r| r.is_alive());
    }
    if world.has_mutation(Mutation::ServedNamesAreForgotten) {
        for runner in &mut loaded.runners {
            if let Phase::Ended(ended) = &mut runner.phase {
                (ended.report.job_seen, ended.report.job) = (false, None);
                ended.report.guest_runner_state = 0;
            }
        }
    }
    if world.has_mutation(Mutation::RunnersAreLost) {
        loaded.runners.retain(|r| matches!(r.phase, Phase::Ended(_)));
    }
}

/// The real store, on a disk that takes its time.
struct Durable {
    sqlite: Sqlite,
    world: Arc<World>,
}

impl Store for Durable {
    async fn commit(&self, writes: Arc<Vec<Write>>) -> Result<(), StoreError> {
        self.world.step(plan::SERVER).await;
        if self.world.store_refuses() && self.world.has_mutation(Mutation::RefusedWritesAreCalledDurable) {
            return Ok(());
        }
        self.probe().await?;
        if self.world.has_mutation(Mutation::StoreForgetsOnCrash) && self.world.one_in(3) {
            self.world.stored(&writes);
            return Ok(());
        }
        if self.world.one_in(4) {
            sleep(self.world.millis(0, 20)).await;
        }
        self.sqlite.write(&writes)?;
        self.world.stored(&writes);
        self.world.step(plan::SERVER).await;
        Ok(())
    }

    async fn probe(&self) -> Result<(), StoreError> {
        if !self.world.store_refuses() {
            return Ok(());
        }
        let full = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_FULL);
        let source = rusqlite::Error::SqliteFailure(full, Some("as the simulation has it".into()));
        Err(StoreError::Write { path: "fleet.sqlite3".into(), source })
    }
}

fn hot_plan(hot: plan::Hot) -> Result<HotPlan, String> {
    let mut plan = HotPlan::none();
    plan.parse_wanted(hot.wanted)?;
    plan.max_age = plan::HOT_MAX_AGE;
    plan.idle = if hot.paused { Idle::Paused } else { Idle::Running };
    Ok(plan)
}

/// A template that is never booted, with a key that is never used.
pub(crate) fn template(world: &World) -> anyhow::Result<TemplateDir> {
    let dir = world.dir.join("template");
    if !dir.exists() {
        fs::create_dir_all(&dir)?;
        for file in ["Disk.img", "kernel", "initrd"] {
            fs::write(dir.join(file), vec![0; 512])?;
        }
        let key = PrivateKey::from(Ed25519Keypair::from_seed(&[1; 32]));
        fs::write(dir.join("key"), key.to_openssh(LineEnding::LF)?.as_bytes())?;
        let meta = serde_json::json!({"name": "simulated", "os": "linux", "guest_agent": "channel", "ssh_key_file": "key"});
        fs::write(dir.join("Template.json"), meta.to_string())?;
    }
    Ok(TemplateDir::open(&dir)?)
}

/// Where an agent keeps its bundles.
pub(crate) fn runners_path(world: &World, agent: usize) -> PathBuf {
    world.dir.join(format!("r{agent}"))
}

/// Where it keeps everything else.
pub(crate) fn state_dir(world: &World, agent: usize) -> PathBuf {
    world.dir.join(format!("s{agent}"))
}

/// What the driver sees of an agent's present life.
pub(crate) type RunningAgent = Arc<std::sync::Mutex<Option<Arc<Runners>>>>;

/// An agent. Never returns.
pub(crate) async fn agent(
    world: Arc<World>,
    n: usize,
    slots: usize,
    hot: plan::Hot,
    running: RunningAgent,
) -> turmoil::Result {
    let (runners_path, state_dir) = (runners_path(&world, n), state_dir(&world, n));
    fs::create_dir_all(&runners_path)?;
    fs::create_dir_all(&state_dir)?;
    let _lock = Lock::take(&runners_path)?;
    if world.has_mutation(Mutation::VmsAreForgottenOnRestart) {
        let _ = fs::remove_file(state_dir.join(".ends"));
        for entry in fs::read_dir(&runners_path)?.flatten().filter(|e| e.path().is_dir()) {
            fs::remove_dir_all(entry.path())?;
        }
    }
    let name = plan::agent(n);
    let ambient = world.ambient(&name);
    let agent_id: AgentId = if world.has_mutation(Mutation::IdentityIsLost) {
        ambient.uuid().into()
    } else {
        uuid::Uuid::from_u128(0xa9e_0000_0000_4000_8000_0000_0000_0000 + n as u128).into()
    };
    let template = template(&world)?;
    let key = template.ssh_key().ok_or("the template has no key")?;
    let login = Login::new("runner", &key, "")?;
    let max_runners = u32::try_from(slots)? + u32::from(world.has_mutation(Mutation::OneSlotTooMany));
    let slots = Slots::new(max_runners);
    let space = Arc::clone(&world);
    let free_bytes = move |_: &Path| Ok(if space.is_full(n) { 1 } else { 10 * WANTED_FREE });
    let disk = Disk::new(runners_path.clone(), WANTED_FREE, Arc::new(free_bytes));
    let vms = Arc::new(SimHost::new(Arc::clone(&world), n, slots.clone()));
    let host = Host { ambient, ..Host::new(agent_id, template, runners_path, login, vms) };
    let limits = Limits {
        start_deadline: SLOWEST_START,
        max_lifetime: Some(plan::MAX_LIFETIME),
        registration_deadline: REGISTRATION,
        unresponsive_guest_limit: Some(UNRESPONSIVE_GUEST),
    };
    let agent = Agent::new(host, limits, slots, hot_plan(hot)?, disk.clone(), Ends::open(&state_dir)?);
    let runners = Arc::new(Runners::new(Arc::clone(&agent)));
    tokio::spawn(disk.check_periodically(Duration::from_secs(1)));
    runners.adopt_all().await?;
    tokio::spawn(async move { agent.pool.keep().await });
    *running.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(Arc::clone(&runners));
    let registration = Registration { agent_id, hostname: name.clone(), max_runners };
    let uri = format!("http://{}:{}", plan::SERVER, net::PORT);
    let server = ControlPlane::over(&uri, None, &registration, runners, |endpoint| {
        net::connect(&endpoint, &world, &name)
    })?;
    world.note(format_args!("{name} is up"));
    server.serve(|_| {}).await;
    Ok(())
}
