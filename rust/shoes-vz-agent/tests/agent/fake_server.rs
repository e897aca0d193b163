//! A server that accepts every agent, records what it receives, and sends what the test wants. It can stop and start again
//! on the same port.

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
    pub(crate) received: watch::Receiver<Received>,
    pub(crate) commands: broadcast::Sender<SyncResponse>,
    /// Not the test's, so that every connection ends with it.
    runtime: Option<tokio::runtime::Runtime>,
}

/// What an agent has sent.
#[derive(Debug, Clone, Default)]
pub(crate) struct Received {
    pub(crate) registrations: Vec<RegisterAgentRequest>,
    pub(crate) authorization: Option<String>,
    pub(crate) last: SyncRequest,
    pub(crate) acks: Vec<(String, String)>,
    /// The IDs of the acknowledged commands that another agent may execute.
    pub(crate) try_elsewhere: Vec<String>,
    pub(crate) syncs: usize,
}

#[derive(Clone)]
struct Service {
    protocol: u32,
    received: Arc<watch::Sender<Received>>,
    commands: broadcast::Sender<SyncResponse>,
}

impl FakeServer {
    pub(crate) async fn start(addr: &str, protocol: u32) -> Self {
        // The port was free a moment ago; its last connections may not be closed completely.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(addr.parse().unwrap()).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = {
            let _guard = runtime.enter();
            socket.listen(16).unwrap()
        };
        let addr = listener.local_addr().unwrap();
        let (sender, received) = watch::channel(Received::default());
        let commands = broadcast::Sender::new(64);
        let service = Service { protocol, received: Arc::new(sender), commands: commands.clone() };
        let served = tonic::transport::Server::builder()
            .add_service(AgentServiceServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        runtime.spawn(async move { served.await.unwrap() });
        Self { addr, received, commands, runtime: Some(runtime) }
    }

    /// Breaks every connection, as a crash does.
    pub(crate) fn crash(self) -> SocketAddr {
        self.addr
    }

    pub(crate) async fn until(&mut self, wanted: impl FnMut(&Received) -> bool) -> Received {
        let received = tokio::time::timeout(crate::host::TIMEOUT, self.received.wait_for(wanted)).await;
        match received.map(|received| received.unwrap().clone()) {
            Ok(received) => received,
            Err(_) => panic!("not received in time; last: {:#?}", self.received.borrow()),
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
        self.received.send_modify(|t| {
            t.authorization = authorization;
            t.registrations.push(request);
        });
        let protocol = self.protocol;
        Ok(Response::new(RegisterAgentResponse { agent_id, sync_interval_seconds: 1, protocol }))
    }

    type SyncStream = Responses;

    async fn sync(&self, request: Request<Streaming<SyncRequest>>) -> Result<Response<Responses>, Status> {
        let received = self.received.clone();
        let mut inbound = request.into_inner();
        let commands = BroadcastStream::new(self.commands.subscribe());
        let receive = async move {
            while let Ok(Some(request)) = inbound.message().await {
                received.send_modify(|t| {
                    let elsewhere = request.acks.iter().filter(|a| a.try_elsewhere);
                    t.try_elsewhere.extend(elsewhere.map(|a| a.command_id.clone()));
                    t.acks.extend(request.acks.iter().map(|a| (a.command_id.clone(), a.error.clone())));
                    t.last = request;
                    t.syncs += 1;
                });
            }
        };
        // Ends with the call, like everything else when the server crashes.
        let receiving = futures::stream::once(receive).filter_map(|()| std::future::ready(None));
        let responses = commands.filter_map(|c| std::future::ready(c.ok().map(Ok)));
        Ok(Response::new(Box::pin(futures::stream::select(receiving, responses))))
    }
}
