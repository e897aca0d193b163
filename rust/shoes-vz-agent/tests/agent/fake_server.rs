//! A server that takes any agent, notes what it is told, and sends what the test wants; it can go away and come back on
//! the same port.

use std::{net::SocketAddr, pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _};
use shoes_vz_proto::agent::{
    RegisterAgentRequest, RegisterAgentResponse, SyncRequest, SyncResponse,
    agent_service_server::{AgentService, AgentServiceServer},
};
use tokio::sync::{broadcast, watch};
use tokio_stream::wrappers::{BroadcastStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

pub(crate) struct FakeServer {
    pub(crate) addr: SocketAddr,
    pub(crate) told: watch::Receiver<Told>,
    pub(crate) commands: broadcast::Sender<SyncResponse>,
    /// Its own, so that every connection dies with it.
    runtime: Option<tokio::runtime::Runtime>,
}

/// What an agent said.
#[derive(Debug, Clone, Default)]
pub(crate) struct Told {
    pub(crate) registrations: Vec<RegisterAgentRequest>,
    pub(crate) authorization: Option<String>,
    pub(crate) last: SyncRequest,
    pub(crate) acks: Vec<(String, String)>,
    /// Of those, the commands another agent may take.
    pub(crate) try_elsewhere: Vec<String>,
    pub(crate) syncs: usize,
}

#[derive(Clone)]
struct Service {
    protocol: u32,
    told: Arc<watch::Sender<Told>>,
    commands: broadcast::Sender<SyncResponse>,
}

impl FakeServer {
    pub(crate) async fn start(addr: &str, protocol: u32) -> Self {
        // The port was free a moment ago; its last connections may linger.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(addr.parse().unwrap()).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = {
            let _in_it = runtime.enter();
            socket.listen(16).unwrap()
        };
        let addr = listener.local_addr().unwrap();
        let (told, seen) = watch::channel(Told::default());
        let commands = broadcast::Sender::new(64);
        let service = Service { protocol, told: Arc::new(told), commands: commands.clone() };
        let served = tonic::transport::Server::builder()
            .add_service(AgentServiceServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        runtime.spawn(async move { served.await.unwrap() });
        Self { addr, told: seen, commands, runtime: Some(runtime) }
    }

    /// As after a crash: every connection breaks.
    pub(crate) fn die(self) -> SocketAddr {
        self.addr
    }

    pub(crate) async fn until(&mut self, wanted: impl FnMut(&Told) -> bool) -> Told {
        let told = tokio::time::timeout(crate::host::PATIENCE, self.told.wait_for(wanted)).await;
        match told.map(|told| told.unwrap().clone()) {
            Ok(told) => told,
            Err(_) => panic!("not told in time; last {:#?}", self.told.borrow()),
        }
    }
}

impl Drop for FakeServer {
    fn drop(&mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

type Responses = Pin<Box<dyn Stream<Item = Result<SyncResponse, Status>> + Send>>;

#[tonic::async_trait]
impl AgentService for Service {
    async fn register_agent(
        &self,
        request: Request<RegisterAgentRequest>,
    ) -> Result<Response<RegisterAgentResponse>, Status> {
        let authorization = request.metadata().get("authorization").map(|v| v.to_str().unwrap().to_owned());
        let request = request.into_inner();
        let agent_id = request.agent_id.clone();
        self.told.send_modify(|t| {
            t.authorization = authorization;
            t.registrations.push(request);
        });
        let protocol = self.protocol;
        Ok(Response::new(RegisterAgentResponse { agent_id, sync_interval_seconds: 1, protocol }))
    }

    type SyncStream = Responses;

    async fn sync(&self, request: Request<Streaming<SyncRequest>>) -> Result<Response<Responses>, Status> {
        let told = self.told.clone();
        let mut inbound = request.into_inner();
        let commands = BroadcastStream::new(self.commands.subscribe());
        let listen = async move {
            while let Ok(Some(request)) = inbound.message().await {
                told.send_modify(|t| {
                    let elsewhere = request.acks.iter().filter(|a| a.try_elsewhere);
                    t.try_elsewhere.extend(elsewhere.map(|a| a.command_id.clone()));
                    t.acks.extend(request.acks.iter().map(|a| (a.command_id.clone(), a.error.clone())));
                    t.last = request;
                    t.syncs += 1;
                });
            }
        };
        // Ends with the call, as all of it does when the server dies.
        let heard = futures::stream::once(listen).filter_map(|()| std::future::ready(None));
        let responses = commands.filter_map(|c| std::future::ready(c.ok().map(Ok)));
        Ok(Response::new(Box::pin(futures::stream::select(heard, responses))))
    }
}
