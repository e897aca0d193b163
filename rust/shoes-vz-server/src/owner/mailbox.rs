//! What the handle sends to the owner, and what the owner sends back.

use shoes_vz_model::{AgentId, CloudId, RunnerName};
use shoes_vz_proto::{
    agent as wire,
    fleet::{AgentView, RunnerView},
};
use tokio::sync::{mpsc, oneshot};

use crate::fleet::{
    core::Core,
    event::{Closed, Event, Refusal},
    runner::Added,
    values::{Now, SessionId, WaiterId},
};

/// Its answer is sent once everything decided before is settled.
pub(super) type Read = Box<dyn FnOnce(&Core, Now) -> Answer + Send>;

pub(super) enum Message {
    Event(Event),
    /// An event whose effect answers this call.
    Call(WaiterId, Reply, Event),
    /// Commands for a Sync stream go to this sender.
    Open(SessionId, mpsc::Sender<SessionMessage>),
    Read(Read),
}

/// Sends the result of a read.
pub(super) type Answer = Box<dyn FnOnce() + Send>;

/// Where the answer to a call goes.
pub(super) enum Reply {
    Added(oneshot::Sender<Result<Delivered, Refusal>>),
    Deleted(oneshot::Sender<Result<(), Refusal>>),
    Registered(oneshot::Sender<AgentId>),
    Cordoned(oneshot::Sender<Result<AgentView, Refusal>>),
}

/// What a Sync stream carries to its agent.
#[derive(Debug)]
pub enum SessionMessage {
    Command(Box<wire::SyncResponse>),
    /// The last message.
    Close(Closed),
}

/// Which runners to watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watched {
    All,
    Cloud(CloudId),
    /// The runner of this name, also before it exists.
    Name(RunnerName),
}

/// The new view of something that changed.
#[derive(Debug)]
pub enum Change {
    Runner(Box<RunnerView>),
    Agent(Box<AgentView>),
    AgentForgotten(AgentId),
}

/// An answer on its way. If it is dropped before it is taken, the runner becomes unclaimed again.
#[derive(Debug)]
pub(super) struct Delivered {
    pub(super) added: Added,
    pub(super) undelivered: OnDrop,
}

impl Delivered {
    pub(super) fn take(self) -> Added {
        self.undelivered.disarm();
        self.added
    }
}

/// Sends an event when it is dropped, unless disarmed.
#[derive(Debug)]
pub(super) struct OnDrop(pub(super) Option<(mpsc::Sender<Message>, Event)>);

impl OnDrop {
    pub(super) fn new(mailbox: &mpsc::Sender<Message>, event: Event) -> Self {
        Self(Some((mailbox.clone(), event)))
    }

    pub(super) fn disarm(mut self) {
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
                        // If the mailbox closes meanwhile, the server stops, and its next start has no waiters.
                        let _ = mailbox.send(message).await;
                    });
                }
            }
        }
    }
}
