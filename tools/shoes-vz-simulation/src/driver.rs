//! One simulation from its first step to its verdict.
//!
//! ```text
//! calls, faults ─▶ calm: faults end ─▶ calls end ─▶ nothing is left ─▶ every slot is filled again ─▶ nothing is left
//! ```

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    sync::{Arc, Mutex, Once},
    time::{Duration, SystemTime},
};

use jiff::SignedDuration;
use tokio::sync::{mpsc, watch};
use turmoil::Sim;

use crate::{
    Options, Report,
    callers::{self, Phase, Progress, Shared, lock},
    parts::{self, RunningAgent, RunningServer},
    plan::{self, Fault, Oneway, Plan, SERVER},
    world::World,
};

/// Virtual time of one step: the resolution of messages and timers.
const TICK: Duration = Duration::from_millis(10);
/// Limit from the last fault to the end of the last call plan.
const TO_SETTLE: Duration = Duration::from_secs(400);
thread_local! {
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Runs one seed.
pub(crate) fn run(seed: u64, options: Options) -> anyhow::Result<Report> {
    catch_panics();
    let dir = scratch()?;
    let plan = Plan::of(seed);
    let world = World::new(
        seed,
        dir.path().to_owned(),
        plan.slots.clone(),
        plan.rates,
        options.mutation,
        options.log,
    );
    // Made once, before a crash can interrupt it.
    parts::template(&world)?;
    let mut simulation = Simulation::new(seed, plan, Arc::clone(&world));
    if let Err(Stop::Because(reason)) = simulation.run() {
        world.violated(reason);
    }
    Ok(Report {
        seed,
        violations: world.violations(),
        counts: world.counts(),
        trace: world.trace(),
        log: world.take_log(),
    })
}

/// In memory where possible: state is written often, and need not survive a power failure.
fn scratch() -> std::io::Result<tempfile::TempDir> {
    let builder = || {
        let mut builder = tempfile::Builder::new();
        builder.prefix("svz-sim-");
        builder
    };
    builder().tempdir_in("/dev/shm").or_else(|_| builder().tempdir())
}

fn catch_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            PANICS.with_borrow_mut(|all| all.push(info.to_string()));
            before(info);
        }));
    });
}

struct Simulation {
    plan: Plan,
    world: Arc<World>,
    sim: Sim<'static>,
    server: RunningServer,
    agents: Vec<RunningAgent>,
    progress: Shared<Progress>,
    phase: watch::Sender<Phase>,
    actions: usize,
    /// Hosts that end with the next step.
    dying: BTreeSet<String>,
    /// Hosts that are down, and when they restart.
    down: BTreeMap<String, Duration>,
    /// How long the next crash of an armed host lasts.
    armed: BTreeMap<String, Duration>,
    /// Agents with full disks, and until when.
    full: BTreeMap<usize, Duration>,
    /// Until when the disk of the server refuses writes.
    store_refuses: Option<Duration>,
    /// Links that are disturbed: how, and until when.
    links: BTreeMap<(String, String), (Link, Duration)>,
}

/// Why a simulation ended early.
enum Stop {
    /// The world has seen a violation.
    Violated,
    /// The driver has seen one.
    Because(String),
}

#[derive(Debug, Clone, Copy)]
enum Link {
    Cut(Oneway),
    Held,
}

impl Simulation {
    fn new(seed: u64, plan: Plan, world: Arc<World>) -> Self {
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(seed)
            .epoch(SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600))
            .simulation_duration(Duration::from_secs(24 * 3600))
            .tick_duration(TICK)
            .min_message_latency(Duration::ZERO)
            .max_message_latency(plan.latency)
            .tcp_capacity(4096)
            .enable_random_order();
        let mut sim = builder.build();
        let (server, phase) = (RunningServer::default(), watch::Sender::new(Phase::Calls));
        let progress = Shared::<Progress>::default();

        let (sender, receiver) = mpsc::unbounded_channel();
        world.run_tasks_by(sender);
        let receiver = Arc::new(Mutex::new(Some(receiver)));
        sim.host("vms", move || {
            let receiver = lock(&receiver).take();
            async move {
                let Some(mut tasks) = receiver else { return Ok(()) };
                while let Some(task) = tasks.recv().await {
                    tokio::spawn(task);
                }
                Ok(())
            }
        });
        let (world_, server_) = (Arc::clone(&world), Arc::clone(&server));
        sim.host(SERVER, move || {
            let life = parts::server(Arc::clone(&world_), Arc::clone(&server_));
            parts::process(Arc::clone(&world_), SERVER.into(), life)
        });
        let mut running = Vec::new();
        let hot = plan.hot.clone();
        for (n, slots) in plan.slots.iter().copied().enumerate() {
            let hot = hot.clone();
            let agent = RunningAgent::default();
            running.push(Arc::clone(&agent));
            let world = Arc::clone(&world);
            sim.host(plan::agent(n), move || {
                let life = parts::agent(Arc::clone(&world), n, slots, hot[n], Arc::clone(&agent));
                parts::process(Arc::clone(&world), plan::agent(n), life)
            });
        }
        let mut action_count = 0;
        for n in 0..plan.clients.len() {
            let actions = callers::actions(&plan, n, &world);
            action_count += actions.len();
            let (world, progress, phase) = (Arc::clone(&world), Arc::clone(&progress), phase.subscribe());
            let slots = plan.slots.iter().sum();
            sim.client(plan::client(n), async move {
                callers::act(actions, Arc::clone(&progress)).await?;
                match n {
                    0 => callers::last_wave(world, slots, phase, progress).await,
                    _ => Ok(()),
                }
            });
        }
        Self {
            plan,
            world,
            sim,
            server,
            agents: running,
            progress,
            phase,
            actions: action_count,
            dying: BTreeSet::new(),
            down: BTreeMap::new(),
            armed: BTreeMap::new(),
            full: BTreeMap::new(),
            store_refuses: None,
            links: BTreeMap::new(),
        }
    }

    /// An error ends the simulation early.
    fn run(&mut self) -> Result<(), Stop> {
        let mut faults = std::mem::take(&mut self.plan.faults).into_iter().peekable();
        while self.now() < self.plan.calm_at {
            while let Some((_, fault)) = faults.next_if(|(at, _)| *at <= self.now()) {
                self.inject(fault);
            }
            self.step()?;
        }
        self.heal();
        let up_by = self.now() + TO_SETTLE;
        self.until(up_by, "not every process is up", |s| s.is_up())?;
        let settled_by = self.now() + TO_SETTLE;
        self.until(settled_by, "the calls have not ended", |s| lock(&s.progress).done == s.actions)?;
        let settled_by = self.now() + TO_SETTLE;
        self.until_nothing_is_left(settled_by)?;
        self.world.note(format_args!("every slot is filled again"));
        self.phase.send_replace(Phase::LastWave);
        let filled_by = self.now() + TO_SETTLE;
        self.until(filled_by, "the last wave has not ended", |s| lock(&s.progress).last_wave_done)?;
        let settled_by = self.now() + TO_SETTLE;
        self.until_nothing_is_left(settled_by)
    }

    fn is_up(&self) -> bool {
        let running = lock(&self.server).is_some() && self.agents.iter().all(|s| lock(s).is_some());
        running && self.down.is_empty() && self.dying.is_empty()
    }

    fn now(&self) -> Duration {
        self.sim.elapsed()
    }

    fn step(&mut self) -> Result<(), Stop> {
        self.sim.step().map_err(|e| Stop::Because(format!("a process ended: {e}")))?;
        self.world.set_clock(self.sim.elapsed());
        let panics = PANICS.with_borrow_mut(std::mem::take);
        if let Some(panic) = panics.first() {
            return Err(Stop::Because(format!("a panic: {panic}")));
        }
        for host in std::mem::take(&mut self.dying) {
            self.sim.crash(host.as_str());
            self.world.died(&host);
        }
        for host in self.world.take_crashing() {
            let down = self.armed.remove(&host).unwrap_or(Duration::from_secs(1));
            self.crash(&host, down);
        }
        self.end_what_is_due();
        if self.world.is_violated() { Err(Stop::Violated) } else { Ok(()) }
    }

    fn until(&mut self, limit: Duration, condition: &str, done: impl Fn(&Self) -> bool) -> Result<(), Stop> {
        while !done(self) {
            if self.now() > limit {
                return Err(Stop::Because(format!(
                    "everything converges after the last fault: {condition} within {TO_SETTLE:?}"
                )));
            }
            self.step()?;
        }
        Ok(())
    }

    fn until_nothing_is_left(&mut self, limit: Duration) -> Result<(), Stop> {
        loop {
            let left = self.left();
            if left.is_empty() {
                self.world.tidy();
                return Ok(());
            }
            if self.now() > limit {
                return Err(Stop::Because(format!("nothing is left behind: {}", left.join("; "))));
            }
            // Checking costs more than a step.
            for _ in 0..20 {
                self.step()?;
            }
        }
    }

    /// What is left although no client wants anything any more.
    fn left(&self) -> Vec<String> {
        let mut left: Vec<String> = self
            .world
            .live()
            .iter()
            .filter(|vm| !vm.runner().is_hot())
            .map(|vm| format!("a VM of {} on agent-{}", vm.runner().name, vm.agent))
            .collect();
        for (n, agent) in self.agents.iter().enumerate() {
            let runners_path = parts::runners_path(&self.world, n);
            for name in bundles(&runners_path) {
                let path = runners_path.join(&name);
                // A hot VM may stay.
                let is_hot = self.world.bundle(&path).is_some_and(|runner| runner.is_hot());
                if !is_hot || self.world.vm(&path).is_none() {
                    left.push(format!("agent-{n} has {name}"));
                }
            }
            let Some(runners) = lock(agent).clone() else { continue };
            let (ends, board) =
                (runners.agent().ends.all().len(), runners.agent().board.watch().borrow().len());
            if ends + board > 0 {
                left.push(format!("agent-{n} keeps {ends} ends and shows {board} runners"));
            }
        }
        let (living, waiting) = self.world.servers_view();
        if living + waiting > 0 {
            left.push(format!("the server has {living} live runners and {waiting} callers"));
        }
        if self.world.is_degraded() {
            left.push("the server does not know yet that it can write again".into());
        }
        left
    }

    fn inject(&mut self, fault: Fault) {
        let world = Arc::clone(&self.world);
        match fault {
            Fault::Crash { process, down } => {
                world.fault(format_args!("{} crashes", process.host()));
                self.crash(&process.host(), down);
            }
            Fault::CrashAtStep { process, steps, down } => {
                world.fault(format_args!("{} is to crash after {steps} steps", process.host()));
                world.arm(&process.host(), steps);
                self.armed.insert(process.host(), down);
            }
            Fault::Restart { down } => {
                world.fault(format_args!("the server stops cleanly"));
                if let Some(fleet) = lock(&self.server).take() {
                    fleet.stopping().cancel();
                }
                world.disturb(SERVER);
                let until = self.now() + down;
                self.down.entry(SERVER.into()).or_insert(until);
            }
            Fault::PowerFailure { agent, down } => {
                world.fault(format_args!("the host of agent-{agent} loses power"));
                self.crash(&plan::agent(agent), down);
                for vm in world.live().into_iter().filter(|vm| vm.agent == agent) {
                    vm.end(shoes_vz_proto::vm::VmEndKind::HypervisorKilled, "the host lost power");
                }
            }
            Fault::Partition { between, oneway, lasts } => self.disturb(between, Link::Cut(oneway), lasts),
            Fault::Hold { between, lasts } => self.disturb(between, Link::Held, lasts),
            Fault::ClockJump { process, seconds } => {
                world.fault(format_args!("the wall clock of {} jumps by {seconds} s", process.host()));
                world.jump(&process.host(), SignedDuration::from_secs(seconds));
            }
            Fault::DiskFills { agent, lasts } => {
                world.fault(format_args!(
                    "the disk of the host of agent-{agent} is nearly full for {lasts:?}"
                ));
                world.fill(agent);
                let until = self.now() + lasts;
                self.full.insert(agent, until);
            }
            Fault::StoreRefuses { lasts } => {
                world.fault(format_args!("the disk of the server is full for {lasts:?}"));
                world.refuse_writes(true);
                self.store_refuses = Some(self.now() + lasts);
            }
            Fault::VmDies { which } => {
                let live = world.live();
                if let Some(vm) = live.get(which as usize % live.len().max(1)) {
                    world.fault(format_args!("the VM of {} dies", vm.runner().name));
                    vm.end(shoes_vz_proto::vm::VmEndKind::HypervisorKilled, "killed");
                }
            }
        }
    }

    fn crash(&mut self, host: &str, down: Duration) {
        // It ends with the next step.
        self.world.die(host);
        self.dying.insert(host.to_owned());
        if host == SERVER {
            lock(&self.server).take();
            self.world.set_servers_view(0, 0);
            self.world.server_writes(true);
            self.world.disturb(SERVER);
        } else {
            self.agents.iter().enumerate().filter(|(n, _)| plan::agent(*n) == host).for_each(|(_, s)| {
                lock(s).take();
            });
        }
        let until = self.now() + down;
        self.down.insert(host.to_owned(), until);
    }

    fn disturb(&mut self, between: (String, String), how: Link, lasts: Duration) {
        if self.links.contains_key(&between) {
            return;
        }
        let (a, b) = (between.0.as_str(), between.1.as_str());
        match how {
            Link::Cut(Oneway::Both) => self.sim.partition(a, b),
            Link::Cut(Oneway::There) => self.sim.partition_oneway(a, b),
            Link::Cut(Oneway::Back) => self.sim.partition_oneway(b, a),
            Link::Held => self.sim.hold(a, b),
        }
        self.world.fault(format_args!("between {a} and {b}: {how:?} for {lasts:?}"));
        self.world.disturb(a);
        let until = self.now() + lasts;
        self.links.insert(between, (how, until));
    }

    fn undisturb(&mut self, between: &(String, String), how: Link) {
        let (a, b) = (between.0.as_str(), between.1.as_str());
        match how {
            Link::Cut(Oneway::Both) => self.sim.repair(a, b),
            Link::Cut(Oneway::There) => self.sim.repair_oneway(a, b),
            Link::Cut(Oneway::Back) => self.sim.repair_oneway(b, a),
            Link::Held => self.sim.release(a, b),
        }
        self.world.note(format_args!("{a} and {b} can communicate again"));
        self.world.undisturb(a);
        self.links.remove(between);
    }

    fn end_what_is_due(&mut self) {
        let now = self.now();
        let due: Vec<String> =
            self.down.iter().filter(|(_, at)| **at <= now).map(|(h, _)| h.clone()).collect();
        for host in due {
            self.start(&host);
        }
        self.full.retain(|agent, until| {
            let full = *until > now;
            if !full {
                self.world.empty(*agent);
            }
            full
        });
        if self.store_refuses.is_some_and(|until| until <= now) {
            self.store_refuses = None;
            self.world.refuse_writes(false);
            self.world.note(format_args!("the disk of the server accepts writes again"));
        }
        let due: Vec<_> = self
            .links
            .iter()
            .filter(|(_, (_, at))| *at <= now)
            .map(|(pair, (how, _))| (pair.clone(), *how))
            .collect();
        for (pair, how) in due {
            self.undisturb(&pair, how);
        }
    }

    fn start(&mut self, host: &str) {
        if self.dying.contains(host) {
            return;
        }
        if self.sim.is_host_running(host) {
            // It has not stopped yet.
            self.world.die(host);
            self.dying.insert(host.to_owned());
            return;
        }
        self.down.remove(host);
        self.world.note(format_args!("{host} restarts"));
        self.sim.bounce(host);
        self.world.undisturb(host);
    }

    fn heal(&mut self) {
        self.world.note(format_args!("CALM"));
        self.world.calm();
        self.armed.clear();
        self.full.clear();
        self.store_refuses = None;
        let now = self.now();
        self.down.values_mut().for_each(|until| *until = now);
        for (pair, (how, _)) in self.links.clone() {
            self.undisturb(&pair, how);
        }
    }
}

fn bundles(runners_path: &Path) -> Vec<String> {
    let entries = fs::read_dir(runners_path).into_iter().flatten().flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|name| !name.starts_with('.')).collect()
}
