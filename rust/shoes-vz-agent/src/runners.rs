//! All runners of this agent: what the server's commands do to them, and what is found at start.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use shoes_vz_model::{
    bundle::{DiskState, RuntimeMetadata},
    id::{RunnerId, RunnerName},
};
use shoes_vz_proto::{
    agent::{CreateRunnerCommand, DeleteRunnerCommand, Runner, SyncResponse, sync_response::Command},
    vm::VmStatus,
};

use crate::{
    accounting::{Account, Adopted, Leftovers},
    bundles::{self, Bundle},
    context::Context,
    hot::Class,
    runner::{self, Handle, Order},
    slot_vm::SlotVm,
};

/// Command ids remembered, so that a command sent twice is applied once.
const REMEMBERED: usize = 4096;

/// See the module.
pub struct Runners {
    ctx: Arc<Context>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    live: BTreeMap<RunnerId, Handle>,
    /// Command id and the answer given.
    applied: VecDeque<(String, Answer)>,
}

/// What a command came to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Answer {
    /// Why it is refused; "" when it is not.
    pub words: String,
    /// Refused for this host's sake only: another one may take it.
    pub try_elsewhere: bool,
}

/// For what the command itself says; no host would take it.
impl From<String> for Answer {
    fn from(words: String) -> Self {
        Self { words, try_elsewhere: false }
    }
}

impl Runners {
    /// None yet.
    pub fn new(ctx: Arc<Context>) -> Self {
        Self { ctx, state: Mutex::default() }
    }

    /// What they share.
    pub fn context(&self) -> &Arc<Context> {
        &self.ctx
    }

    /// Takes over every VM a former agent left, and removes what is left of those that are over.
    pub async fn adopt_all(&self) -> std::io::Result<Account> {
        let runners_path = self.ctx.runners_path.clone();
        let leftovers = Leftovers::remove(&runners_path)?;
        let found = bundles::scan(&runners_path)?;
        let mut account = Account {
            leftovers: leftovers.removed,
            foreign: leftovers.foreign.len() + found.foreign.len(),
            ..Account::default()
        };
        for path in found.foreign {
            tracing::warn!(?path, "this directory is no bundle of an agent's; it is left alone");
        }
        for runner in self.ctx.ends.all() {
            // Its bundle is gone, so nothing but the server's acknowledgement is missing; else it is buried below.
            if !found.bundles.iter().any(|b| b.runner.to_string() == runner.runner_id) {
                self.ctx.board.publish(runner);
            }
        }
        let mut adopted = Adopted::new();
        for bundle in found.bundles {
            let path = bundle.path.clone();
            match self.adopt(bundle).await {
                Past::Lives(vm) => drop(adopted.insert(path, (vm.pid, vm.hypervisor_pid))),
                Past::Unknown => drop(adopted.insert(path, (0, 0))),
                Past::Over => account.removed += 1,
            }
        }
        account.adopted = adopted.len();
        let ended = self.ctx.machines.end_strays(&runners_path, adopted).await;
        account.ended = ended.ended;
        account.foreign += ended.left;
        account.say(&runners_path);
        Ok(account)
    }

    async fn adopt(&self, bundle: Bundle) -> Past {
        let nameless = || RuntimeMetadata::begun(bundle.runner, DiskState::Error, self.ctx.ambient.now());
        let meta = match bundle.metadata() {
            Ok(Some(meta)) => meta,
            Ok(None) => nameless(),
            Err(error) => {
                tracing::warn!(bundle = ?bundle.path, %error, "RuntimeMetadata.json cannot be read; the runner is known by its id only");
                nameless()
            }
        };
        if meta.spare {
            return self.adopt_spare(bundle, meta).await;
        }
        let bundle = self.named_right(bundle, &meta).await;
        let (runner, name) = (bundle.runner, meta.runner_name.clone());
        let (ctx, ticket) = (self.ctx.clone(), self.ctx.slots.adopt(meta.slot));
        let (past, handle) = match self.ctx.machines.find(&bundle.path).await {
            Ok(Some(vm)) => {
                let status = vm.status().borrow().clone();
                tracing::info!(runner_id = %runner, runner_name = name, "adopting a live VM");
                (Past::Lives(status), runner::adopt(ctx, bundle, meta, vm, ticket))
            }
            Ok(None) => {
                tracing::info!(runner_id = %runner, runner_name = name, "removing the bundle of a VM that is over");
                (Past::Over, runner::bury(ctx, bundle, meta, ticket))
            }
            // It may be doing its job: only how to reach it is not known yet.
            Err(error) => {
                tracing::warn!(runner_id = %runner, runner_name = name, %error, "a VM does not answer; it is asked again");
                (Past::Unknown, runner::seek(ctx, bundle, meta, ticket))
            }
        };
        self.lock().live.insert(runner, handle);
        past
    }

    /// An agent that died while it made a hot VM's bundle a runner's may have left it its old name.
    async fn named_right(&self, bundle: Bundle, meta: &RuntimeMetadata) -> Bundle {
        let Ok(runner) = meta.runner_id.parse::<RunnerId>() else { return bundle };
        if runner == bundle.runner {
            return bundle;
        }
        let right = Bundle::of(&self.ctx.runners_path, runner);
        match self.ctx.machines.rename(None, &bundle, &right).await {
            Ok(()) => right,
            Err(error) => {
                tracing::warn!(bundle = ?bundle.path, %runner, %error, "a runner's bundle keeps a hot VM's name");
                Bundle { runner, ..bundle }
            }
        }
    }

    /// A hot VM goes on waiting, unless it was not ready yet or is none that is wanted.
    async fn adopt_spare(&self, bundle: Bundle, meta: RuntimeMetadata) -> Past {
        let ctx = &self.ctx;
        let mut held = SlotVm::new(ctx.clone(), bundle.clone(), ctx.slots.readopt(meta.slot));
        let class = Class { cpus: meta.cpus, memory_bytes: meta.memory_bytes, disk_bytes: meta.disk_bytes };
        match ctx.machines.find(&bundle.path).await {
            Ok(Some(vm)) if meta.start_path.is_some() && ctx.pool.wants(ctx, class) => {
                tracing::info!(spare = %bundle.runner, "adopting a hot VM");
                let status = vm.status().borrow().clone();
                held.vm = Some(vm);
                ctx.pool.adopt(ctx, class, held, meta);
                Past::Lives(status)
            }
            found => {
                tracing::info!(spare = %bundle.runner, "removing a hot VM that was not ready, or is not wanted any more");
                held.vm = found.ok().flatten();
                let lives = held.vm.as_ref().map(|vm| vm.status().borrow().clone());
                drop(ctx.tasks.spawn("removing a hot VM", async move { held.remove().await }));
                lives.map_or(Past::Over, Past::Lives)
            }
        }
    }

    /// Applies a command once, and says why it is refused; "" when it is not.
    pub fn apply(&self, response: SyncResponse) -> String {
        self.answer(response).words
    }

    /// Applies a command once.
    pub fn answer(&self, response: SyncResponse) -> Answer {
        let id = response.command_id;
        let mut state = self.lock();
        if let Some((_, answer)) = state.applied.iter().find(|(known, _)| !id.is_empty() && *known == id) {
            return answer.clone();
        }
        state.live.retain(|_, handle| !handle.is_over());
        let answer = match response.command {
            Some(Command::CreateRunner(create)) => self.create(&mut state, create),
            Some(Command::DeleteRunner(delete)) => self.delete(&mut state, &delete).map_err(Answer::from),
            Some(Command::Noop(_)) | None => Ok(()),
        };
        let answer = answer.err().unwrap_or_default();
        if !answer.words.is_empty() {
            tracing::warn!(command_id = id, answer = answer.words, "a command of the server's is refused");
        }
        // A command that went elsewhere may come back once this host is better off.
        if !id.is_empty() && !answer.try_elsewhere {
            state.applied.push_back((id, answer.clone()));
            if state.applied.len() > REMEMBERED {
                state.applied.pop_front();
            }
        }
        answer
    }

    fn create(&self, state: &mut State, create: CreateRunnerCommand) -> Result<(), Answer> {
        let request_id = create.request_id.clone();
        let order = self.order(create)?;
        // One runner, one VM, however often and by whichever stream it is asked for.
        if state.live.contains_key(&order.id) || self.ctx.board.get(&order.id.to_string()).is_some() {
            tracing::info!(runner_id = %order.id, "this runner is here already");
            return Ok(());
        }
        self.ctx.disk.look().map_err(|words| Answer { words, try_elsewhere: true })?;
        let place = self.ctx.slots.reserve().map_err(|e| e.to_string())?;
        tracing::info!(runner_id = %order.id, runner_name = order.name, request_id, "creating a runner");
        let id = order.id;
        state.live.insert(id, runner::begin(self.ctx.clone(), order, place));
        Ok(())
    }

    fn order(&self, create: CreateRunnerCommand) -> Result<Order, String> {
        let id: RunnerId = create.runner_id.parse().map_err(|e| format!("{e}"))?;
        let name: RunnerName = create.runner_name.parse().map_err(|e| format!("{e}"))?;
        let mine = &self.ctx.template;
        if !create.template.is_empty() && create.template != mine.name {
            return Err(format!(
                "template {:?} is not on this host, which has {:?}",
                create.template, mine.name
            ));
        }
        let seconds = |n: u64| (n > 0).then(|| Duration::from_secs(n));
        Ok(Order {
            id,
            name: name.into(),
            cloud_id: create.cloud_id,
            script: create.setup_script.into_bytes().into(),
            cpus: create.cpus,
            memory_bytes: create.memory_bytes,
            disk_bytes: create.disk_bytes,
            max_lifetime: seconds(create.max_lifetime_seconds),
            start_deadline: seconds(create.start_deadline_seconds),
        })
    }

    fn delete(&self, state: &mut State, delete: &DeleteRunnerCommand) -> Result<(), String> {
        let id: RunnerId = delete.runner_id.parse().map_err(|e| format!("{e}"))?;
        match state.live.get(&id) {
            Some(handle) => {
                tracing::info!(runner_id = %id, request_id = delete.request_id, "deleting a runner");
                handle.delete();
            }
            None => {
                tracing::info!(runner_id = %id, request_id = delete.request_id, "the runner to delete is gone already");
                // A Go server acknowledges no ends: that it deletes the runner is all it will ever say.
                self.forget_ended(std::slice::from_ref(&delete.runner_id));
            }
        }
        Ok(())
    }

    /// The server has stored these ends.
    pub fn end_acks(&self, runner_ids: &[String]) {
        self.forget_ended(runner_ids);
    }

    /// Takes ended runners down; the living stay whatever the server says.
    fn forget_ended(&self, runner_ids: &[String]) {
        let ended = |id: &&String| self.ctx.board.get(id).is_some_and(|r: Runner| r.end.is_some());
        let ended: Vec<String> = runner_ids.iter().filter(ended).cloned().collect();
        self.ctx.ends.forget(&ended);
        self.ctx.board.remove(&ended);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of a VM a former agent started.
enum Past {
    Lives(VmStatus),
    /// It is there, and does not answer.
    Unknown,
    Over,
}
