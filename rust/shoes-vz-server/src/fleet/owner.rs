//! The task that owns the fleet, and the handle to it.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shoes_vz_model::{AgentId, CloudId, Outside, RunnerId, RunnerName};
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
    types::{
        AddRequest, Added, Closed, Effect, Event, Fresh, Now, Order, Refusal, Registration, SessionId, Turn,
        WaiterId, Waits,
    },
};

/// Messages that may wait for the owner; senders wait beyond.
const MAILBOX: usize = 1024;
/// Messages taken in before one transaction.
const BATCH: usize = 256;
/// Commands that may wait for one agent; beyond, its stream is given up and it starts anew.
const PIPE: usize = 256;
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

/// Speaks with the owner. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fleet {
    mailbox: mpsc::Sender<Message>,
    changes: broadcast::Sender<Arc<Change>>,
    counter: Arc<AtomicU64>,
    outside: Outside,
    stopping: CancellationToken,
}

/// The owner's end, to be run.
pub struct Owner<S> {
    core: Core,
    store: S,
    metrics: Arc<Metrics>,
    mailbox: mpsc::Receiver<Message>,
    handle: mpsc::WeakSender<Message>,
    changes: broadcast::Sender<Arc<Change>>,
    outside: Outside,
    stopping: CancellationToken,
    began: Instant,
    inspect: Option<Inspector>,
    // In order, so that a stopping server answers in one that can be repeated.
    adders: BTreeMap<WaiterId, oneshot::Sender<Result<Delivered, Refusal>>>,
    deleters: BTreeMap<WaiterId, oneshot::Sender<Result<(), Refusal>>>,
    registering: BTreeMap<WaiterId, oneshot::Sender<AgentId>>,
    ordering: BTreeMap<WaiterId, oneshot::Sender<Result<AgentView, Refusal>>>,
    pipes: BTreeMap<SessionId, mpsc::Sender<Down>>,
}

/// Looks at the fleet after each turn.
type Inspector = Box<dyn FnMut(&Core) + Send>;

/// A fleet as loaded, and the handle to it. It does nothing until [`Owner::run`].
pub fn new<S: Store>(
    policy: Policy,
    loaded: Loaded,
    store: S,
    metrics: Arc<Metrics>,
    outside: Outside,
) -> (Fleet, Owner<S>) {
    let (sender, mailbox) = mpsc::channel(MAILBOX);
    let (changes, _) = broadcast::channel(CHANGES);
    let stopping = CancellationToken::new();
    let now = Now { mono: Duration::ZERO, wall: outside.now() };
    let owner = Owner {
        core: Core::restore(policy, loaded.agents, loaded.runners, now),
        store,
        metrics,
        mailbox,
        handle: sender.downgrade(),
        changes: changes.clone(),
        outside: outside.clone(),
        stopping: stopping.clone(),
        began: Instant::now(),
        inspect: None,
        adders: BTreeMap::new(),
        deleters: BTreeMap::new(),
        registering: BTreeMap::new(),
        ordering: BTreeMap::new(),
        pipes: BTreeMap::new(),
    };
    // Sessions of this run never share a number with those of an earlier one, so neither do delete commands.
    let first = u64::try_from(now.wall.as_microsecond()).unwrap_or(1);
    let counter = Arc::new(AtomicU64::new(first));
    (Fleet { mailbox: sender, changes, counter, outside, stopping }, owner)
}

impl Fleet {
    fn number(&self) -> u64 {
        self.counter.fetch_add(1, Ordering::Relaxed)
    }

    /// AddInstance: returns once the runner answers SSH. Dropping the future tells the fleet that the caller is gone.
    pub async fn add(&self, request: AddRequest, patience: Duration) -> Result<Added, Refusal> {
        let waiter = WaiterId(self.number());
        let gone = OnDrop::new(&self.mailbox, Event::CallerGone { waiter });
        let (reply, answer) = oneshot::channel();
        let event = Event::Add { waiter, request, patience, fresh: Fresh::draw(&self.outside) };
        self.send(Message::Add(event, waiter, reply)).await?;
        let answer = answer.await;
        gone.disarm();
        answer.map_err(|_| Refusal::Stopping)?.map(Delivered::take)
    }

    /// DeleteInstance: returns once the agent says that the runner is gone.
    pub async fn delete(&self, cloud_id: CloudId, patience: Duration) -> Result<(), Refusal> {
        let waiter = WaiterId(self.number());
        let gone = OnDrop::new(&self.mailbox, Event::CallerGone { waiter });
        let (reply, answer) = oneshot::channel();
        self.send(Message::Delete(Event::Delete { waiter, cloud_id, patience }, waiter, reply)).await?;
        let answer = answer.await;
        gone.disarm();
        answer.map_err(|_| Refusal::Stopping)?
    }

    /// RegisterAgent.
    pub async fn register(&self, registration: Registration) -> Result<AgentId, Refusal> {
        let waiter = WaiterId(self.number());
        let (reply, answer) = oneshot::channel();
        let event = Event::Register { waiter, registration: Box::new(registration) };
        self.send(Message::Register(event, waiter, reply)).await?;
        answer.await.map_err(|_| Refusal::Stopping)
    }

    /// CordonAgent, UncordonAgent: returns once it is durable, with the agent as it is then.
    pub async fn order(&self, agent: String, order: Order) -> Result<AgentView, Refusal> {
        let waiter = WaiterId(self.number());
        let (reply, answer) = oneshot::channel();
        self.send(Message::Order(Event::Order { waiter, agent, order }, waiter, reply)).await?;
        answer.await.map_err(|_| Refusal::Stopping)?
    }

    /// A Sync stream begins; commands come out of the receiver.
    pub async fn open(&self) -> Result<(SessionId, mpsc::Receiver<Down>), Refusal> {
        let session = SessionId(self.number());
        let (pipe, commands) = mpsc::channel(PIPE);
        self.send(Message::Open(session, pipe)).await?;
        Ok((session, commands))
    }

    /// A message on a Sync stream.
    pub async fn synced(
        &self,
        session: SessionId,
        agent: AgentId,
        request: wire::SyncRequest,
    ) -> Result<(), Refusal> {
        self.send(Message::Event(Event::Synced { session, agent, request: Box::new(request) })).await
    }

    /// A Sync stream ended.
    pub async fn lost(&self, session: SessionId, why: String) {
        // A stopping server has no streams any more anyway.
        let _ = self.send(Message::Event(Event::SessionLost { session, why })).await;
    }

    /// The fleet now.
    pub async fn snapshot(&self, with_ended: bool) -> Result<Snapshot, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Snapshot(with_ended, reply)).await?;
        answer.await.map_err(|_| Refusal::Stopping)
    }

    /// Those watched, now; ended ones only when a single one is asked for.
    pub async fn look(&self, at: Watched) -> Result<Vec<RunnerView>, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::Look(at, reply)).await?;
        answer.await.map_err(|_| Refusal::Stopping)
    }

    /// One agent, now; `None` when it is not known any more.
    pub async fn look_at_agent(&self, id: AgentId) -> Result<Option<AgentView>, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.send(Message::LookAtAgent(id, reply)).await?;
        answer.await.map_err(|_| Refusal::Stopping)
    }

    /// Every change from now on.
    pub fn changes(&self) -> broadcast::Receiver<Arc<Change>> {
        self.changes.subscribe()
    }

    /// The calendar and chance, as the fleet has them.
    pub fn outside(&self) -> &Outside {
        &self.outside
    }

    /// Cancelled once the server is to end.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    async fn send(&self, message: Message) -> Result<(), Refusal> {
        self.mailbox.send(message).await.map_err(|_| Refusal::Stopping)
    }
}

/// An answer on its way. Dropped before it is taken, it says so, and the runner is unclaimed again.
#[derive(Debug)]
struct Delivered {
    added: Added,
    undelivered: OnDrop,
}

impl Delivered {
    fn take(self) -> Added {
        self.undelivered.disarm();
        self.added
    }
}

/// Sends an event when it is dropped, unless disarmed.
#[derive(Debug)]
struct OnDrop(Option<(mpsc::Sender<Message>, Event)>);

impl OnDrop {
    fn new(mailbox: &mpsc::Sender<Message>, event: Event) -> Self {
        Self(Some((mailbox.clone(), event)))
    }

    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for OnDrop {
    fn drop(&mut self) {
        let Some((mailbox, event)) = self.0.take() else { return };
        match mailbox.try_send(Message::Event(event)) {
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(message)) => {
                if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                    runtime.spawn(async move {
                        // Closed meanwhile: the server ends, and counts its callers anew when it starts.
                        let _ = mailbox.send(message).await;
                    });
                }
            }
        }
    }
}

impl<S: Store> Owner<S> {
    /// With somebody who looks at the fleet after each turn, before anything of it is durable or told: for simulations.
    pub fn inspected(mut self, inspect: impl FnMut(&Core) + Send + 'static) -> Self {
        self.inspect = Some(Box::new(inspect));
        self
    }

    /// Runs until told to stop. An error means that decisions can no longer be made durable: the server must end.
    pub async fn run(mut self) -> Result<(), StoreError> {
        loop {
            let due = self.core.next_timer().map(|at| self.began + at);
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
        let mut take = |core: &Core, changes: &broadcast::Sender<Arc<Change>>, turn: Turn| {
            writes.extend(turn.writes);
            effects.extend(turn.effects);
            if changes.receiver_count() > 0 {
                let queued = match turn.waits {
                    Waits::AsBefore => &[],
                    Waits::Otherwise => core.queued(),
                };
                let runners = turn.changed.iter().chain(queued).filter_map(|id| core.view(*id, now));
                let agents = turn.agents.iter().map(|id| {
                    core.agent_view(*id).map(Box::new).map_or(Change::AgentGone(*id), Change::Agent)
                });
                changed
                    .extend(runners.map(|view| Change::Runner(Box::new(view))).chain(agents).map(Arc::new));
            }
        };
        let turn = self.core.on_time(now);
        take(&self.core, &self.changes, turn);
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
                }
                _ => {}
            }
            let turn = self.core.handle(event, now);
            take(&self.core, &self.changes, turn);
        }
        if let Some(inspect) = &mut self.inspect {
            inspect(&self.core);
        }
        if !writes.is_empty() {
            self.store.commit(writes).await?;
        }
        // Whoever is not there any more has said so, or will.
        for effect in effects {
            self.perform(effect);
        }
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

    fn now(&self) -> Now {
        Now { mono: self.began.elapsed(), wall: self.outside.now() }
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
                    let _ = reply.send(answer);
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
