//! What is true whatever server and agents believe: the VMs there are, what callers were told, and what must never be.
//!
//! Everything that happens is also written into a trace; two runs of one seed have the same one.

mod fate;

use std::{
    collections::{BTreeMap, BTreeSet},
    future::Future,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use jiff::{SignedDuration, Timestamp};
use rand::{SeedableRng as _, rngs::SmallRng};
use shoes_vz_model::bundle::RuntimeMetadata;
use shoes_vz_proto::agent::EndKind;
use shoes_vz_server::fleet::{runner::Phase, types::Write};
use tokio::sync::{mpsc, watch};

use crate::{
    net::Wire,
    plan::{self, Rates},
    sabotage::Sabotage,
    vm::SimVm,
};

/// 2026-01-01: when every simulation begins.
const EPOCH: Timestamp = Timestamp::constant(1_767_225_600, 0);

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// See the module.
pub(crate) struct World {
    /// For state directories and bundles.
    pub(crate) dir: PathBuf,
    /// What is broken on purpose.
    pub(crate) sabotage: Option<Sabotage>,
    state: Mutex<State>,
}

struct State {
    clock: Duration,
    skews: BTreeMap<String, SignedDuration>,
    rng: SmallRng,
    rates: Rates,
    /// Where the VMs' own tasks run: outside of every agent.
    tasks: Option<mpsc::UnboundedSender<Task>>,
    /// Hosts that are to crash after so many more steps of theirs.
    armed: BTreeMap<String, u32>,
    /// Hosts that are to crash as soon as can be.
    crashing: BTreeSet<String>,
    /// Hosts of which nothing goes on any more.
    dying: watch::Sender<BTreeSet<String>>,
    /// Every host's connections, in the order they were made.
    wires: BTreeMap<String, Vec<Weak<Wire>>>,
    slots: Vec<usize>,
    /// Agents whose disks are nearly full.
    full: BTreeSet<usize>,
    /// Whether the server's disk takes nothing.
    store_refuses: bool,
    /// Names of which some VM has done its job.
    jobs_done: BTreeSet<String>,
    /// Runners whose agents have written down that a job was seen.
    jobs_seen: BTreeSet<String>,
    /// Names that have served, as the server has stored.
    served: BTreeSet<String>,
    bundles: BTreeMap<PathBuf, Named>,
    vms: Vec<Arc<SimVm>>,
    /// Runner ids the server has stored, tombstones too.
    durable: BTreeSet<String>,
    cloud: BTreeMap<String, Told>,
    /// Ways that are disturbed now: a client's to the server, or the server itself.
    disturbed: BTreeSet<String>,
    /// When a way was last disturbed.
    last_disturbed: BTreeMap<String, Duration>,
    /// Agents the server has confirmed to be cordoned, and when it did.
    cordoned: BTreeMap<String, Duration>,
    /// Uncordons asked for, and those that are over: as long as these differ nobody knows which order comes last.
    uncordons: BTreeMap<String, (u64, u64)>,
    /// When each name was first asked for.
    asked: BTreeMap<String, Duration>,
    /// Living runners and waiting callers, as the server has them.
    servers_view: (usize, usize),
    /// Whether the server has found that it can write.
    server_writes: bool,
    violations: Vec<String>,
    trace: DefaultHasher,
    log: Option<Vec<String>>,
    counts: Counts,
}

/// Who a bundle is for.
#[derive(Debug, Clone)]
pub(crate) struct Named {
    pub(crate) runner: String,
    pub(crate) name: String,
    pub(crate) cloud: String,
}

impl Named {
    /// As a bundle says of itself.
    pub(crate) fn of(meta: RuntimeMetadata) -> Self {
        Self { runner: meta.runner_id, name: meta.runner_name, cloud: meta.cloud_id }
    }

    /// A hot VM: no runner's yet.
    pub(crate) fn is_hot(&self) -> bool {
        self.name.is_empty()
    }
}

impl State {
    /// Whether this VM is one its agent should not have been given.
    fn is_unwelcome(&self, vm: &SimVm) -> bool {
        let since = self.cordoned.get(&plan::agent(vm.agent));
        since.zip(self.asked.get(&vm.named().name)).is_some_and(|(cordoned, asked)| cordoned < asked)
    }
}

/// What callers know of a runner.
#[derive(Debug, Clone, Copy, Default)]
struct Told {
    /// Its guest has answered SSH.
    ready: bool,
    /// Some caller was told that it has it.
    claimed: bool,
    /// Some caller asked for its end.
    deleted: bool,
}

/// What a run did, for its report.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    /// Faults injected.
    pub faults: u64,
    /// VMs started.
    pub vms: u64,
    /// Jobs that ran to their end.
    pub jobs: u64,
    /// Calls answered.
    pub calls: u64,
}

impl World {
    pub(crate) fn new(
        seed: u64,
        dir: PathBuf,
        slots: Vec<usize>,
        rates: Rates,
        sabotage: Option<Sabotage>,
        log: bool,
    ) -> Arc<Self> {
        let state = State {
            clock: Duration::ZERO,
            skews: BTreeMap::new(),
            rng: SmallRng::seed_from_u64(seed ^ 0x5eed),
            rates,
            tasks: None,
            armed: BTreeMap::new(),
            crashing: BTreeSet::new(),
            dying: watch::Sender::default(),
            wires: BTreeMap::new(),
            slots,
            full: BTreeSet::new(),
            store_refuses: false,
            jobs_done: BTreeSet::new(),
            jobs_seen: BTreeSet::new(),
            served: BTreeSet::new(),
            bundles: BTreeMap::new(),
            vms: Vec::new(),
            durable: BTreeSet::new(),
            cloud: BTreeMap::new(),
            disturbed: BTreeSet::new(),
            last_disturbed: BTreeMap::new(),
            cordoned: BTreeMap::new(),
            uncordons: BTreeMap::new(),
            asked: BTreeMap::new(),
            servers_view: (0, 0),
            server_writes: true,
            violations: Vec::new(),
            trace: DefaultHasher::new(),
            log: log.then(Vec::new),
            counts: Counts::default(),
        };
        Arc::new(Self { dir, sabotage, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this is what is broken on purpose.
    pub(crate) fn sabotaged(&self, by: Sabotage) -> bool {
        self.sabotage == Some(by)
    }

    // VMs.

    pub(crate) fn bundle_made(&self, path: &Path, named: Named) {
        self.lock().bundles.insert(path.to_owned(), named);
    }

    pub(crate) fn bundle(&self, path: &Path) -> Option<Named> {
        self.lock().bundles.get(path).cloned()
    }

    /// The live VM of a bundle.
    pub(crate) fn vm(&self, bundle: &Path) -> Option<Arc<SimVm>> {
        self.lock().vms.iter().find(|vm| vm.bundle() == bundle && vm.is_live()).cloned()
    }

    pub(crate) fn live(&self) -> Vec<Arc<SimVm>> {
        self.lock().vms.iter().filter(|vm| vm.is_live()).cloned().collect()
    }

    pub(crate) fn launched(&self, vm: &Arc<SimVm>) {
        let live = self.live();
        let named = vm.named();
        self.note(format_args!("agent-{} starts a VM for {} ({})", vm.agent, named.name, named.runner));
        let there = live.iter().filter(|other| other.agent == vm.agent).count();
        let slots = self.lock().slots[vm.agent];
        if there >= slots {
            self.violated(format!(
                "no slot used twice: agent-{} has {slots}, and starts VM {}",
                vm.agent,
                there + 1
            ));
        }
        if !named.is_hot() {
            self.given_to_a_runner(vm);
        }
        let mut state = self.lock();
        state.vms.push(Arc::clone(vm));
        state.counts.vms += 1;
    }

    /// A bundle has another name, and is what its metadata say now.
    pub(crate) fn renamed(&self, from: &Path, to: &Path, named: Named) {
        let vm = self.vm(from);
        self.note(format_args!("a hot VM becomes {} ({})", named.name, named.runner));
        {
            let mut state = self.lock();
            state.bundles.remove(from);
            state.bundles.insert(to.to_owned(), named.clone());
        }
        let Some(vm) = vm else { return };
        let ready = vm.is_ready();
        let cloud = named.cloud.clone();
        vm.renamed(to.to_owned(), named);
        if ready {
            self.lock().cloud.entry(cloud).or_default().ready = true;
        }
        self.given_to_a_runner(&vm);
    }

    /// A VM is that runner's from now on.
    fn given_to_a_runner(&self, vm: &Arc<SimVm>) {
        let named = vm.named();
        let others = self.live().into_iter().filter(|other| !Arc::ptr_eq(other, vm));
        if let Some(twin) = others.into_iter().find(|other| other.named().name == named.name) {
            self.violated(format!(
                "one VM for each name: {} has a VM on agent-{}, and another is started on agent-{}",
                named.name, twin.agent, vm.agent
            ));
        }
        if !self.lock().durable.contains(&named.runner) {
            self.violated(format!(
                "no VM without a row: {} is started, and the server never stored it",
                named.name
            ));
        }
        if self.lock().served.contains(&named.name) {
            self.violated(format!(
                "no second VM for a job that is done: agent-{} starts one for {}",
                vm.agent, named.name
            ));
        }
        if self.lock().is_unwelcome(vm) {
            self.violated(format!(
                "a cordoned agent takes nothing new: agent-{} was cordoned before {} was asked for, and starts it",
                vm.agent, named.name
            ));
        }
    }

    /// An agent ends a VM.
    pub(crate) fn stopped(&self, vm: &SimVm) {
        let told = self.lock().cloud.get(&vm.named().cloud).copied().unwrap_or_default();
        self.note(format_args!("agent-{} stops the VM of {}", vm.agent, vm.named().name));
        if vm.works_on_a_job() && told.claimed && !told.deleted {
            self.violated(format!(
                "no running job is ended: the VM of {} is stopped during its job, and nobody asked for it",
                vm.named().name
            ));
        }
    }

    pub(crate) fn ready(&self, vm: &SimVm) {
        vm.set_ready();
        let named = vm.named();
        if !named.is_hot() {
            self.lock().cloud.entry(named.cloud).or_default().ready = true;
        }
    }

    pub(crate) fn job_done(&self, vm: &SimVm) {
        {
            let mut state = self.lock();
            state.counts.jobs += 1;
            state.jobs_done.insert(vm.named().name);
        }
        self.note(format_args!("{} has done its job", vm.named().name));
    }

    // Operators.

    /// A cordon is confirmed that was asked for when [`World::uncordons`] was `before`.
    pub(crate) fn cordoned(&self, agent: &str, before: (u64, u64)) {
        if before.0 != before.1 || self.uncordons(agent) != before {
            return;
        }
        let mut state = self.lock();
        let now = state.clock;
        state.cordoned.insert(agent.to_owned(), now);
    }

    /// Uncordons asked for, and over.
    pub(crate) fn uncordons(&self, agent: &str) -> (u64, u64) {
        self.lock().uncordons.get(agent).copied().unwrap_or_default()
    }

    pub(crate) fn to_be_uncordoned(&self, agent: &str) {
        let mut state = self.lock();
        state.cordoned.remove(agent);
        state.uncordons.entry(agent.to_owned()).or_default().0 += 1;
    }

    pub(crate) fn uncordon_is_over(&self, agent: &str) {
        self.lock().uncordons.entry(agent.to_owned()).or_default().1 += 1;
    }

    pub(crate) fn asked(&self, name: &str) {
        let mut state = self.lock();
        let now = state.clock;
        state.asked.entry(name.to_owned()).or_insert(now);
    }

    // What the server stored.

    pub(crate) fn stored(&self, writes: &[Write]) {
        let mut state = self.lock();
        for write in writes {
            match write {
                Write::Runner(runner) => {
                    let id = runner.id.to_string();
                    if let Phase::Ended(ended) = &runner.phase
                        && ended.report.end.as_ref().is_some_and(|e| e.kind() == EndKind::Finished)
                        && state.jobs_seen.contains(&id)
                    {
                        state.served.insert(runner.name.to_string());
                    }
                    state.durable.insert(id);
                }
                Write::RemoveRunner(id) => {
                    state.durable.remove(&id.to_string());
                }
                _ => {}
            }
        }
    }

    /// A bundle is removed, and this is what its agent wrote down last.
    pub(crate) fn removed(&self, meta: &RuntimeMetadata) {
        if meta.job_seen {
            self.lock().jobs_seen.insert(meta.runner_id.clone());
        }
    }

    /// Whether a job of this name was done.
    pub(crate) fn is_done(&self, name: &str) -> bool {
        self.lock().jobs_done.contains(name)
    }

    pub(crate) fn servers_view(&self) -> (usize, usize) {
        self.lock().servers_view
    }

    pub(crate) fn server_writes(&self, writes: bool) {
        self.lock().server_writes = writes;
    }

    /// Whether the server has still to find that it can write again.
    pub(crate) fn is_degraded(&self) -> bool {
        !self.lock().server_writes
    }

    pub(crate) fn set_servers_view(&self, living: usize, waiting: usize) {
        self.lock().servers_view = (living, waiting);
    }

    // Callers.

    pub(crate) fn claimed(&self, name: &str, cloud: &str) {
        let told = {
            let mut state = self.lock();
            let told = state.cloud.entry(cloud.to_owned()).or_default();
            told.claimed = true;
            *told
        };
        if !told.ready {
            self.violated(format!("a caller was given {name}, and its guest never answered SSH"));
        }
    }

    pub(crate) fn delete_wanted(&self, cloud: &str) {
        self.lock().cloud.entry(cloud.to_owned()).or_default().deleted = true;
    }

    /// Every cloud id a caller was ever given.
    pub(crate) fn given(&self) -> Vec<String> {
        self.lock().cloud.iter().filter(|(_, told)| told.claimed).map(|(id, _)| id.clone()).collect()
    }

    /// The way from this host, or to the server itself, is disturbed from now on.
    pub(crate) fn disturb(&self, host: &str) {
        self.lock().disturbed.insert(host.to_owned());
    }

    /// No longer.
    pub(crate) fn undisturb(&self, host: &str) {
        let mut state = self.lock();
        let now = state.clock;
        if state.disturbed.remove(host) {
            state.last_disturbed.insert(host.to_owned(), now);
        }
    }

    /// A call of `client`'s is over; it began at `began` and had `deadline`.
    pub(crate) fn call_over(
        &self,
        client: &str,
        what: &str,
        began: Duration,
        deadline: Duration,
        answered: bool,
    ) {
        let (now, disturbed) = {
            let mut state = self.lock();
            state.counts.calls += u64::from(answered);
            let disturbed = [client, plan::SERVER].into_iter().any(|host| {
                state.disturbed.contains(host)
                    || state.last_disturbed.get(host).is_some_and(|at| *at >= began)
            });
            (state.clock, disturbed)
        };
        if !disturbed && !answered && now.saturating_sub(began) >= deadline {
            self.violated(format!(
                "every call is answered in time: {client} had no answer to {what} within {deadline:?}"
            ));
        }
    }

    // The record.

    pub(crate) fn fault(&self, words: std::fmt::Arguments<'_>) {
        self.lock().counts.faults += 1;
        self.note(format_args!("FAULT: {words}"));
    }

    pub(crate) fn note(&self, words: std::fmt::Arguments<'_>) {
        let mut state = self.lock();
        // The directory's name is the one thing of this machine's in it.
        let line =
            format!("{:>9.3} {words}", state.clock.as_secs_f64()).replace(&*self.dir.to_string_lossy(), "…");
        line.hash(&mut state.trace);
        if let Some(log) = &mut state.log {
            log.push(line);
        }
    }

    pub(crate) fn violated(&self, words: String) {
        self.note(format_args!("VIOLATION: {words}"));
        let mut state = self.lock();
        if !state.violations.contains(&words) {
            state.violations.push(words);
        }
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.lock().violations.clone()
    }

    pub(crate) fn is_violated(&self) -> bool {
        !self.lock().violations.is_empty()
    }

    pub(crate) fn trace(&self) -> u64 {
        self.lock().trace.finish()
    }

    pub(crate) fn take_log(&self) -> Vec<String> {
        self.lock().log.take().unwrap_or_default()
    }

    pub(crate) fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Forgets VMs that are over, so that a long run stays fast.
    pub(crate) fn tidy(&self) {
        self.lock().vms.retain(|vm| vm.is_live());
    }
}
