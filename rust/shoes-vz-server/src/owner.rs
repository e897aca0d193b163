//! The task that owns the fleet.
//!
//! The owner takes everything that waits in its mailbox, lets the core decide, stores all decisions in one transaction, and
//! only then performs their effects: no one learns of what is not durable. While the store cannot be written (a full disk),
//! only what needs no write continues, see [`pending_writes`]; a damaged store ends the server.

mod handle;
mod mailbox;
mod pending_writes;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use shoes_vz_model::{Ambient, RunnerId};
use shoes_vz_process::backoff::Backoff;
use shoes_vz_proto::agent as wire;
use tokio::{
    sync::{broadcast, mpsc},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    fleet::{
        core::{Core, Policy},
        event::{Closed, Decision, Effect, Event, QueueReasons, Refusal, Write},
        runner::Added,
        values::{Now, SessionId, WaiterId},
    },
    metrics::Metrics,
    store::{Loaded, Store, StoreError},
};

pub use handle::Fleet;
use mailbox::{Answer, Delivered, Message, OnDrop, Reply};
pub use mailbox::{Change, SessionMessage, Watched};
use pending_writes::{PendingWrites, Verdict};

/// Messages that may wait for the owner; beyond that, senders wait.
const MAILBOX: usize = 1024;
/// Messages handled in one transaction.
const BATCH: usize = 256;
/// A failed commit is retried after the first pause, then after twice as long each time, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// A store that fails again within this time has not recovered.
const STEADY: Duration = Duration::from_secs(60);
/// Changes that a watcher may be behind; beyond that, it is shown everything again.
const CHANGES: usize = 1024;

/// The owner's side, to be run.
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
    pending_writes: PendingWrites,
    /// Set while the store cannot be written.
    failing: Option<Failing>,
    /// When the store last recovered, and the pauses of that outage.
    recovered: Option<(Instant, Backoff)>,
    // Ordered, so that a stopping server answers in a reproducible order.
    replies: BTreeMap<WaiterId, Reply>,
    pipes: BTreeMap<SessionId, mpsc::Sender<SessionMessage>>,
}

/// The store cannot be written.
struct Failing {
    /// The reason, and what to do.
    reason: String,
    since: Instant,
    again_at: Instant,
    backoff: Backoff,
}

/// Runners created by decisions that could not be written. No one outside knows them, so they are rolled back.
#[derive(Default)]
struct RolledBack {
    runners: BTreeSet<RunnerId>,
    cloud_ids: BTreeSet<String>,
}

impl RolledBack {
    /// A runner's script is written with its first row.
    fn among(writes: &[Write]) -> Self {
        let created =
            writes.iter().filter_map(|w| if let Write::Script(id, _) = w { Some(*id) } else { None });
        let runners: BTreeSet<RunnerId> = created.collect();
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

/// Inspects the fleet after each batch.
type Inspector = Box<dyn FnMut(&Core) + Send>;

/// The fleet as loaded, and the handle to it. It does nothing until [`Owner::run`].
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
        pending_writes: PendingWrites::default(),
        failing: None,
        recovered: None,
        replies: BTreeMap::new(),
        pipes: BTreeMap::new(),
    };
    // Sessions of this run never share a number with those of an earlier run, so neither do delete commands.
    let first = u64::try_from(now.wall.as_microsecond()).unwrap_or(1);
    let counter = Arc::new(AtomicU64::new(first));
    (Fleet { mailbox: sender, changes, counter, ambient, stopping }, owner)
}

impl<S: Store> Owner<S> {
    /// Lets a simulation inspect the fleet after each batch, before anything of it is durable or performed.
    pub fn inspected(mut self, inspect: impl FnMut(&Core) + Send + 'static) -> Self {
        self.inspect = Some(Box::new(inspect));
        self
    }

    /// Runs until the server stops. An error means that decisions can no longer be made durable and that waiting does not
    /// help: the server must end.
    pub async fn run(mut self) -> Result<(), StoreError> {
        loop {
            let again = self.failing.as_ref().map(|f| f.again_at);
            let due = self.core.next_timer().map(|at| self.began + at).into_iter().chain(again).min();
            let mut batch = Vec::new();
            tokio::select! {
                // First, since a stopping server accepts nothing new.
                biased;
                () = self.stopping.cancelled() => break,
                // Deadlines before the mailbox, or a full mailbox would delay them without end.
                () = sleep_until(due) => {}
                count = self.mailbox.recv_many(&mut batch, BATCH) => if count == 0 { break },
            }
            self.handle_batch(batch).await?;
            if self.failing.as_ref().is_some_and(|f| f.again_at <= Instant::now()) {
                self.retry_writes().await?;
            }
        }
        if self.failing.is_some() {
            self.retry_writes().await?;
        }
        if self.failing.is_some() {
            tracing::warn!(
                rows = self.pending_writes.len(),
                "stopping with unwritten rows; agents will report their runners again"
            );
        }
        self.stop();
        Ok(())
    }

    async fn handle_batch(&mut self, batch: Vec<Message>) -> Result<(), StoreError> {
        let now = self.now();
        let mut reads: Vec<Answer> = Vec::new();
        let mut all = Decision::default();
        let mut changed = Vec::new();
        let decision = self.core.on_time(now);
        self.collect(decision, &mut all, &mut changed, now);
        for message in batch {
            let event = match message {
                Message::Event(event) => event,
                Message::Call(waiter, reply, event) => {
                    self.replies.insert(waiter, reply);
                    event
                }
                Message::Open(session, pipe) => {
                    self.pipes.insert(session, pipe);
                    continue;
                }
                Message::Read(read) => {
                    reads.push(read(&self.core, now));
                    continue;
                }
            };
            match &event {
                Event::CallerDisconnected { waiter } => {
                    self.replies.remove(waiter);
                }
                Event::SessionLost { session, .. } => {
                    self.pipes.remove(session);
                    self.pending_writes.forget_session(*session);
                }
                _ => {}
            }
            let decision = self.core.handle(event, now);
            self.collect(decision, &mut all, &mut changed, now);
        }
        self.inspect();
        let rolled_back = self.settle(all.writes, all.effects, now).await?;
        changed.retain(|change| !rolled_back.is_shown_by(change));
        for answer in reads {
            answer();
        }
        for change in changed {
            let _ = self.changes.send(change);
        }
        Ok(())
    }

    /// Adds one decision to those of its batch. What watchers are shown is read now, before the next event changes it.
    fn collect(&self, decision: Decision, all: &mut Decision, changed: &mut Vec<Arc<Change>>, now: Now) {
        changed.extend(self.changes_of(&decision, now));
        all.writes.extend(decision.writes);
        all.effects.extend(decision.effects);
    }

    /// Makes all writes durable, then performs the effects; while that is impossible, performs only what depends on no
    /// unwritten row. Returns the runners that were rolled back.
    async fn settle(
        &mut self,
        writes: Vec<Write>,
        effects: Vec<Effect>,
        now: Now,
    ) -> Result<RolledBack, StoreError> {
        let mut rolled_back = RolledBack::default();
        if self.failing.is_some() {
            self.pending_writes.keep(writes);
        } else if !writes.is_empty() {
            let writes = Arc::new(writes);
            if let Err(error) = self.store.commit(Arc::clone(&writes)).await {
                rolled_back = self.begin_to_fail(error, &writes, now)?;
            }
        }
        for effect in effects {
            let is_void = matches!(&effect, Effect::Send(_, command)
                if pending_writes::commanded(command).is_some_and(|id| rolled_back.runners.contains(&id)));
            if !is_void {
                self.perform_if_durable(effect, now);
            }
        }
        Ok(rolled_back)
    }

    /// From writable to unwritable. Rolls back the runners that were created by what could not be written.
    fn begin_to_fail(
        &mut self,
        error: StoreError,
        writes: &[Write],
        now: Now,
    ) -> Result<RolledBack, StoreError> {
        self.metrics.store_failed();
        let Some(reason) = error.may_pass() else { return Err(error) };
        let at = Instant::now();
        // A store that recovered only for a moment is still in the same outage: no new line in the log, no shorter pause.
        let last = self.recovered.as_ref().filter(|(since, _)| at.duration_since(*since) < STEADY);
        match last {
            None => tracing::error!(
                reason,
                "writing the server's state failed; retrying, and nothing that must be written is accepted"
            ),
            Some(_) => tracing::debug!(reason, "writing the server's state failed again; retrying"),
        }
        let first = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
        let mut backoff = last.map_or(first, |(_, backoff)| backoff.clone());
        let again_at = at + backoff.pause();
        self.failing = Some(Failing { reason: reason.clone(), since: at, again_at, backoff });
        let rolled_back = RolledBack::among(writes);
        self.pending_writes.keep(writes.iter().cloned());
        self.pending_writes.forget(&rolled_back.runners);
        let decision = self.core.store_fails(reason, &rolled_back.runners, now);
        self.keep_decision(decision, now);
        self.inspect();
        Ok(rolled_back)
    }

    /// Tries to write what is not written yet; once it is, performs what was held.
    async fn retry_writes(&mut self) -> Result<(), StoreError> {
        let writes = Arc::new(self.pending_writes.writes());
        let tried = match self.store.probe().await {
            Ok(()) => self.store.commit(Arc::clone(&writes)).await,
            Err(error) => Err(error),
        };
        let Some(failing) = &mut self.failing else { return Ok(()) };
        if let Err(error) = tried {
            self.metrics.store_failed();
            failing.reason = error.may_pass().ok_or(error)?;
            failing.again_at = Instant::now() + failing.backoff.pause();
            return Ok(());
        }
        let at = Instant::now();
        let flickers = self.recovered.as_ref().is_some_and(|(since, _)| at.duration_since(*since) < STEADY);
        if !flickers {
            tracing::warn!(
                rows = writes.len(),
                unwritable_ms = failing.since.elapsed().as_millis() as u64,
                "server's state written again"
            );
        }
        self.recovered = Some((at, failing.backoff.clone()));
        self.failing = None;
        for (session, command) in self.pending_writes.written() {
            self.send(session, command);
        }
        let now = self.now();
        let decision = self.core.store_works(now);
        self.inspect();
        let changes = self.changes_of(&decision, now);
        let rolled_back = self.settle(decision.writes, decision.effects, now).await?;
        for change in changes {
            if !rolled_back.is_shown_by(&change) {
                let _ = self.changes.send(change);
            }
        }
        Ok(())
    }

    /// Handles a decision while the store cannot be written.
    fn keep_decision(&mut self, decision: Decision, now: Now) {
        for change in self.changes_of(&decision, now) {
            let _ = self.changes.send(change);
        }
        self.pending_writes.keep(decision.writes);
        for effect in decision.effects {
            self.perform_if_durable(effect, now);
        }
    }

    /// Performs an effect, unless it depends on a row that is not durable.
    fn perform_if_durable(&mut self, effect: Effect, now: Now) {
        let Some(failing) = &self.failing else { return self.perform(effect) };
        match self.pending_writes.judge(effect, &failing.reason) {
            Verdict::Perform(effect) => self.perform(effect),
            Verdict::Held => {}
            Verdict::Unclaim(runner, effect) => {
                self.perform(effect);
                let decision = self.core.handle(Event::Undelivered { runner }, now);
                self.keep_decision(decision, now);
            }
        }
    }

    fn inspect(&mut self) {
        if let Some(inspect) = &mut self.inspect {
            inspect(&self.core);
        }
    }

    /// What watchers are shown of a decision.
    fn changes_of(&self, decision: &Decision, now: Now) -> Vec<Arc<Change>> {
        if self.changes.receiver_count() == 0 {
            return Vec::new();
        }
        let queued = match decision.queue_reasons {
            QueueReasons::Unchanged => &[],
            QueueReasons::Changed => self.core.queued(),
        };
        let runners = decision.changed.iter().chain(queued).filter_map(|id| self.core.view(*id, now));
        let agents = decision.agents.iter().map(|id| {
            self.core.agent_view(*id).map(Box::new).map_or(Change::AgentForgotten(*id), Change::Agent)
        });
        runners.map(|view| Change::Runner(Box::new(view))).chain(agents).map(Arc::new).collect()
    }

    fn now(&self) -> Now {
        Now { mono: self.began.elapsed(), wall: self.ambient.now() }
    }

    fn perform(&mut self, effect: Effect) {
        // A reply that is missing or of no use belongs to a caller that disconnected a moment ago.
        match effect {
            Effect::Added(waiter, answer) => {
                // Dropped if the caller has disconnected, which makes the runner unclaimed again.
                let answer = self.deliver(answer);
                if let Some(Reply::Added(reply)) = self.replies.remove(&waiter) {
                    let _ = reply.send(answer);
                }
            }
            Effect::Deleted(waiter, answer) => {
                if let Some(Reply::Deleted(reply)) = self.replies.remove(&waiter) {
                    let _ = reply.send(answer.map(drop));
                }
            }
            Effect::Registered(waiter, agent) => {
                if let Some(Reply::Registered(reply)) = self.replies.remove(&waiter) {
                    let _ = reply.send(agent);
                }
            }
            Effect::Cordoned(waiter, answer) => {
                if let Some(Reply::Cordoned(reply)) = self.replies.remove(&waiter) {
                    let _ = reply.send(answer.map(|view| *view));
                }
            }
            Effect::Send(session, command) => self.send(session, command),
            Effect::Close(session, reason) => self.close(session, reason),
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
        match pipe.try_send(SessionMessage::Command(command)) {
            // Closed: the event that it ended is on its way to the mailbox.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
            Err(mpsc::error::TrySendError::Full(_)) => self.close(session, Closed::Backlogged),
        }
    }

    fn close(&mut self, session: SessionId, reason: Closed) {
        if let Some(pipe) = self.pipes.remove(&session) {
            // If the pipe is full, the stream ends without a reason.
            let _ = pipe.try_send(SessionMessage::Close(reason));
            self.pending_writes.forget_session(session);
        }
    }

    fn stop(mut self) {
        // A dropped reply reads as `Refusal::Stopping`.
        self.replies.clear();
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
