//! A guest over `guest.sock`: no address, no network.

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
    Following, Guest, GuestError,
    follow::{Log, Pause},
};
use crate::{
    bundles::Script,
    ssh::{Ssh, SshError},
};

/// So long events may take until they begin to tell.
const FIRST_EVENT: Duration = Duration::from_secs(10);

/// See the module.
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

    /// The dial waits for the guest's sshd to listen.
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
                tracing::debug!(
                    clock_was_behind_ms = personalized.clock_was_behind_ms,
                    "the guest is personalized"
                );
                Ok(())
            }
            Err(error) => Err(api_error(error)),
        }
    }

    async fn prepare_save(&self) -> Result<(), GuestError> {
        self.api().prepare_save().await.map_err(api_error)
    }

    async fn ask(&self) -> Result<Option<Status>, GuestError> {
        match self.api().status().await {
            Ok(status) => Ok(Some(status)),
            Err(ApiError::Answer { .. } | ApiError::Nonsense { .. }) => Ok(None),
            Err(error) => Err(api_error(error)),
        }
    }

    fn follow(&self, _: RunnerId, log: &Path) -> Following {
        let (sender, status) = watch::channel(None);
        let reopen = Arc::new(Notify::new());
        let log = Log::open(log);
        let logged = log.written.subscribe();
        let mut tasks = JoinSet::new();
        tasks.spawn(follow_status(self.api(), sender, reopen.clone()));
        tasks.spawn(follow_log(self.api(), status.clone(), log));
        Following::new(status, logged, Some(reopen), tasks)
    }
}

async fn follow_status(api: GuestApi, sender: watch::Sender<Option<Status>>, reopen: Arc<Notify>) {
    let mut pause = Pause::new();
    loop {
        let mut events = api.events();
        let (opened, mut told) = (Instant::now(), false);
        loop {
            let event = tokio::select! {
                event = events.next() => event,
                // One that was opened just now may well be behind, and is not given up for that.
                () = reopen.notified() => match told || opened.elapsed() >= FIRST_EVENT {
                    false => continue,
                    true => {
                        tracing::info!("the guest agent's events have stopped telling; asking for them anew");
                        None
                    }
                },
            };
            told = true;
            match event {
                Some(Ok(status)) => {
                    pause.reset();
                    sender.send_replace(Some(status));
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "the guest agent's events broke off; asking again");
                    break;
                }
                None => break,
            }
        }
        pause.wait().await;
    }
}

async fn follow_log(api: GuestApi, mut status: watch::Receiver<Option<Status>>, mut log: Log) {
    let begun = |s: &Option<Status>| s.as_ref().is_some_and(|s| s.setup.phase != SetupPhase::None);
    if status.wait_for(begun).await.is_err() {
        return;
    }
    let mut pause = Pause::new();
    loop {
        let mut chunks = api.setup_log(log.len());
        let mut whole = false;
        loop {
            match chunks.next().await {
                Some(Ok(bytes)) => {
                    pause.reset();
                    if let Err(error) = log.append(&bytes) {
                        tracing::warn!(%error, "the setup script's output cannot be written to setup.log any more");
                        return;
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "the setup script's output broke off; asking again");
                    break;
                }
                None => {
                    whole = true;
                    break;
                }
            }
        }
        let all = |s: &Option<Status>| {
            s.as_ref().is_some_and(|s| s.setup.phase == SetupPhase::Exited && log.len() >= s.setup.log_bytes)
        };
        if whole && all(&status.borrow()) {
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
        // A server error may be a full disk that is being emptied; anything else is our fault, or another script's.
        Some(status) if status.is_client_error() => GuestError::Refused(error.to_string()),
        _ => GuestError::Broken(error.to_string()),
    }
}
