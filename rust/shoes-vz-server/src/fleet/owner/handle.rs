//! The handle to the owner, and answers on their way.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shoes_vz_model::{AgentId, Ambient, CloudId};
use shoes_vz_proto::{
    agent as wire,
    fleet::{AgentView, RunnerView},
};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::fleet::{
    core::Snapshot,
    types::{AddRequest, Added, Event, Fresh, Order, Refusal, Registration, SessionId, WaiterId},
};

use super::{Change, Down, Message, PIPE, Watched};

/// Speaks with the owner. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Fleet {
    pub(super) mailbox: mpsc::Sender<Message>,
    pub(super) changes: broadcast::Sender<Arc<Change>>,
    pub(super) counter: Arc<AtomicU64>,
    pub(super) ambient: Ambient,
    pub(super) stopping: CancellationToken,
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
        let event = Event::Add { waiter, request, patience, fresh: Fresh::draw(&self.ambient) };
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
    pub fn ambient(&self) -> &Ambient {
        &self.ambient
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
pub(super) struct Delivered {
    pub(super) added: Added,
    pub(super) undelivered: OnDrop,
}

impl Delivered {
    fn take(self) -> Added {
        self.undelivered.disarm();
        self.added
    }
}

/// Sends an event when it is dropped, unless disarmed.
#[derive(Debug)]
pub(super) struct OnDrop(pub(super) Option<(mpsc::Sender<Message>, Event)>);

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
