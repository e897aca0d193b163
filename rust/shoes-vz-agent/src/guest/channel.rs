//! A guest reached over `guest.sock`, which needs neither an address nor a network.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use futures::StreamExt as _;
use shoes_vz_channel::{
    api::{ApiError, GuestApi},
    socket,
};
use shoes_vz_model::{
    guest::{ExecRequest, ExecResponse, Personalization, SetupPhase, Status, port},
    id::RunnerId,
};
use tokio::{
    sync::{Notify, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    follow::{GuestFollower, Pause, SetupLog},
    interface::{Guest, GuestError},
};
use crate::{
    bundles::Script,
    ssh::{Ssh, SshError},
};

/// Longest that a new event stream may take to deliver its first event.
const FIRST_EVENT_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Clone)]
pub(super) struct ChannelGuest {
    socket: Arc<PathBuf>,
    ssh: Ssh,
}

impl ChannelGuest {
    pub(super) fn new(socket: &Path, ssh: Ssh) -> Self {
        Self { socket: Arc::new(socket.to_owned()), ssh }
    }

    fn api(&self) -> GuestApi {
        GuestApi::new(&*self.socket)
    }
}

#[async_trait]
impl Guest for ChannelGuest {
    fn address(&self) -> Option<IpAddr> {
        None
    }

    /// The dial waits until the guest's sshd listens.
    async fn try_ssh(&self) -> Result<(), SshError> {
        let stream =
            socket::dial(&self.socket, port::SSH).await.map_err(|e| SshError::Connect(e.to_string()))?;
        self.ssh.ready(stream).await
    }

    async fn hand_over(&self, runner: RunnerId, script: &Script) -> Result<(), GuestError> {
        self.api().put_setup(runner, script.secret().clone()).await.map(drop).map_err(api_error)
    }

    async fn personalize(&self, personalization: &Personalization) -> Result<(), GuestError> {
        match self.api().personalize(personalization).await {
            Ok(personalized) => {
                tracing::debug!(clock_was_behind_ms = personalized.clock_was_behind_ms, "guest personalized");
                Ok(())
            }
            Err(error) => Err(api_error(error)),
        }
    }

    async fn prepare_save(&self) -> Result<(), GuestError> {
        self.api().prepare_save().await.map_err(api_error)
    }

    async fn query_status(&self) -> Result<Option<Status>, GuestError> {
        match self.api().status().await {
            Ok(status) => Ok(Some(status)),
            Err(ApiError::Refused { .. } | ApiError::Malformed { .. }) => Ok(None),
            Err(error) => Err(api_error(error)),
        }
    }

    fn follow(&self, _: RunnerId, log: &Path) -> GuestFollower {
        let (sender, status) = watch::channel(None);
        let reopen = Arc::new(Notify::new());
        let log = SetupLog::open(log);
        let logged = log.written.subscribe();
        let mut tasks = JoinSet::new();
        tasks.spawn(follow_status(self.api(), sender, reopen.clone()));
        tasks.spawn(follow_log(self.api(), status.clone(), log));
        GuestFollower::new(status, logged, Some(reopen), tasks)
    }
}

async fn follow_status(api: GuestApi, sender: watch::Sender<Option<Status>>, reopen: Arc<Notify>) {
    let mut pause = Pause::new();
    loop {
        let mut events = api.events();
        let (opened, mut has_delivered) = (Instant::now(), false);
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                // A stream that was opened just now may be behind; that is no reason to close it.
                () = reopen.notified() => match has_delivered || opened.elapsed() >= FIRST_EVENT_TIMEOUT {
                    false => continue,
                    true => {
                        tracing::info!("guest event stream stalled; reconnecting");
                        None
                    }
                },
            };
            has_delivered = true;
            match event {
                Some(Ok(status)) => {
                    pause.reset();
                    sender.send_replace(Some(status));
                }
                Some(Err(error)) => {
                    tracing::debug!(reason = %error, "guest event stream failed; reconnecting");
                    break;
                }
                None => break,
            }
        }
        pause.wait().await;
    }
}

async fn follow_log(api: GuestApi, mut status: watch::Receiver<Option<Status>>, mut log: SetupLog) {
    let has_started = |s: &Option<Status>| s.as_ref().is_some_and(|s| s.setup.phase != SetupPhase::None);
    if status.wait_for(has_started).await.is_err() {
        return;
    }
    let mut pause = Pause::new();
    loop {
        let mut chunks = api.setup_log(log.len());
        let mut at_end = false;
        loop {
            match chunks.next().await {
                Some(Ok(bytes)) => {
                    pause.reset();
                    if let Err(error) = log.append(&bytes) {
                        tracing::warn!(reason = %error, "writing setup.log failed; the rest of the setup script's output is lost");
                        return;
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(reason = %error, "setup log stream failed; reconnecting");
                    break;
                }
                None => {
                    at_end = true;
                    break;
                }
            }
        }
        let is_complete = |s: &Option<Status>| {
            s.as_ref().is_some_and(|s| s.setup.phase == SetupPhase::Exited && log.len() >= s.setup.log_bytes)
        };
        if at_end && is_complete(&status.borrow()) {
            return;
        }
        pause.wait().await;
    }
}

pub(super) async fn exec(socket: &Path, request: ExecRequest) -> Result<ExecResponse, GuestError> {
    GuestApi::new(socket).exec(request).await.map_err(api_error)
}

fn api_error(error: ApiError) -> GuestError {
    match error.status() {
        // A server error may pass, as when a full disk is being emptied. A client error does not.
        Some(status) if status.is_client_error() => GuestError::Refused(error.to_string()),
        _ => GuestError::Unavailable(error.to_string()),
    }
}
