//! The truth, independent of what server and agents know: the live VMs, the answers that callers got, and the invariants.
//!
//! Everything that happens is also hashed into a trace, which is the same for every run of a seed.

mod faults;

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
use shoes_vz_server::fleet::{event::Write, runner::Phase};
use tokio::sync::{mpsc, watch};

use crate::{
    mutation::Mutation,
    plan::{self, Rates},
    vm::{RunnerRef, SimVm},
    wire::Wire,
};

/// 2026-01-01: when every simulation starts.
const EPOCH: Timestamp = Timestamp::constant(1_767_225_600, 0);

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

pub(crate) struct World {
    /// For state directories and bundles.
    pub(crate) dir: PathBuf,
    pub(crate) mutation: Option<Mutation>,
    state: Mutex<State>,
}

struct State {
    clock: Duration,
    skews: BTreeMap<String, SignedDuration>,
    rng: SmallRng,
    rates: Rates,
    /// Runs the tasks of the VMs, outside of every agent.
    tasks: Option<mpsc::UnboundedSender<Task>>,
    /// Hosts that are to crash after so many more steps.
    armed: BTreeMap<String, u32>,
    /// Hosts that are to crash now.
    crashing: BTreeSet<String>,
    /// Hosts on which nothing runs any more.
    dying: watch::Sender<BTreeSet<String>>,
    /// The connections of each host, in the order they were made.
    wires: BTreeMap<String, Vec<Weak<Wire>>>,
    slots: Vec<usize>,
    /// Agents whose disks are nearly full.
    full: BTreeSet<usize>,
    /// Whether the disk of the server refuses writes.
    store_refuses: bool,
    /// Names whose job a VM has done.
    jobs_done: BTreeSet<String>,
    /// Runners whose agents have recorded that a job was seen.
    jobs_seen: BTreeSet<String>,
    /// Names whose finished runner the server has stored.
    served: BTreeSet<String>,
    bundles: BTreeMap<PathBuf, RunnerRef>,
    vms: Vec<Arc<SimVm>>,
    /// Runner IDs that the server has stored, including tombstones.
    durable: BTreeSet<String>,
    cloud: BTreeMap<String, CallerView>,
    /// Hosts whose connection to the server is disturbed now, or the server itself.
    disturbed: BTreeSet<String>,
    /// When each disturbance ended.
    last_disturbed: BTreeMap<String, Duration>,
    /// Agents with a confirmed cordon, and when the server confirmed it.
    cordoned: BTreeMap<String, Duration>,
    /// Uncordons requested and confirmed: while these differ, the order of cordon and uncordon is unknown.
    uncordons: BTreeMap<String, (u64, u64)>,
    /// When each name was first requested.
    requested: BTreeMap<String, Duration>,
    /// Live runners and waiting callers, as the server counts them.
    servers_view: (usize, usize),
    /// Whether the server knows that it can write.
    server_writes: bool,
    violations: Vec<String>,
    trace: DefaultHasher,
    log: Option<Vec<String>>,
    counts: Counts,
}

impl State {
    /// Whether this VM was requested after its agent was cordoned.
    fn breaks_cordon(&self, vm: &SimVm) -> bool {
        let since = self.cordoned.get(&plan::agent(vm.agent));
        since
            .zip(self.requested.get(&vm.runner().name))
            .is_some_and(|(cordoned, requested)| cordoned < requested)
    }
}

/// What callers know about a runner.
#[derive(Debug, Clone, Copy, Default)]
struct CallerView {
    /// Its guest has answered SSH.
    ready: bool,
    /// AddInstance returned it.
    returned: bool,
    /// Its deletion was requested.
    deleted: bool,
}

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
        mutation: Option<Mutation>,
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
            requested: BTreeMap::new(),
            servers_view: (0, 0),
            server_writes: true,
            violations: Vec::new(),
            trace: DefaultHasher::new(),
            log: log.then(Vec::new),
            counts: Counts::default(),
        };
        Arc::new(Self { dir, mutation, state: Mutex::new(state) })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has_mutation(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    // VMs.

    pub(crate) fn bundle_made(&self, path: &Path, runner: RunnerRef) {
        self.lock().bundles.insert(path.to_owned(), runner);
    }

    pub(crate) fn bundle(&self, path: &Path) -> Option<RunnerRef> {
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
        let runner = vm.runner();
        self.note(format_args!("agent-{} starts a VM for {} ({})", vm.agent, runner.name, runner.id));
        let count = live.iter().filter(|other| other.agent == vm.agent).count();
        let slots = self.lock().slots[vm.agent];
        if count >= slots {
            self.violated(format!(
                "no slot used twice: agent-{} has {slots}, but starts VM {}",
                vm.agent,
                count + 1
            ));
        }
        if !runner.is_hot() {
            self.check_runner(vm);
        }
        let mut state = self.lock();
        state.vms.push(Arc::clone(vm));
        state.counts.vms += 1;
    }

    /// A hot VM was claimed: its bundle has a new name, and its metadata names the runner.
    pub(crate) fn renamed(&self, from: &Path, to: &Path, runner: RunnerRef) {
        let vm = self.vm(from);
        self.note(format_args!("a hot VM becomes {} ({})", runner.name, runner.id));
        {
            let mut state = self.lock();
            state.bundles.remove(from);
            state.bundles.insert(to.to_owned(), runner.clone());
        }
        let Some(vm) = vm else { return };
        let ready = vm.is_ready();
        let cloud = runner.cloud.clone();
        vm.renamed(to.to_owned(), runner);
        if ready {
            self.lock().cloud.entry(cloud).or_default().ready = true;
        }
        self.check_runner(&vm);
    }

    /// Checks the invariants of a VM that belongs to a runner from now on.
    fn check_runner(&self, vm: &Arc<SimVm>) {
        let runner = vm.runner();
        let others = self.live().into_iter().filter(|other| !Arc::ptr_eq(other, vm));
        if let Some(twin) = others.into_iter().find(|other| other.runner().name == runner.name) {
            self.violated(format!(
                "one VM for each name: {} has a VM on agent-{}, but another is started on agent-{}",
                runner.name, twin.agent, vm.agent
            ));
        }
        if !self.lock().durable.contains(&runner.id) {
            self.violated(format!(
                "no VM without a row: {} is started, but the server never stored it",
                runner.name
            ));
        }
        if self.lock().served.contains(&runner.name) {
            self.violated(format!(
                "no second VM for a job that is done: agent-{} starts one for {}",
                vm.agent, runner.name
            ));
        }
        if self.lock().breaks_cordon(vm) {
            self.violated(format!(
                "a cordoned agent gets no new runner: agent-{} was cordoned before {} was requested, but starts it",
                vm.agent, runner.name
            ));
        }
    }

    /// An agent ends a VM.
    pub(crate) fn stopped(&self, vm: &SimVm) {
        let caller = self.lock().cloud.get(&vm.runner().cloud).copied().unwrap_or_default();
        self.note(format_args!("agent-{} stops the VM of {}", vm.agent, vm.runner().name));
        if vm.works_on_a_job() && caller.returned && !caller.deleted {
            self.violated(format!(
                "no running job is ended: the VM of {} is stopped during its job without a request",
                vm.runner().name
            ));
        }
    }

    pub(crate) fn ready(&self, vm: &SimVm) {
        vm.set_ready();
        let runner = vm.runner();
        if !runner.is_hot() {
            self.lock().cloud.entry(runner.cloud).or_default().ready = true;
        }
    }

    pub(crate) fn job_done(&self, vm: &SimVm) {
        {
            let mut state = self.lock();
            state.counts.jobs += 1;
            state.jobs_done.insert(vm.runner().name);
        }
        self.note(format_args!("{} has done its job", vm.runner().name));
    }

    // Operators.

    /// A cordon was confirmed; at its request, [`World::uncordons`] was `before`.
    pub(crate) fn cordoned(&self, agent: &str, before: (u64, u64)) {
        if before.0 != before.1 || self.uncordons(agent) != before {
            return;
        }
        let mut state = self.lock();
        let now = state.clock;
        state.cordoned.insert(agent.to_owned(), now);
    }

    /// Uncordons requested and confirmed.
    pub(crate) fn uncordons(&self, agent: &str) -> (u64, u64) {
        self.lock().uncordons.get(agent).copied().unwrap_or_default()
    }

    pub(crate) fn uncordon_requested(&self, agent: &str) {
        let mut state = self.lock();
        state.cordoned.remove(agent);
        state.uncordons.entry(agent.to_owned()).or_default().0 += 1;
    }

    pub(crate) fn uncordon_confirmed(&self, agent: &str) {
        self.lock().uncordons.entry(agent.to_owned()).or_default().1 += 1;
    }

    pub(crate) fn requested(&self, name: &str) {
        let mut state = self.lock();
        let now = state.clock;
        state.requested.entry(name.to_owned()).or_insert(now);
    }

    // Writes of the server.

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

    /// A bundle was removed; `meta` is its last metadata.
    pub(crate) fn removed(&self, meta: &RuntimeMetadata) {
        if meta.job_seen {
            self.lock().jobs_seen.insert(meta.runner_id.clone());
        }
    }

    /// Whether the job of this name was done.
    pub(crate) fn is_done(&self, name: &str) -> bool {
        self.lock().jobs_done.contains(name)
    }

    pub(crate) fn servers_view(&self) -> (usize, usize) {
        self.lock().servers_view
    }

    pub(crate) fn server_writes(&self, writes: bool) {
        self.lock().server_writes = writes;
    }

    /// Whether the server does not know yet that it can write again.
    pub(crate) fn is_degraded(&self) -> bool {
        !self.lock().server_writes
    }

    pub(crate) fn set_servers_view(&self, living: usize, waiting: usize) {
        self.lock().servers_view = (living, waiting);
    }

    // Callers.

    /// AddInstance returned a runner.
    pub(crate) fn returned(&self, name: &str, cloud: &str) {
        let caller = {
            let mut state = self.lock();
            let caller = state.cloud.entry(cloud.to_owned()).or_default();
            caller.returned = true;
            *caller
        };
        if !caller.ready {
            self.violated(format!("a caller got {name}, but its guest never answered SSH"));
        }
    }

    pub(crate) fn delete_requested(&self, cloud: &str) {
        self.lock().cloud.entry(cloud.to_owned()).or_default().deleted = true;
    }

    /// Every cloud ID that AddInstance ever returned.
    pub(crate) fn returned_cloud_ids(&self) -> Vec<String> {
        self.lock().cloud.iter().filter(|(_, caller)| caller.returned).map(|(id, _)| id.clone()).collect()
    }

    /// The connection of this host to the server, or the server itself, is disturbed from now on.
    pub(crate) fn disturb(&self, host: &str) {
        self.lock().disturbed.insert(host.to_owned());
    }

    pub(crate) fn undisturb(&self, host: &str) {
        let mut state = self.lock();
        let now = state.clock;
        if state.disturbed.remove(host) {
            state.last_disturbed.insert(host.to_owned(), now);
        }
    }

    /// A call of `client` has ended; it began at `began` with `deadline`.
    pub(crate) fn call_ended(
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

    // The log.

    pub(crate) fn fault(&self, text: std::fmt::Arguments<'_>) {
        self.lock().counts.faults += 1;
        self.note(format_args!("FAULT: {text}"));
    }

    pub(crate) fn note(&self, text: std::fmt::Arguments<'_>) {
        let mut state = self.lock();
        // The name of the directory is the only text that differs between runs.
        let line =
            format!("{:>9.3} {text}", state.clock.as_secs_f64()).replace(&*self.dir.to_string_lossy(), "…");
        line.hash(&mut state.trace);
        if let Some(log) = &mut state.log {
            log.push(line);
        }
    }

    pub(crate) fn violated(&self, violation: String) {
        self.note(format_args!("VIOLATION: {violation}"));
        let mut state = self.lock();
        if !state.violations.contains(&violation) {
            state.violations.push(violation);
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

    /// Forgets VMs that have ended, so that a long run stays fast.
    pub(crate) fn tidy(&self) {
        self.lock().vms.retain(|vm| vm.is_live());
    }
}
