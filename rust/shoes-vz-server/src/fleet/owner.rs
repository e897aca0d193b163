//! The task that owns the fleet, and the handle to it.

mod handle;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use shoes_vz_model::{AgentId, Ambient, CloudId, RunnerId, RunnerName};
use shoes_vz_proto::{
    agent as wire,
    fleet::{AgentView, RunnerView},
};
use tokio::{
    sync::{broadcast, mpsc, oneshot},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    metrics::Metrics,
    store::{Loaded, Store, StoreError},
};

use super::{
    core::{Core, Policy, Snapshot},
    types::{Added, Closed, Effect, Event, Now, Refusal, SessionId, Turn, WaiterId, Waits, Write},
    unwritten::{self, Told, Unwritten},
};

pub use handle::Fleet;
use handle::{Delivered, OnDrop};

/// Messages that may wait for the owner; senders wait beyond.
const MAILBOX: usize = 1024;
/// Messages taken in before one transaction.
const BATCH: usize = 256;
/// Commands that may wait for one agent; beyond, its stream is given up and it starts anew.
const PIPE: usize = 256;
/// After a commit that failed it is tried again this much later, then twice as long, and so on up to the longest pause.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A store that fails within this time after it worked again has not really worked.
const STEADY: Duration = Duration::from_secs(60);
/// Changes a watcher may be behind; beyond, it is shown everything anew.
const CHANGES: usize = 1024;

/// What goes down a Sync stream.
#[derive(Debug)]
pub enum Down {
    /// A command.
    Command(Box<wire::SyncResponse>),
    /// The end, and why.
    Close(Closed),
}

/// Which runners to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched {
    /// Every one.
    All,
    /// One.
    Cloud(CloudId),
    /// One, also before it is there.
    Name(RunnerName),
}

/// Something that changed, as it is now.
#[derive(Debug)]
pub enum Change {
    /// A runner.
    Runner(Box<RunnerView>),
    /// An agent.
    Agent(Box<AgentView>),
    /// An agent that is known no more.
    AgentGone(AgentId),
}

enum Message {
    Event(Event),
    Add(Event, WaiterId, oneshot::Sender<Result<Delivered, Refusal>>),
    Delete(Event, WaiterId, oneshot::Sender<Result<(), Refusal>>),
    Register(Event, WaiterId, oneshot::Sender<AgentId>),
    Order(Event, WaiterId, oneshot::Sender<Result<AgentView, Refusal>>),
    Open(SessionId, mpsc::Sender<Down>),
    Snapshot(bool, oneshot::Sender<Snapshot>),
    Look(Watched, oneshot::Sender<Vec<RunnerView>>),
    LookAtAgent(AgentId, oneshot::Sender<Option<AgentView>>),
}

/// The owner's end, to be run.
pub struct Owner<S> {
    core: Core,
    store: S,
    metrics: Arc<Metrics>,
    mailbox: mpsc::Receiver<Message>,
    handle: mpsc::WeakSender<Message>,
    changes: broadcast::Sender<Arc<Change>>,
    ambient: Ambient,
    stopping: CancellationToken,
    began: Instant,
    inspect: Option<Inspector>,
    unwritten: Unwritten,
    /// Set while the store cannot be written.
    failing: Option<Failing>,
    /// When it could be written again last, and the pause before.
    worked_again: Option<(Instant, Duration)>,
    // In order, so that a stopping server answers in one that can be repeated.
    adders: BTreeMap<WaiterId, oneshot::Sender<Result<Delivered, Refusal>>>,
    deleters: BTreeMap<WaiterId, oneshot::Sender<Result<(), Refusal>>>,
    registering: BTreeMap<WaiterId, oneshot::Sender<AgentId>>,
    ordering: BTreeMap<WaiterId, oneshot::Sender<Result<AgentView, Refusal>>>,
    pipes: BTreeMap<SessionId, mpsc::Sender<Down>>,
}

/// That the store cannot be written.
struct Failing {
    /// Why, and what to do.
    reason: String,
    since: Instant,
    again_at: Instant,
    pause: Duration,
}

/// Runners that came to be in what could not be written: nobody was told of them, so they never were.
#[derive(Default)]
struct Unmade {
    runners: BTreeSet<RunnerId>,
    cloud_ids: BTreeSet<String>,
}

impl Unmade {
    /// Their scripts are written with their first row.
    fn among(writes: &[Write]) -> Self {
        let begun = writes.iter().filter_map(|w| if let Write::Script(id, _) = w { Some(*id) } else { None });
        let runners: BTreeSet<RunnerId> = begun.collect();
        let cloud_ids = writes.iter().filter_map(|write| match write {
            Write::Runner(runner) if runners.contains(&runner.id) => Some(runner.cloud_id.to_string()),
            _ => None,
        });
        Self { cloud_ids: cloud_ids.collect(), runners }
    }

    fn is_shown_by(&self, change: &Change) -> bool {
        matches!(change, Change::Runner(view) if self.cloud_ids.contains(&view.cloud_id))
    }
}

/// Looks at the fleet after each turn.
type Inspector = Box<dyn FnMut(&Core) + Send>;

/// A fleet as loaded, and the handle to it. It does nothing until [`Owner::run`].
pub fn new<S: Store>(
    policy: Policy,
    loaded: Loaded,
    store: S,
    metrics: Arc<Metrics>,
    ambient: Ambient,
) -> (Fleet, Owner<S>) {
    let (sender, mailbox) = mpsc::channel(MAILBOX);
    let (changes, _) = broadcast::channel(CHANGES);
    let stopping = CancellationToken::new();
    let now = Now { mono: Duration::ZERO, wall: ambient.now() };
    let owner = Owner {
        core: Core::restore(policy, loaded.agents, loaded.runners, now),
        store,
        metrics,
        mailbox,
        handle: sender.downgrade(),
        changes: changes.clone(),
        ambient: ambient.clone(),
        stopping: stopping.clone(),
        began: Instant::now(),
        inspect: None,
        unwritten: Unwritten::default(),
        failing: None,
        worked_again: None,
        adders: BTreeMap::new(),
        deleters: BTreeMap::new(),
        registering: BTreeMap::new(),
        ordering: BTreeMap::new(),
        pipes: BTreeMap::new(),
    };
    // Sessions of this run never share a number with those of an earlier one, so neither do delete commands.
    let first = u64::try_from(now.wall.as_microsecond()).unwrap_or(1);
    let counter = Arc::new(AtomicU64::new(first));
    (Fleet { mailbox: sender, changes, counter, ambient, stopping }, owner)
}

impl<S: Store> Owner<S> {
    /// With somebody who looks at the fleet after each turn, before anything of it is durable or told: for simulations.
    pub fn inspected(mut self, inspect: impl FnMut(&Core) + Send + 'static) -> Self {
        self.inspect = Some(Box::new(inspect));
        self
    }

    /// Runs until told to stop. An error means that decisions can no longer be made durable, and that waiting does not
    /// help: the server must end.
    pub async fn run(mut self) -> Result<(), StoreError> {
        loop {
            let again = self.failing.as_ref().map(|f| f.again_at);
            let due = self.core.next_timer().map(|at| self.began + at).into_iter().chain(again).min();
            let mut batch = Vec::new();
            tokio::select! {
                // Overtakes everything: a stopping server takes nothing new.
                biased;
                () = self.stopping.cancelled() => break,
                // Deadlines before the mailbox, or a full mailbox would put them off for ever.
                () = sleep_until(due) => {}
                count = self.mailbox.recv_many(&mut batch, BATCH) => if count == 0 { break },
            }
            self.turn(batch).await?;
            if self.failing.as_ref().is_some_and(|f| f.again_at <= Instant::now()) {
                self.try_again().await?;
            }
        }
        if self.failing.is_some() {
            self.try_again().await?;
        }
        if self.failing.is_some() {
            tracing::warn!(
                rows = self.unwritten.len(),
                "stopping with rows that cannot be written; agents tell of their runners again"
            );
        }
        self.stop();
        Ok(())
    }

    async fn turn(&mut self, batch: Vec<Message>) -> Result<(), StoreError> {
        let now = self.now();
        let mut writes = Vec::new();
        let mut effects = Vec::new();
        let mut changed = Vec::new();
        let mut looks: Vec<(oneshot::Sender<Vec<RunnerView>>, Vec<RunnerView>)> = Vec::new();
        let mut agent_looks: Vec<(oneshot::Sender<Option<AgentView>>, Option<AgentView>)> = Vec::new();
        let mut snapshots = Vec::new();
        let turn = self.core.on_time(now);
        changed.extend(self.changes_of(&turn, now));
        writes.extend(turn.writes);
        effects.extend(turn.effects);
        for message in batch {
            let event = match message {
                Message::Event(event) => event,
                Message::Add(event, waiter, reply) => {
                    self.adders.insert(waiter, reply);
                    event
                }
                Message::Delete(event, waiter, reply) => {
                    self.deleters.insert(waiter, reply);
                    event
                }
                Message::Register(event, waiter, reply) => {
                    self.registering.insert(waiter, reply);
                    event
                }
                Message::Order(event, waiter, reply) => {
                    self.ordering.insert(waiter, reply);
                    event
                }
                Message::Open(session, pipe) => {
                    self.pipes.insert(session, pipe);
                    continue;
                }
                Message::Snapshot(with_ended, reply) => {
                    snapshots.push((reply, self.core.snapshot(with_ended, now)));
                    continue;
                }
                Message::Look(at, reply) => {
                    looks.push((reply, self.look(&at, now)));
                    continue;
                }
                Message::LookAtAgent(id, reply) => {
                    agent_looks.push((reply, self.core.agent_view(id)));
                    continue;
                }
            };
            match &event {
                Event::CallerGone { waiter } => {
                    self.adders.remove(waiter);
                    self.deleters.remove(waiter);
                }
                Event::SessionLost { session, .. } => {
                    self.pipes.remove(session);
                    self.unwritten.forget_session(*session);
                }
                _ => {}
            }
            let turn = self.core.handle(event, now);
            changed.extend(self.changes_of(&turn, now));
            writes.extend(turn.writes);
            effects.extend(turn.effects);
        }
        self.show();
        let unmade = self.settle(writes, effects, now).await?;
        changed.retain(|change| !unmade.is_shown_by(change));
        for (reply, snapshot) in snapshots {
            let _ = reply.send(snapshot);
        }
        for (reply, views) in looks {
            let _ = reply.send(views);
        }
        for (reply, view) in agent_looks {
            let _ = reply.send(view);
        }
        for change in changed {
            let _ = self.changes.send(change);
        }
        Ok(())
    }

    /// Makes all of it durable, then tells of it; or, when that cannot be for now, tells of what needs it not. Gives the
    /// runners that never were.
    async fn settle(
        &mut self,
        writes: Vec<Write>,
        effects: Vec<Effect>,
        now: Now,
    ) -> Result<Unmade, StoreError> {
        let mut unmade = Unmade::default();
        if self.failing.is_some() {
            self.unwritten.keep(writes);
        } else if !writes.is_empty() {
            let writes = Arc::new(writes);
            if let Err(error) = self.store.commit(Arc::clone(&writes)).await {
                unmade = self.begin_to_fail(error, &writes, now)?;
            }
        }
        for effect in effects {
            let is_void = matches!(&effect, Effect::Send(_, command)
                if unwritten::commanded(command).is_some_and(|id| unmade.runners.contains(&id)));
            if !is_void {
                self.tell(effect, now);
            }
        }
        Ok(unmade)
    }

    /// From writable to unwritable. Runners that came to be in what could not be written never were.
    fn begin_to_fail(&mut self, error: StoreError, writes: &[Write], now: Now) -> Result<Unmade, StoreError> {
        self.metrics.store_failed();
        let Some(reason) = error.may_pass() else { return Err(error) };
        let at = Instant::now();
        // One that worked for a moment only is still the same trouble: no new line in the log, no shorter pause.
        let last = self.worked_again.filter(|(since, _)| at.duration_since(*since) < STEADY);
        let pause = last.map_or(FIRST_PAUSE, |(_, pause)| LONGEST_PAUSE.min(pause * 2));
        match last {
            None => tracing::error!(reason, "the server's state cannot be written"),
            Some(_) => tracing::debug!(reason, "the server's state cannot be written, once more"),
        }
        self.failing = Some(Failing { reason: reason.clone(), since: at, again_at: at + pause, pause });
        let unmade = Unmade::among(writes);
        self.unwritten.keep(writes.iter().cloned());
        self.unwritten.forget(&unmade.runners);
        let turn = self.core.store_fails(reason, &unmade.runners, now);
        self.later(turn, now);
        self.show();
        Ok(unmade)
    }

    /// Tries to write what is not written yet; once it is, tells what was held.
    async fn try_again(&mut self) -> Result<(), StoreError> {
        let writes = Arc::new(self.unwritten.writes());
        let tried = match self.store.probe().await {
            Ok(()) => self.store.commit(Arc::clone(&writes)).await,
            Err(error) => Err(error),
        };
        let Some(failing) = &mut self.failing else { return Ok(()) };
        if let Err(error) = tried {
            self.metrics.store_failed();
            failing.reason = error.may_pass().ok_or(error)?;
            failing.pause = LONGEST_PAUSE.min(failing.pause * 2);
            failing.again_at = Instant::now() + failing.pause;
            return Ok(());
        }
        let at = Instant::now();
        let flickers = self.worked_again.is_some_and(|(since, _)| at.duration_since(since) < STEADY);
        if !flickers {
            tracing::warn!(
                rows = writes.len(),
                unwritable_ms = failing.since.elapsed().as_millis() as u64,
                "the server's state can be written again"
            );
        }
        self.worked_again = Some((at, failing.pause));
        self.failing = None;
        for (session, command) in self.unwritten.written() {
            self.send(session, command);
        }
        let now = self.now();
        let turn = self.core.store_works(now);
        self.show();
        let changes = self.changes_of(&turn, now);
        let unmade = self.settle(turn.writes, turn.effects, now).await?;
        for change in changes {
            if !unmade.is_shown_by(&change) {
                let _ = self.changes.send(change);
            }
        }
        Ok(())
    }

    /// A turn while the store cannot be written.
    fn later(&mut self, turn: Turn, now: Now) {
        for change in self.changes_of(&turn, now) {
            let _ = self.changes.send(change);
        }
        self.unwritten.keep(turn.writes);
        for effect in turn.effects {
            self.tell(effect, now);
        }
    }

    /// Performs an effect, unless it speaks of what is not durable.
    fn tell(&mut self, effect: Effect, now: Now) {
        let Some(failing) = &self.failing else { return self.perform(effect) };
        match self.unwritten.judge(effect, &failing.reason) {
            Told::Now(effect) => self.perform(effect),
            Told::Held => {}
            Told::Unclaimed(runner, effect) => {
                self.perform(effect);
                let turn = self.core.handle(Event::Undelivered { runner }, now);
                self.later(turn, now);
            }
        }
    }

    fn show(&mut self) {
        if let Some(inspect) = &mut self.inspect {
            inspect(&self.core);
        }
    }

    /// What watchers are shown of a turn.
    fn changes_of(&self, turn: &Turn, now: Now) -> Vec<Arc<Change>> {
        if self.changes.receiver_count() == 0 {
            return Vec::new();
        }
        let queued = match turn.waits {
            Waits::AsBefore => &[],
            Waits::Otherwise => self.core.queued(),
        };
        let runners = turn.changed.iter().chain(queued).filter_map(|id| self.core.view(*id, now));
        let agents = turn
            .agents
            .iter()
            .map(|id| self.core.agent_view(*id).map(Box::new).map_or(Change::AgentGone(*id), Change::Agent));
        runners.map(|view| Change::Runner(Box::new(view))).chain(agents).map(Arc::new).collect()
    }

    fn now(&self) -> Now {
        Now { mono: self.began.elapsed(), wall: self.ambient.now() }
    }

    fn look(&self, at: &Watched, now: Now) -> Vec<RunnerView> {
        let one: Option<RunnerId> = match at {
            Watched::All => return self.core.snapshot(false, now).runners,
            Watched::Cloud(cloud_id) => self.core.find_by_cloud(*cloud_id),
            Watched::Name(name) => self.core.find_by_name(name),
        };
        one.and_then(|id| self.core.view(id, now)).into_iter().collect()
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Added(waiter, answer) => {
                let answer = self.deliver(answer);
                // Dropped here when the caller went away a moment ago: then the runner is unclaimed again.
                if let Some(reply) = self.adders.remove(&waiter) {
                    let _ = reply.send(answer);
                }
            }
            Effect::Deleted(waiter, answer) => {
                if let Some(reply) = self.deleters.remove(&waiter) {
                    let _ = reply.send(answer.map(drop));
                }
            }
            Effect::Registered(waiter, agent) => {
                if let Some(reply) = self.registering.remove(&waiter) {
                    let _ = reply.send(agent);
                }
            }
            Effect::Ordered(waiter, answer) => {
                if let Some(reply) = self.ordering.remove(&waiter) {
                    let _ = reply.send(answer.map(|view| *view));
                }
            }
            Effect::Send(session, command) => self.send(session, command),
            Effect::Close(session, why) => self.close(session, why),
            Effect::Observe(observation) => self.metrics.observe(&observation),
        }
    }

    fn deliver(&self, answer: Result<Added, Refusal>) -> Result<Delivered, Refusal> {
        let added = answer?;
        let event = Event::Undelivered { runner: added.runner_id };
        let undelivered = OnDrop(self.handle.upgrade().map(|mailbox| (mailbox, event)));
        Ok(Delivered { added, undelivered })
    }

    fn send(&mut self, session: SessionId, command: Box<wire::SyncResponse>) {
        let Some(pipe) = self.pipes.get(&session) else { return };
        match pipe.try_send(Down::Command(command)) {
            // Closed: its end is on the way to the mailbox.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => self.close(session, Closed::Stuck),
        }
    }

    fn close(&mut self, session: SessionId, why: Closed) {
        if let Some(pipe) = self.pipes.remove(&session) {
            // Full: then the stream just ends.
            let _ = pipe.try_send(Down::Close(why));
            self.unwritten.forget_session(session);
        }
    }

    fn stop(mut self) {
        for reply in std::mem::take(&mut self.adders).into_values() {
            let _ = reply.send(Err(Refusal::Stopping));
        }
        for reply in std::mem::take(&mut self.deleters).into_values() {
            let _ = reply.send(Err(Refusal::Stopping));
        }
        for session in self.pipes.keys().copied().collect::<Vec<_>>() {
            self.close(session, Closed::Stopping);
        }
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
