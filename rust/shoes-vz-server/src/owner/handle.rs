//! The handle to the owner.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use shoes_vz_model::{AgentId, Ambient, CloudId, RunnerId};
use shoes_vz_proto::{
    agent as wire,
    fleet::{AgentView, RunnerView},
};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::fleet::{
    core::Core,
    event::{AddRequest, CordonOrder, Event, Refusal, Registration},
    runner::Added,
    snapshot::Snapshot,
    values::{NewIds, Now, SessionId, WaiterId},
};

use super::mailbox::{Answer, Change, Delivered, Message, OnDrop, Reply, SessionMessage, Watched};

/// Commands that may wait for one agent; beyond that, its stream is closed and the agent opens a new one.
const PIPE: usize = 256;

/// Talks to the owner. Cheap to clone.
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

    /// AddInstance: returns once the runner answers SSH. Dropping the future reports that the caller disconnected.
    pub async fn add(&self, request: AddRequest, timeout: Duration) -> Result<Added, Refusal> {
        let waiter = WaiterId(self.number());
        let disconnected = OnDrop::new(&self.mailbox, Event::CallerDisconnected { waiter });
        let event = Event::Add { waiter, request, timeout, new_ids: NewIds::draw(&self.ambient) };
        let answer = self.call(waiter, Reply::Added, event).await;
        disconnected.disarm();
        answer?.map(Delivered::take)
    }

    /// DeleteInstance: returns once the agent reports that the runner has ended.
    pub async fn delete(&self, cloud_id: CloudId, timeout: Duration) -> Result<(), Refusal> {
        let waiter = WaiterId(self.number());
        let disconnected = OnDrop::new(&self.mailbox, Event::CallerDisconnected { waiter });
        let answer = self.call(waiter, Reply::Deleted, Event::Delete { waiter, cloud_id, timeout }).await;
        disconnected.disarm();
        answer?
    }

    pub async fn register(&self, registration: Registration) -> Result<AgentId, Refusal> {
        let waiter = WaiterId(self.number());
        let event = Event::Register { waiter, registration: Box::new(registration) };
        self.call(waiter, Reply::Registered, event).await
    }

    /// CordonAgent, UncordonAgent: returns the agent's new view once the change is durable.
    pub async fn cordon(&self, agent: String, order: CordonOrder) -> Result<AgentView, Refusal> {
        let waiter = WaiterId(self.number());
        self.call(waiter, Reply::Cordoned, Event::Cordon { waiter, agent, order }).await?
    }

    /// Opens a Sync stream; its commands come out of the receiver.
    pub async fn open(&self) -> Result<(SessionId, mpsc::Receiver<SessionMessage>), Refusal> {
        let session = SessionId(self.number());
        let (pipe, commands) = mpsc::channel(PIPE);
        self.send(Message::Open(session, pipe)).await?;
        Ok((session, commands))
    }

    /// Hands over a message of a Sync stream.
    pub async fn synced(
        &self,
        session: SessionId,
        agent: AgentId,
        request: wire::SyncRequest,
    ) -> Result<(), Refusal> {
        self.send(Message::Event(Event::Synced { session, agent, request: Box::new(request) })).await
    }

    /// Reports that a Sync stream ended.
    pub async fn session_lost(&self, session: SessionId, reason: String) {
        // A stopping server closes its streams anyway.
        let _ = self.send(Message::Event(Event::SessionLost { session, reason })).await;
    }

    pub async fn snapshot(&self, with_ended: bool) -> Result<Snapshot, Refusal> {
        self.read(move |core, now| core.snapshot(with_ended, now)).await
    }

    /// The watched runners. Ended ones are included only when a single one is watched.
    pub async fn view(&self, watched: Watched) -> Result<Vec<RunnerView>, Refusal> {
        self.read(move |core, now| {
            let one: Option<RunnerId> = match &watched {
                Watched::All => return core.snapshot(false, now).runners,
                Watched::Cloud(cloud_id) => core.find_by_cloud(*cloud_id),
                Watched::Name(name) => core.find_by_name(name),
            };
            one.and_then(|id| core.view(id, now)).into_iter().collect()
        })
        .await
    }

    /// One agent; `None` if it is not known any more.
    pub async fn agent_view(&self, id: AgentId) -> Result<Option<AgentView>, Refusal> {
        self.read(move |core, _| core.agent_view(id)).await
    }

    /// Every change from now on.
    pub fn changes(&self) -> broadcast::Receiver<Arc<Change>> {
        self.changes.subscribe()
    }

    pub fn ambient(&self) -> &Ambient {
        &self.ambient
    }

    /// Cancelled when the server is to stop.
    pub fn stopping(&self) -> &CancellationToken {
        &self.stopping
    }

    async fn call<T>(
        &self,
        waiter: WaiterId,
        reply: impl FnOnce(oneshot::Sender<T>) -> Reply,
        event: Event,
    ) -> Result<T, Refusal> {
        let (sender, answer) = oneshot::channel();
        self.send(Message::Call(waiter, reply(sender), event)).await?;
        answer.await.map_err(|_| Refusal::Stopping)
    }

    async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Core, Now) -> T + Send + 'static,
    ) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        let read = move |core: &Core, now: Now| -> Answer {
            let seen = look(core, now);
            Box::new(move || {
                let _ = reply.send(seen);
            })
        };
        self.send(Message::Read(Box::new(read))).await?;
        answer.await.map_err(|_| Refusal::Stopping)
    }

    async fn send(&self, message: Message) -> Result<(), Refusal> {
        self.mailbox.send(message).await.map_err(|_| Refusal::Stopping)
    }
}
