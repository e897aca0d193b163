//! A fake shoes-vz-server that speaks the real protocol, and a plugin host.
#![allow(
    dead_code,
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test binary uses a part"
)]

pub mod host;

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures::{Stream, StreamExt as _};
use shoes_vz_client::upstream::MAX_MESSAGE;
use shoes_vz_proto::fleet::{
    AddInstanceRequest, AddInstanceResponse, AgentView, Cordon, CordonAgentRequest, CordonAgentResponse,
    DeleteInstanceRequest, DeleteInstanceResponse, DrainAgentRequest, ListAgentsRequest, ListAgentsResponse,
    ListRunnersRequest, ListRunnersResponse, RunnerView, UncordonAgentRequest, UncordonAgentResponse,
    WatchRunnersRequest,
    fleet_service_server::{FleetService, FleetServiceServer},
    shoes_service_server::{ShoesService, ShoesServiceServer},
};
use shoes_vz_testkit::ports;
use tokio::{net::TcpListener, runtime::Runtime, sync::watch};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status, metadata::MetadataMap, transport::Server};

/// Upper limit for each step of a test; never waited for when the test passes.
pub const TIMEOUT: Duration = Duration::from_secs(30);
pub const BIN: &str = env!("CARGO_BIN_EXE_shoes-vz-client");
pub const CLOUD_ID: &str = "shoes-vz-00000000-0000-4000-8000-000000000001";

/// How the fake server handles a call.
#[derive(Debug, Clone)]
pub enum Behavior {
    /// With the resource type of the reply ("" like a Go server).
    Answer(&'static str),
    Refuse(Code, String),
    /// Never answers.
    Hang,
}

#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    pub method: &'static str,
    pub name: String,
    pub script: String,
    pub resource_type: String,
    pub labels: Vec<String>,
    pub request_id: Option<String>,
    pub timeout: Option<Duration>,
    pub authorization: Option<String>,
}

#[derive(Debug)]
struct State {
    behavior: Mutex<Behavior>,
    views: Mutex<Vec<RunnerView>>,
    agents: Mutex<Vec<AgentView>>,
    /// The header of WatchRunners' answer that counts the matching runners.
    matching: Mutex<Option<&'static str>>,
    /// Changes when every watch is to end, as when a server stops.
    stops: watch::Sender<u32>,
    seen: watch::Sender<Vec<Seen>>,
    abandoned: watch::Sender<usize>,
}

#[derive(Clone)]
struct Service(Arc<State>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Ours,
    /// ShoesService alone.
    Go,
}

/// Runs on separate threads, so that ending it cuts its connections as a crash does.
#[derive(Debug)]
pub struct FakeServer {
    pub addr: SocketAddr,
    state: Arc<State>,
    runtime: Option<Runtime>,
    kind: Kind,
}

impl FakeServer {
    pub async fn start(behavior: Behavior) -> Self {
        Self::start_kind(behavior, Kind::Ours).await
    }

    pub async fn start_kind(behavior: Behavior, kind: Kind) -> Self {
        let listener = TcpListener::bind(ports::fixed()).await.unwrap();
        let state = Arc::new(State {
            behavior: Mutex::new(behavior),
            views: Mutex::default(),
            agents: Mutex::default(),
            matching: Mutex::default(),
            stops: watch::channel(0).0,
            seen: watch::channel(Vec::new()).0,
            abandoned: watch::channel(0).0,
        });
        let mut fake = Self { addr: listener.local_addr().unwrap(), state, runtime: None, kind };
        fake.serve(listener);
        fake
    }

    /// A server that refuses connections.
    pub async fn down(behavior: Behavior) -> Self {
        let mut fake = Self::start(behavior).await;
        fake.crash();
        fake
    }

    /// Nothing listens on the port once this returns.
    pub fn crash(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A runtime must not be waited for on a thread of another runtime.
            std::thread::scope(|s| s.spawn(|| runtime.shutdown_timeout(TIMEOUT)).join()).unwrap();
        }
    }

    pub async fn restart(&mut self) {
        let listener = TcpListener::bind(self.addr).await.unwrap();
        self.serve(listener);
    }

    fn serve(&mut self, listener: TcpListener) {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let std = listener.into_std().unwrap();
        let service = Service(Arc::clone(&self.state));
        let fleet = (self.kind == Kind::Ours).then(|| FleetServiceServer::new(service.clone()));
        runtime.spawn(async move {
            let incoming = TcpListenerStream::new(TcpListener::from_std(std).unwrap());
            let shoes = ShoesServiceServer::new(service).max_decoding_message_size(MAX_MESSAGE);
            Server::builder()
                .add_service(shoes)
                .add_optional_service(fleet)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        self.runtime = Some(runtime);
    }

    pub fn set_behavior(&self, behavior: Behavior) {
        *self.state.behavior.lock().unwrap() = behavior;
    }

    pub fn set_runners(&self, views: Vec<RunnerView>) {
        *self.state.views.lock().unwrap() = views;
    }

    pub fn set_matching(&self, count: &'static str) {
        *self.state.matching.lock().unwrap() = Some(count);
    }

    pub fn end_watches(&self) {
        self.state.stops.send_modify(|n| *n += 1);
    }

    pub fn set_agents(&self, agents: Vec<AgentView>) {
        *self.state.agents.lock().unwrap() = agents;
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.borrow().clone()
    }

    pub async fn until_seen(&self, calls: usize) -> Seen {
        let mut seen = self.state.seen.subscribe();
        let seen = tokio::time::timeout(TIMEOUT, seen.wait_for(|s| s.len() >= calls)).await;
        seen.expect("the call arrives").unwrap()[calls - 1].clone()
    }

    pub async fn until_abandoned(&self) {
        let mut abandoned = self.state.abandoned.subscribe();
        tokio::time::timeout(TIMEOUT, abandoned.wait_for(|n| *n > 0))
            .await
            .expect("the call is cancelled")
            .unwrap();
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.crash();
    }
}

/// Counts a call that was dropped before its answer.
struct Pending<'a>(&'a State);

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.0.abandoned.send_modify(|n| *n += 1);
    }
}

impl State {
    async fn answer(&self, seen: Seen, metadata: &MetadataMap) -> Result<&'static str, Status> {
        let text = |name: &str| metadata.get(name).map(|v| v.to_str().unwrap().to_owned());
        let seen = Seen {
            request_id: text("x-request-id"),
            authorization: text("authorization"),
            timeout: shoes_vz_proto::convert::grpc_timeout(metadata),
            ..seen
        };
        // Read before the call becomes visible: a behavior that a test sets afterwards is for the next call.
        let behavior = self.behavior.lock().unwrap().clone();
        self.seen.send_modify(|all| all.push(seen));
        match behavior {
            Behavior::Answer(resource_type) => Ok(resource_type),
            Behavior::Refuse(code, message) => Err(Status::new(code, message)),
            Behavior::Hang => {
                let _pending = Pending(self);
                std::future::pending().await
            }
        }
    }
}

#[tonic::async_trait]
impl ShoesService for Service {
    async fn add_instance(
        &self,
        r: Request<AddInstanceRequest>,
    ) -> Result<Response<AddInstanceResponse>, Status> {
        let (metadata, _, m) = r.into_parts();
        let seen = Seen {
            method: "AddInstance",
            name: m.runner_name,
            script: m.setup_script,
            resource_type: m.resource_type,
            labels: m.labels,
            ..Seen::default()
        };
        let resource_type = self.0.answer(seen, &metadata).await?;
        Ok(Response::new(AddInstanceResponse {
            cloud_id: CLOUD_ID.into(),
            shoes_type: "shoes-vz".into(),
            ip_address: "192.0.2.7".into(),
            resource_type: resource_type.into(),
        }))
    }

    async fn delete_instance(
        &self,
        r: Request<DeleteInstanceRequest>,
    ) -> Result<Response<DeleteInstanceResponse>, Status> {
        let (metadata, _, m) = r.into_parts();
        let seen = Seen { method: "DeleteInstance", name: m.cloud_id, labels: m.labels, ..Seen::default() };
        self.0.answer(seen, &metadata).await?;
        Ok(Response::new(DeleteInstanceResponse {}))
    }
}

#[tonic::async_trait]
impl FleetService for Service {
    type WatchRunnersStream = Pin<Box<dyn Stream<Item = Result<RunnerView, Status>> + Send>>;
    type DrainAgentStream = Pin<Box<dyn Stream<Item = Result<AgentView, Status>> + Send>>;

    async fn cordon_agent(
        &self,
        r: Request<CordonAgentRequest>,
    ) -> Result<Response<CordonAgentResponse>, Status> {
        let (metadata, _, m) = r.into_parts();
        let cordon = Cordon { reason: m.reason, since: None };
        let seen =
            Seen { method: "CordonAgent", name: m.agent, script: cordon.reason.clone(), ..Seen::default() };
        self.0.answer(seen, &metadata).await?;
        let agent = self.0.agents.lock().unwrap().first().cloned();
        Ok(Response::new(CordonAgentResponse {
            agent: agent.map(|a| AgentView { cordon: Some(cordon), ..a }),
        }))
    }

    async fn uncordon_agent(
        &self,
        r: Request<UncordonAgentRequest>,
    ) -> Result<Response<UncordonAgentResponse>, Status> {
        let (metadata, _, m) = r.into_parts();
        let seen = Seen { method: "UncordonAgent", name: m.agent, ..Seen::default() };
        self.0.answer(seen, &metadata).await?;
        Ok(Response::new(UncordonAgentResponse { agent: self.0.agents.lock().unwrap().first().cloned() }))
    }

    /// Sends the agents as successive views of one agent; ends after one without runners, else stays open.
    async fn drain_agent(
        &self,
        r: Request<DrainAgentRequest>,
    ) -> Result<Response<Self::DrainAgentStream>, Status> {
        let (metadata, _, m) = r.into_parts();
        let seen = Seen { method: "DrainAgent", name: m.agent, script: m.reason, ..Seen::default() };
        self.0.answer(seen, &metadata).await?;
        let views = self.0.agents.lock().unwrap().clone();
        let is_last = views.last().is_some_and(|v| v.runners == 0);
        let views = futures::stream::iter(views.into_iter().map(Ok));
        let stream: Self::DrainAgentStream =
            if is_last { Box::pin(views) } else { Box::pin(views.chain(futures::stream::pending())) };
        Ok(Response::new(stream))
    }

    async fn list_runners(
        &self,
        r: Request<ListRunnersRequest>,
    ) -> Result<Response<ListRunnersResponse>, Status> {
        let ended = r.into_inner().include_ended;
        let mut runners = self.0.views.lock().unwrap().clone();
        runners.retain(|v| ended || v.runner.as_ref().is_none_or(|r| r.end.is_none()));
        Ok(Response::new(ListRunnersResponse { runners }))
    }

    /// Sends every view; ends after one of an ended runner, else stays open.
    async fn watch_runners(
        &self,
        _: Request<WatchRunnersRequest>,
    ) -> Result<Response<Self::WatchRunnersStream>, Status> {
        let views = self.0.views.lock().unwrap().clone();
        let is_last = views.last().and_then(|v| v.runner.as_ref()).is_some_and(|r| r.end.is_some());
        let views = futures::stream::iter(views.into_iter().map(Ok));
        let mut stops = self.0.stops.subscribe();
        let stopped = async move { stops.changed().await };
        let stream: Self::WatchRunnersStream = if is_last {
            Box::pin(views)
        } else {
            Box::pin(views.chain(futures::stream::pending()).take_until(stopped))
        };
        let mut response = Response::new(stream);
        if let Some(count) = *self.0.matching.lock().unwrap() {
            response.metadata_mut().insert("shoesvz-matching", count.parse().unwrap());
        }
        Ok(response)
    }

    async fn list_agents(
        &self,
        _: Request<ListAgentsRequest>,
    ) -> Result<Response<ListAgentsResponse>, Status> {
        Ok(Response::new(ListAgentsResponse { agents: self.0.agents.lock().unwrap().clone() }))
    }
}
