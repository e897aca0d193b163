//! The connection to the server: this agent registers, reports every state and applies the server's commands. A server that
//! is unreachable stops nothing.
//!
//! ```text
//! connect ─▶ RegisterAgent ─▶ Sync ──▶ (each change: SyncRequest with everything; each response: one command)
//!    ▲            │ refused     │ broken
//!    └─ back-off ─┴─────────────┘      "unreachable" is logged once, and "reconnected" once
//! ```
//! A Go server pushes no commands and knows no ends: it is polled at its interval (protocol 0).

mod backoff;
mod stream;

use std::{sync::Arc, time::Duration};

use shoes_vz_model::id::AgentId;
use shoes_vz_process::secret::Token;
use shoes_vz_proto::agent::{
    AgentCapacity, AgentInfo, RegisterAgentRequest, RegisterAgentResponse, TemplateInfo,
    agent_service_client::AgentServiceClient,
};
use tokio::time::timeout;
use tonic::{
    Code, Request, Status,
    metadata::{Ascii, MetadataValue, errors::InvalidMetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use self::backoff::Backoff;
use crate::runners::Runners;

/// What this agent speaks: ids on commands, pushes, acknowledged ends.
pub const PROTOCOL: u32 = 1;

const CONNECT_DEADLINE: Duration = Duration::from_secs(5);
const REGISTER_DEADLINE: Duration = Duration::from_secs(10);
/// A half-open connection is found out within their sum.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);
const KEEPALIVE_DEADLINE: Duration = Duration::from_secs(5);
/// A list of every runner, and a script of some mebibytes.
const MAX_MESSAGE: usize = 64 << 20;

type Client = AgentServiceClient<InterceptedService<Channel, Bearer>>;

/// Adds the token to every call.
#[derive(Clone)]
pub(crate) struct Bearer(Option<MetadataValue<Ascii>>);

impl Bearer {
    fn of(token: Option<&Token>) -> Result<Self, InvalidMetadataValue> {
        let value = token.map(|t| {
            let mut value: MetadataValue<Ascii> = t.authorization().parse()?;
            value.set_sensitive(true);
            Ok(value)
        });
        value.transpose().map(Self)
    }
}

impl Interceptor for Bearer {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

pub struct ControlPlane {
    uri: String,
    client: Client,
    registration: RegisterAgentRequest,
    runners: Arc<Runners>,
}

/// How this host registers.
#[derive(Debug, Clone)]
pub struct Registration {
    pub agent_id: AgentId,
    pub hostname: String,
    pub max_runners: u32,
}

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("--server: {uri:?} is not a valid address: {source}")]
    Uri { uri: String, source: tonic::transport::Error },
    #[error("--token-file: {0}")]
    Token(#[from] InvalidMetadataValue),
}

impl ControlPlane {
    /// Connects when it is served.
    pub fn new(
        uri: &str,
        token: Option<&Token>,
        host: &Registration,
        runners: Arc<Runners>,
    ) -> Result<Self, ConnectError> {
        Self::over(uri, token, host, runners, |endpoint| endpoint.connect_lazy())
    }

    /// Over a network other than the system's: for simulations.
    pub fn over(
        uri: &str,
        token: Option<&Token>,
        host: &Registration,
        runners: Arc<Runners>,
        connect: impl FnOnce(Endpoint) -> Channel,
    ) -> Result<Self, ConnectError> {
        let endpoint = Endpoint::from_shared(uri.to_owned())
            .map_err(|source| ConnectError::Uri { uri: uri.to_owned(), source })?
            .connect_timeout(CONNECT_DEADLINE)
            .http2_keep_alive_interval(KEEPALIVE_EVERY)
            .keep_alive_timeout(KEEPALIVE_DEADLINE)
            .keep_alive_while_idle(true)
            .tcp_nodelay(true);
        let bearer = Bearer::of(token)?;
        let client = AgentServiceClient::with_interceptor(connect(endpoint), bearer)
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        let registration = registration(host, &runners);
        Ok(Self { uri: uri.to_owned(), client, registration, runners })
    }

    /// Serves this server, and never returns; `registered` is called each time it has accepted this agent and its stream.
    pub async fn serve(self, mut registered: impl FnMut(&RegisterAgentResponse)) {
        let mut backoff = Backoff::new(self.runners.agent().host.ambient.clone());
        let mut away: Option<Away> = None;
        loop {
            let status = match self.register().await {
                Ok(answer) => {
                    let opened = || {
                        match away.take() {
                            Some(_) => tracing::info!(server = self.uri, "reconnected to the server"),
                            None => tracing::info!(
                                server = self.uri,
                                protocol = answer.protocol,
                                "registered with the server"
                            ),
                        }
                        backoff.reset();
                        registered(&answer);
                    };
                    stream::run(self.client.clone(), &answer, &self.runners, opened).await
                }
                Err(status) => status,
            };
            let now = Away::of(&status);
            match away.replace(now) {
                Some(before) if before == now => {
                    tracing::debug!(server = self.uri, code = ?status.code(), reason = status.message(), "still no connection to the server; retrying");
                }
                _ => self.log(now, &status),
            }
            backoff.wait().await;
        }
    }

    async fn register(&self) -> Result<RegisterAgentResponse, Status> {
        let call = self.client.clone();
        let registration = self.registration.clone();
        let registered = async move { call.clone().register_agent(registration).await };
        match timeout(REGISTER_DEADLINE, registered).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => {
                Err(Status::deadline_exceeded(format!("no answer within {} s", REGISTER_DEADLINE.as_secs())))
            }
        }
    }

    fn log(&self, away: Away, status: &Status) {
        let (server, reason) = (&self.uri, status.message());
        match away {
            Away::Unreachable => {
                tracing::warn!(server, reason, "server unreachable; retrying, and the VMs keep running")
            }
            Away::Refuses => tracing::error!(
                server,
                reason,
                "server refuses this agent; retrying. Check --token-file on both sides"
            ),
        }
    }
}

/// What keeps this agent from its server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Away {
    Unreachable,
    Refuses,
}

impl Away {
    fn of(status: &Status) -> Self {
        match status.code() {
            Code::Unauthenticated | Code::PermissionDenied => Self::Refuses,
            _ => Self::Unreachable,
        }
    }
}

fn registration(host: &Registration, runners: &Runners) -> RegisterAgentRequest {
    let agent = &runners.agent().host;
    let template = &agent.template;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    RegisterAgentRequest {
        hostname: host.hostname.clone(),
        capacity: Some(AgentCapacity {
            max_runners: host.max_runners,
            cpu_cores: u32::try_from(cores).unwrap_or(u32::MAX),
            memory_bytes: memory_bytes(),
        }),
        agent_id: host.agent_id.to_string(),
        info: Some(AgentInfo {
            version: env!("CARGO_PKG_VERSION").into(),
            os: std::env::consts::OS.into(),
            arch: std::env::consts::ARCH.into(),
            hypervisor: match agent.hypervisor {
                shoes_vz_vm::spec::HypervisorKind::Qemu => "qemu".into(),
                shoes_vz_vm::spec::HypervisorKind::Vz => "vz".into(),
            },
            protocol: PROTOCOL,
            templates: vec![TemplateInfo {
                name: template.name.clone(),
                version: template.meta.version.clone(),
                os: template.meta.os.as_str().into(),
                labels: template.meta.labels.clone(),
            }],
        }),
    }
}

/// 0, as a Go agent reports, where it is unknown.
fn memory_bytes() -> u64 {
    match sysinfo::System::new() {
        Ok(mut system) => {
            system.refresh_memory();
            system.total_memory()
        }
        Err(error) => {
            tracing::warn!(reason = %error, "reading the size of this host's memory failed");
            0
        }
    }
}
