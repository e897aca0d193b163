//! All runners of this agent: what the server's commands do to them, and what is found at start.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use shoes_vz_model::{
    bundle::{DiskState, Phase, RuntimeMetadata},
    id::{BadId, RunnerId, RunnerName},
};
use shoes_vz_process::chain::Chain;
use shoes_vz_proto::{
    agent::{CreateRunnerCommand, DeleteRunnerCommand, SyncResponse, sync_response::Command},
    vm::VmStatus,
};

use crate::{
    agent::Agent,
    bundles::{self, Bundle},
    host::VmSize,
    orphans::{AdoptedVms, CleanupSummary, Leftovers},
    provision::VmResources,
    runner::{self, Found, Handle, RunnerRequest},
};

/// Command ids remembered, so that a command sent twice is applied once.
const REMEMBERED: usize = 4096;

pub struct Runners {
    agent: Arc<Agent>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    live: BTreeMap<RunnerId, Handle>,
    /// Command ID and its outcome.
    applied: VecDeque<(String, CommandOutcome)>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommandOutcome {
    /// Why the command is refused; "" when it is not.
    pub reason: String,
    /// Refused because of this host: another one may accept it.
    pub try_elsewhere: bool,
}

/// Refused because of the command: no host would accept it.
impl From<String> for CommandOutcome {
    fn from(reason: String) -> Self {
        Self { reason, try_elsewhere: false }
    }
}

impl From<BadId> for CommandOutcome {
    fn from(error: BadId) -> Self {
        error.to_string().into()
    }
}

impl Runners {
    pub fn new(agent: Arc<Agent>) -> Self {
        Self { agent, state: Mutex::default() }
    }

    /// What they share.
    pub fn agent(&self) -> &Arc<Agent> {
        &self.agent
    }

    /// Takes over every VM that a former agent left, and removes what is left of those that have ended.
    pub async fn adopt_all(&self) -> std::io::Result<CleanupSummary> {
        let runners_path = self.agent.host.runners_path.clone();
        let leftovers = Leftovers::remove(&runners_path)?;
        let found = bundles::scan(&runners_path)?;
        let mut summary = CleanupSummary {
            leftovers: leftovers.removed,
            foreign: leftovers.foreign.len() + found.foreign.len(),
            ..CleanupSummary::default()
        };
        for path in found.foreign {
            tracing::warn!(?path, "unknown directory in the runners path; leaving it alone");
        }
        for (id, runner) in self.agent.ends.all() {
            // Its bundle is removed, so only the server's acknowledgement is missing; any other is torn down below.
            if !found.bundles.iter().any(|b| b.runner == id) {
                self.agent.board.publish(id, runner);
            }
        }
        let mut adopted = AdoptedVms::new();
        for bundle in found.bundles {
            let path = bundle.path.clone();
            match self.adopt(bundle).await {
                Adoption::Live(vm) => drop(adopted.insert(path, (vm.pid, vm.hypervisor_pid))),
                Adoption::Unknown => drop(adopted.insert(path, (0, 0))),
                Adoption::Ended => summary.removed += 1,
            }
        }
        summary.adopted = adopted.len();
        let ended = self.agent.host.vms.end_orphans(&runners_path, adopted).await;
        summary.ended = ended.ended;
        summary.foreign += ended.left;
        summary.log(&runners_path);
        Ok(summary)
    }

    async fn adopt(&self, bundle: Bundle) -> Adoption {
        let host = &self.agent.host;
        let nameless = || RuntimeMetadata::begun(bundle.runner, DiskState::Error, host.ambient.now());
        let meta = match bundle.metadata() {
            Ok(Some(meta)) => meta,
            Ok(None) => nameless(),
            Err(error) => {
                tracing::warn!(bundle = ?bundle.path, reason = %error, "reading RuntimeMetadata.json failed; the runner has only its ID");
                nameless()
            }
        };
        if meta.phase.is_hot() {
            return self.adopt_hot(bundle, meta).await;
        }
        let bundle = self.finish_rename(bundle, &meta).await;
        let (id, name) = (bundle.runner, meta.runner_name.clone());
        let (admission, ticket) = self.agent.slots.adopt(meta.slot);
        let (adoption, found, vm) = match host.vms.find(&bundle.path).await {
            Ok(Some(vm)) => {
                tracing::info!(runner_id = %id, runner_name = name, "adopting a live VM");
                let status = vm.status().borrow().clone();
                (Adoption::Live(status), Found::Live, Some(vm))
            }
            Ok(None) => {
                tracing::info!(runner_id = %id, runner_name = name, "removing the bundle of a VM that has ended");
                (Adoption::Ended, Found::Ended, None)
            }
            // It may be doing its job: only how to reach it is not known yet.
            Err(error) => {
                tracing::warn!(runner_id = %id, runner_name = name, reason = %Chain(&error), "VM process does not answer; retrying");
                (Adoption::Unknown, Found::Live, None)
            }
        };
        let resources = VmResources::found(host.clone(), bundle, ticket, vm);
        let handle = runner::resume(self.agent.clone(), meta, found, resources, admission);
        self.lock().live.insert(id, handle);
        adoption
    }

    /// An agent that died while a runner claimed a hot VM may have left the bundle its old name.
    async fn finish_rename(&self, bundle: Bundle, meta: &RuntimeMetadata) -> Bundle {
        let Ok(runner) = meta.runner_id.parse::<RunnerId>() else { return bundle };
        if runner == bundle.runner {
            return bundle;
        }
        let renamed = Bundle::of(&self.agent.host.runners_path, runner);
        match self.agent.host.vms.rename(None, &bundle, &renamed).await {
            Ok(()) => renamed,
            Err(error) => {
                tracing::warn!(bundle = ?bundle.path, runner_id = %runner, reason = %Chain(&error), "renaming the bundle of a claimed hot VM failed; the runner has the hot VM's ID");
                Bundle { runner, ..bundle }
            }
        }
    }

    /// A hot VM waits on, unless it was not ready yet or none like it is wanted.
    async fn adopt_hot(&self, bundle: Bundle, meta: RuntimeMetadata) -> Adoption {
        let Agent { host, pool, slots, .. } = &*self.agent;
        let ticket = slots.adopt_hot(meta.slot);
        let id = bundle.runner;
        let size = VmSize { cpus: meta.cpus, memory_bytes: meta.memory_bytes, disk_bytes: meta.disk_bytes };
        let vm = host.vms.find(&bundle.path).await.ok().flatten();
        let status = vm.as_ref().map(|vm| vm.status().borrow().clone());
        let resources = VmResources::found(host.clone(), bundle, ticket, vm);
        if status.is_some() && meta.phase == Phase::Hot && pool.wants(size) {
            tracing::info!(hot_vm = %id, "adopting a hot VM");
            pool.adopt(size, resources, meta);
        } else {
            tracing::info!(hot_vm = %id, "removing a hot VM that was not ready or is no longer wanted");
            drop(host.tasks.spawn("removing a hot VM", resources.remove()));
        }
        status.map_or(Adoption::Ended, Adoption::Live)
    }

    /// Applies a command once.
    pub fn apply(&self, response: SyncResponse) -> CommandOutcome {
        let id = response.command_id;
        let mut state = self.lock();
        if let Some((_, outcome)) = state.applied.iter().find(|(known, _)| !id.is_empty() && *known == id) {
            return outcome.clone();
        }
        state.live.retain(|_, handle| !handle.has_ended());
        let applied = match response.command {
            Some(Command::CreateRunner(create)) => self.create(&mut state, create),
            Some(Command::DeleteRunner(delete)) => self.delete(&mut state, &delete),
            Some(Command::Noop(_)) | None => Ok(()),
        };
        let outcome = applied.err().unwrap_or_default();
        if !outcome.reason.is_empty() {
            tracing::warn!(command_id = id, reason = outcome.reason, "command refused");
        }
        // A command that went to another host may come back once this one can accept it.
        if !id.is_empty() && !outcome.try_elsewhere {
            state.applied.push_back((id, outcome.clone()));
            if state.applied.len() > REMEMBERED {
                state.applied.pop_front();
            }
        }
        outcome
    }

    fn create(&self, state: &mut State, create: CreateRunnerCommand) -> Result<(), CommandOutcome> {
        let request_id = create.request_id.clone();
        let request = self.request(create)?;
        let id = request.id;
        // One runner, one VM, however often and by whichever stream it is requested.
        if state.live.contains_key(&id) || self.agent.board.get(id).is_some() {
            tracing::info!(runner_id = %id, "runner exists already; nothing to create");
            return Ok(());
        }
        self.agent.disk.check().map_err(|reason| CommandOutcome { reason, try_elsewhere: true })?;
        let admission = self.agent.slots.admit().map_err(|e| e.to_string())?;
        tracing::info!(runner_id = %id, runner_name = %request.name, request_id, "creating a runner");
        state.live.insert(id, runner::begin(self.agent.clone(), request, admission));
        Ok(())
    }

    fn request(&self, create: CreateRunnerCommand) -> Result<RunnerRequest, String> {
        let id: RunnerId = create.runner_id.parse().map_err(|e: BadId| e.to_string())?;
        let name: RunnerName = create.runner_name.parse().map_err(|e| format!("{e}"))?;
        let template = &self.agent.host.template;
        if !create.template.is_empty() && create.template != template.name {
            return Err(format!(
                "this host does not have the template {:?}, but {:?}",
                create.template, template.name
            ));
        }
        let seconds = |n: u64| (n > 0).then(|| Duration::from_secs(n));
        Ok(RunnerRequest {
            id,
            name,
            cloud_id: create.cloud_id,
            script: create.setup_script.into_bytes().into(),
            size: VmSize::of(template, create.cpus, create.memory_bytes, create.disk_bytes),
            max_lifetime: seconds(create.max_lifetime_seconds),
            start_deadline: seconds(create.start_deadline_seconds),
        })
    }

    fn delete(&self, state: &mut State, delete: &DeleteRunnerCommand) -> Result<(), CommandOutcome> {
        let id: RunnerId = delete.runner_id.parse()?;
        let request_id = &delete.request_id;
        match state.live.get(&id) {
            Some(handle) => {
                tracing::info!(runner_id = %id, request_id, "deleting a runner");
                handle.delete();
            }
            None => {
                tracing::info!(runner_id = %id, request_id, "runner does not exist; nothing to delete");
                // A Go server acknowledges no ends: it sends nothing after this command.
                self.acknowledge(&[id]);
            }
        }
        Ok(())
    }

    /// The server has stored the ends of these. Live runners stay, whatever the server says.
    pub fn acknowledge(&self, ids: &[RunnerId]) {
        let ended = |id: &&RunnerId| self.agent.board.get(**id).is_some_and(|r| r.end.is_some());
        let ended: Vec<RunnerId> = ids.iter().filter(ended).copied().collect();
        self.agent.ends.forget(&ended);
        self.agent.board.remove(&ended);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of a VM that a former agent started.
enum Adoption {
    Live(VmStatus),
    /// Its VM process does not answer.
    Unknown,
    Ended,
}
