//! AgentService: registration and the Sync streams.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _, stream};
use shoes_vz_model::AgentId;
use shoes_vz_proto::agent::{
    RegisterAgentRequest, RegisterAgentResponse, SyncRequest, SyncResponse,
    agent_service_server::AgentService,
};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use crate::{
    fleet::{
        event::{Closed, Refusal, Registration},
        values::SessionId,
    },
    metrics::{Metrics, PanicSite},
    owner::{Fleet, SessionMessage},
};

use super::{call::status, panics};

/// How often a Go agent sends; others send on every change.
const SYNC_INTERVAL_SECONDS: i32 = 5;
/// Tells agents that this server pushes commands with ids.
const PROTOCOL: u32 = 1;

#[derive(Debug)]
pub(super) struct Agents {
    pub(super) fleet: Fleet,
    pub(super) metrics: Arc<Metrics>,
}

#[tonic::async_trait]
impl AgentService for Agents {
    type SyncStream = Pin<Box<dyn Stream<Item = Result<SyncResponse, Status>> + Send>>;

    async fn register_agent(
        &self,
        request: Request<RegisterAgentRequest>,
    ) -> Result<Response<RegisterAgentResponse>, Status> {
        let RegisterAgentRequest { hostname, capacity, agent_id, info } = request.into_inner();
        let agent_id = match agent_id.as_str() {
            "" => None,
            text => Some(text.parse::<AgentId>().map_err(|e| Status::invalid_argument(e.to_string()))?),
        };
        let registration = Registration {
            agent_id,
            new_id: self.fleet.ambient().uuid().into(),
            hostname: hostname.chars().filter(|c| !c.is_control()).take(255).collect(),
            capacity: capacity.unwrap_or_default(),
            info,
        };
        let agent_id = self.fleet.register(registration).await.map_err(|e| status(&e))?;
        Ok(Response::new(RegisterAgentResponse {
            agent_id: agent_id.to_string(),
            sync_interval_seconds: SYNC_INTERVAL_SECONDS,
            protocol: PROTOCOL,
        }))
    }

    async fn sync(
        &self,
        request: Request<Streaming<SyncRequest>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        let (session, commands) = self.fleet.open().await.map_err(|e| status(&e))?;
        let closed = CancellationToken::new();
        let (fleet, metrics) = (self.fleet.clone(), Arc::clone(&self.metrics));
        let listen = listen(self.fleet.clone(), session, request.into_inner(), closed.clone());
        let guarded = async move {
            if panics::caught(&metrics, PanicSite::Agent, listen).await.is_err() {
                // The agent has no listener any more, so its stream is closed and it reconnects.
                fleet.session_lost(session, panics::TEXT.to_owned()).await;
            }
        };
        tokio::spawn(guarded.in_current_span());
        // Dropped with the stream, whichever side ends it; that ends the listener too.
        let down = Downstream { commands, _closed: closed.drop_guard() };
        let down = stream::unfold(Some(down), Downstream::next);
        Ok(Response::new(Box::pin(panics::guarded(Arc::clone(&self.metrics), down))))
    }
}

/// Hands over every message until the stream ends, and finally that it ended.
async fn listen(
    fleet: Fleet,
    session: SessionId,
    mut messages: Streaming<SyncRequest>,
    closed: CancellationToken,
) {
    let reason = loop {
        let message = tokio::select! {
            () = closed.cancelled() => break "the stream was closed".to_owned(),
            message = messages.next() => message,
        };
        let request = match message {
            Some(Ok(request)) => request,
            Some(Err(e)) => break format!("the stream failed: {}", e.message()),
            None => break "the agent ended the stream".to_owned(),
        };
        let agent = match request.agent_id.parse::<AgentId>() {
            Ok(agent) => agent,
            Err(e) => break e.to_string(),
        };
        if fleet.synced(session, agent, request).await.is_err() {
            break Refusal::Stopping.to_string();
        }
    };
    fleet.session_lost(session, reason).await;
}

struct Downstream {
    commands: mpsc::Receiver<SessionMessage>,
    _closed: DropGuard,
}

impl Downstream {
    async fn next(this: Option<Self>) -> Option<(Result<SyncResponse, Status>, Option<Self>)> {
        let mut this = this?;
        match this.commands.recv().await? {
            SessionMessage::Command(command) => Some((Ok(*command), Some(this))),
            SessionMessage::Close(reason) => Some((Err(closed_status(reason)), None)),
        }
    }
}

fn closed_status(reason: Closed) -> Status {
    match reason {
        Closed::Unregistered => {
            Status::failed_precondition("this agent is not registered: call RegisterAgent first")
        }
        Closed::Replaced => Status::aborted("a newer stream of this agent has replaced this one"),
        Closed::Backlogged => {
            Status::resource_exhausted("too many commands wait for this agent; open a new stream")
        }
        Closed::Stopping => Status::unavailable("the server is stopping; reconnect"),
    }
}
