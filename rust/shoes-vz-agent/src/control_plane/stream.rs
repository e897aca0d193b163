//! One Sync stream, from its opening to its end.

use std::{collections::BTreeMap, time::Duration};

use shoes_vz_model::id::RunnerId;
use shoes_vz_proto::agent::{
    CommandAck, EndKind, RegisterAgentResponse, Runner, RunnerState, SyncRequest, SyncResponse,
    sync_response::Command,
};
use tokio::{
    sync::{mpsc, watch},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::{Client, REGISTER_DEADLINE};
use crate::runners::Runners;

/// Runs it; `opened` is called once the server has accepted it. Returns why it ended.
pub(super) async fn run(
    client: Client,
    registered: &RegisterAgentResponse,
    runners: &Runners,
    opened: impl FnOnce(),
) -> Status {
    // One message in flight: the next is built when it can be sent, so it always shows the present.
    let (sender, receiver) = mpsc::channel(1);
    let mut link = Link { agent_id: registered.agent_id.clone(), sender, runners };
    let ended = match registered.protocol {
        0 => {
            let seconds = u64::try_from(registered.sync_interval_seconds).unwrap_or(0).max(1);
            link.ticked(client, receiver, Duration::from_secs(seconds), opened).await
        }
        _ => link.pushed(client, receiver, opened).await,
    };
    ended.err().unwrap_or_else(|| Status::unavailable("the server ended the stream"))
}

struct Link<'a> {
    agent_id: String,
    sender: mpsc::Sender<SyncRequest>,
    runners: &'a Runners,
}

impl Link<'_> {
    async fn pushed(
        &mut self,
        client: Client,
        receiver: mpsc::Receiver<SyncRequest>,
        opened: impl FnOnce(),
    ) -> Result<(), Status> {
        let mut board = self.runners.agent().board.watch();
        let mut refusal = self.runners.agent().disk.refusal();
        // The server answers the opening only after the first message.
        refusal.mark_unchanged();
        let mut pool = self.runners.agent().pool.watch();
        let first = self.request(&board.borrow_and_update(), Vec::new());
        self.send(first).await?;
        let mut responses = open(client, receiver).await?;
        opened();
        let mut acks = Vec::new();
        loop {
            let changed =
                board.has_changed().and_then(|b| Ok(b || refusal.has_changed()? || pool.has_changed()?));
            let dirty = !acks.is_empty() || changed.map_err(|_| hung_up())?;
            tokio::select! {
                biased;
                // Commands first: what they change goes out with the next message.
                response = responses.message() => match response? {
                    Some(response) => acks.extend(self.apply(response)),
                    None => return Ok(()),
                },
                permit = self.sender.reserve(), if dirty => {
                    let permit = permit.map_err(|_| hung_up())?;
                    refusal.mark_unchanged();
                    pool.mark_unchanged();
                    let request = self.request(&board.borrow_and_update(), std::mem::take(&mut acks));
                    permit.send(request);
                }
                changed = board.changed(), if !dirty => {
                    changed.map_err(|_| hung_up())?;
                    board.mark_changed();
                }
                changed = refusal.changed(), if !dirty => {
                    changed.map_err(|_| hung_up())?;
                    refusal.mark_changed();
                }
                changed = pool.changed(), if !dirty => {
                    changed.map_err(|_| hung_up())?;
                    pool.mark_changed();
                }
            }
        }
    }

    /// A Go server: a message each interval, at most one command in each answer.
    async fn ticked(
        &mut self,
        client: Client,
        receiver: mpsc::Receiver<SyncRequest>,
        every: Duration,
        opened: impl FnOnce(),
    ) -> Result<(), Status> {
        let board = self.runners.agent().board.watch();
        let mut tick = interval(every);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tick.tick().await;
        let first = self.go_request(&board);
        self.send(first).await?;
        let mut responses = open(client, receiver).await?;
        opened();
        loop {
            tokio::select! {
                biased;
                response = responses.message() => match response? {
                    Some(response) => {
                        let reason = self.runners.apply(response).reason;
                        if !reason.is_empty() {
                            // The server's deadline is the only way it learns of that.
                            tracing::warn!(reason, "command refused; the Go protocol cannot report it to the server");
                        }
                    }
                    None => return Ok(()),
                },
                _ = tick.tick() => {
                    let request = self.go_request(&board);
                    self.send(request).await?;
                }
            }
        }
    }

    fn apply(&self, response: SyncResponse) -> Option<CommandAck> {
        let acks: Vec<RunnerId> = response.end_acks.iter().filter_map(|id| id.parse().ok()).collect();
        self.runners.acknowledge(&acks);
        let command_id = response.command_id.clone();
        let is_command = !matches!(response.command, None | Some(Command::Noop(_)));
        let outcome = self.runners.apply(response);
        (is_command && !command_id.is_empty()).then_some(CommandAck {
            command_id,
            error: outcome.reason,
            try_elsewhere: outcome.try_elsewhere,
        })
    }

    fn request(&self, runners: &BTreeMap<RunnerId, Runner>, acks: Vec<CommandAck>) -> SyncRequest {
        let agent = self.runners.agent();
        let active = runners.values().filter(|r| r.end.is_none()).count();
        SyncRequest {
            agent_id: self.agent_id.clone(),
            active_runners: u32::try_from(active).unwrap_or(u32::MAX),
            runners: runners.values().cloned().collect(),
            acks,
            unschedulable_reason: agent.disk.refusal().borrow().clone().unwrap_or_default(),
            hot: agent.pool.shown(),
            restore_fallbacks: agent.host.saved_states.fallbacks(),
        }
    }

    /// In a Go server's terms. It waits for exactly SSH_READY, so a faster runner stays that until it ends. It knows no
    /// ends: a runner that failed is shown as ERROR until the server deletes it, any other once as TEARING_DOWN.
    fn go_request(&self, board: &watch::Receiver<BTreeMap<RunnerId, Runner>>) -> SyncRequest {
        // A copy, so that the board is not locked when runners are removed from it below.
        let runners = board.borrow().clone();
        let mut request = self.request(&runners, Vec::new());
        let mut shown = Vec::new();
        for runner in &mut request.runners {
            match runner.end.take().map(|end| end.kind()) {
                Some(EndKind::Failed | EndKind::VmDied | EndKind::Unresponsive) => {
                    runner.state = RunnerState::Error.into()
                }
                Some(_) => {
                    runner.state = RunnerState::TearingDown.into();
                    shown.extend(runner.runner_id.parse::<RunnerId>());
                }
                None if runner.state() == RunnerState::Running => runner.state = RunnerState::SshReady.into(),
                None => {}
            }
        }
        self.runners.acknowledge(&shown);
        request
    }

    async fn send(&self, request: SyncRequest) -> Result<(), Status> {
        self.sender.send(request).await.map_err(|_| hung_up())
    }
}

async fn open(
    mut client: Client,
    receiver: mpsc::Receiver<SyncRequest>,
) -> Result<Streaming<SyncResponse>, Status> {
    match timeout(REGISTER_DEADLINE, client.sync(ReceiverStream::new(receiver))).await {
        Ok(opened) => opened.map(tonic::Response::into_inner),
        Err(_) => Err(Status::deadline_exceeded("the server does not answer the stream")),
    }
}

fn hung_up() -> Status {
    Status::unavailable("the stream to the server has ended")
}
