//! A server in this process, on ports that the system chooses, and an agent that the test plays, over real gRPC.

use std::{ffi::OsString, net::SocketAddr, path::Path, time::Duration};

use shoes_vz_proto::{
    agent::{
        AgentCapacity, AgentInfo, CommandAck, CreateRunnerCommand, RegisterAgentRequest, Runner, RunnerState,
        SyncRequest, SyncResponse, TemplateInfo, agent_service_client::AgentServiceClient,
        sync_response::Command,
    },
    fleet::{
        AddInstanceRequest, AddInstanceResponse, DeleteInstanceRequest, ListRunnersRequest, RunnerView,
        WatchRunnersRequest, fleet_service_client::FleetServiceClient,
        shoes_service_client::ShoesServiceClient,
    },
};
use shoes_vz_server::{
    serve::{self, ServeError},
    settings::Settings,
};
use tokio::{sync::mpsc, sync::oneshot, task::JoinHandle, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Status, Streaming,
    transport::{Channel, Endpoint},
};

/// Longest time for any single wait.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);

pub(crate) struct Server {
    pub(crate) grpc_addr: SocketAddr,
    pub(crate) metrics_addr: SocketAddr,
    /// `None` for a server in another process.
    local: Option<Local>,
}

/// Stops a server in this process.
struct Local {
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), ServeError>>,
}

impl Server {
    /// A server that runs already.
    pub(crate) fn at(grpc_addr: SocketAddr, metrics_addr: SocketAddr) -> Self {
        Self { grpc_addr, metrics_addr, local: None }
    }

    /// One that runs in another process and writes `ready` once it serves.
    pub(crate) async fn of_ready_file(ready: &Path) -> Self {
        let text = eventually("the server is ready", || std::fs::read_to_string(ready).ok()).await;
        let addrs: serde_json::Value = serde_json::from_str(&text).unwrap();
        let addr = |name: &str| addrs[name].as_str().unwrap().parse().unwrap();
        Self::at(addr("grpc_addr"), addr("metrics_addr"))
    }

    pub(crate) async fn start(state: &Path) -> Self {
        Self::start_with(state, &[]).await
    }

    pub(crate) async fn start_with(state: &Path, args: &[&str]) -> Self {
        let state = state.to_str().unwrap();
        let usual = [
            "shoes-vz-server",
            "--grpc-addr",
            "127.0.0.1:0",
            "--metrics-addr",
            "127.0.0.1:0",
            "--state-dir",
            state,
        ];
        let args = usual.iter().chain(args).map(OsString::from);
        let settings = Settings::read(args, []).unwrap();
        let bound = serve::bind(settings).await.unwrap();
        let (grpc_addr, metrics_addr) = (bound.grpc_addr(), bound.metrics_addr());
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(bound.run(async move {
            let _ = stopped.await;
        }));
        Self { grpc_addr, metrics_addr, local: Some(Local { stop, running }) }
    }

    pub(crate) async fn stop(self) {
        let Local { stop, running } = self.local.expect("it is in this process");
        stop.send(()).unwrap();
        timeout(TIMEOUT, running).await.expect("the server ends").unwrap().unwrap();
    }

    pub(crate) fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.grpc_addr)).unwrap().connect_lazy()
    }

    pub(crate) fn shoes(&self) -> ShoesServiceClient<Channel> {
        ShoesServiceClient::new(self.channel())
    }

    /// Calls AddInstance in a new task.
    pub(crate) fn add(&self, name: &str) -> JoinHandle<Result<AddInstanceResponse, Status>> {
        self.add_within(name, Duration::from_secs(300))
    }

    pub(crate) fn add_within(
        &self,
        name: &str,
        time: Duration,
    ) -> JoinHandle<Result<AddInstanceResponse, Status>> {
        let request = AddInstanceRequest {
            runner_name: name.into(),
            setup_script: SCRIPT.into(),
            resource_type: "large".into(),
            labels: vec!["self-hosted".into()],
        };
        self.call_add(request, time)
    }

    pub(crate) fn call_add(
        &self,
        request: AddInstanceRequest,
        time: Duration,
    ) -> JoinHandle<Result<AddInstanceResponse, Status>> {
        let mut client = self.shoes();
        tokio::spawn(async move {
            let mut request = Request::new(request);
            request.set_timeout(time);
            client.add_instance(request).await.map(tonic::Response::into_inner)
        })
    }

    pub(crate) async fn delete(&self, cloud_id: &str) -> Result<(), Status> {
        let request = DeleteInstanceRequest { cloud_id: cloud_id.into(), labels: vec![] };
        timeout(TIMEOUT, self.shoes().delete_instance(request)).await.expect("an answer").map(|_| ())
    }

    pub(crate) async fn runners(&self) -> Vec<RunnerView> {
        let request = ListRunnersRequest { include_ended: true };
        FleetServiceClient::new(self.channel()).list_runners(request).await.unwrap().into_inner().runners
    }

    /// Watches a runner until its view satisfies `wanted`.
    pub(crate) async fn until(&self, name: &str, wanted: impl Fn(&RunnerView) -> bool) -> RunnerView {
        let follow = async {
            let request = WatchRunnersRequest { runner_name: name.into(), ..Default::default() };
            let stream = FleetServiceClient::new(self.channel()).watch_runners(request).await.unwrap();
            let mut views = stream.into_inner();
            while let Some(view) = views.message().await.unwrap() {
                if wanted(&view) {
                    return view;
                }
            }
            panic!("{name} ended before");
        };
        timeout(TIMEOUT, follow).await.unwrap_or_else(|_| panic!("{name} did not reach the wanted state"))
    }

    pub(crate) async fn http(&self, path: &str, headers: &str) -> (u16, String) {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.metrics_addr).await.unwrap();
        let request = format!("GET {path} HTTP/1.0\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let status = text.split(' ').nth(1).unwrap().parse().unwrap();
        (status, text.split_once("\r\n\r\n").unwrap().1.to_owned())
    }
}

/// The setup script, which holds a secret.
pub(crate) const SCRIPT: &str = "#!/bin/bash\nexport TOKEN=AABBCC-registration-token";

/// An agent.
pub(crate) struct Agent {
    pub(crate) id: String,
    pub(crate) runners: Vec<Runner>,
    up: mpsc::Sender<SyncRequest>,
    down: Streaming<SyncResponse>,
    acks: Vec<CommandAck>,
    /// Why it accepts no runners; "" while it accepts them.
    pub(crate) unschedulable_reason: String,
}

/// An agent of this version, with one template.
pub(crate) fn info() -> AgentInfo {
    let template = TemplateInfo { name: "t".into(), labels: vec!["macos-26".into()], ..Default::default() };
    AgentInfo {
        protocol: 1,
        os: "macos".into(),
        arch: "aarch64".into(),
        templates: vec![template],
        ..Default::default()
    }
}

impl Agent {
    pub(crate) async fn connect(server: &Server, slots: u32) -> Self {
        let id = shoes_vz_model::AgentId::random().to_string();
        Self::connect_as(server, &id, slots, Some(info()), vec![]).await
    }

    pub(crate) async fn connect_as(
        server: &Server,
        id: &str,
        slots: u32,
        info: Option<AgentInfo>,
        runners: Vec<Runner>,
    ) -> Self {
        Self::connect_over(server.channel(), id, slots, info, runners).await
    }

    pub(crate) async fn connect_over(
        channel: Channel,
        id: &str,
        slots: u32,
        info: Option<AgentInfo>,
        runners: Vec<Runner>,
    ) -> Self {
        let mut client = AgentServiceClient::new(channel);
        let request = RegisterAgentRequest {
            hostname: "mac-1".into(),
            capacity: Some(AgentCapacity { max_runners: slots, cpu_cores: 8, memory_bytes: 16 << 30 }),
            agent_id: id.into(),
            info,
        };
        let id = client.register_agent(request).await.unwrap().into_inner().agent_id;
        let (up, requests) = mpsc::channel(16);
        let down = client.sync(ReceiverStream::new(requests)).await.unwrap().into_inner();
        let mut agent = Self { id, runners, up, down, acks: vec![], unschedulable_reason: String::new() };
        agent.sync().await;
        agent
    }

    /// Sends its state and the acks that are due.
    pub(crate) async fn sync(&mut self) {
        let request = SyncRequest {
            agent_id: self.id.clone(),
            active_runners: self.runners.len() as u32,
            runners: self.runners.clone(),
            acks: std::mem::take(&mut self.acks),
            unschedulable_reason: self.unschedulable_reason.clone(),
            ..SyncRequest::default()
        };
        self.up.send(request).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Result<Option<SyncResponse>, Status> {
        timeout(TIMEOUT, self.down.message()).await.expect("a command")
    }

    /// Whether nothing arrives for a moment. There is no event to wait for that shows that nothing happens.
    pub(crate) async fn receives_nothing(&mut self) -> bool {
        timeout(Duration::from_millis(200), self.down.message()).await.is_err()
    }

    /// Takes a create and lists its runner, without reporting it yet.
    pub(crate) async fn take_create(&mut self) -> CreateRunnerCommand {
        let response = self.next().await.unwrap().unwrap();
        let Some(Command::CreateRunner(create)) = response.command else {
            panic!("not a create: {response:?}")
        };
        self.acks.push(CommandAck { command_id: response.command_id, ..Default::default() });
        self.runners.push(Runner {
            runner_id: create.runner_id.clone(),
            runner_name: create.runner_name.clone(),
            cloud_id: create.cloud_id.clone(),
            state: RunnerState::Creating.into(),
            ..Default::default()
        });
        create
    }

    /// Refuses a create, so that another agent may take the runner.
    pub(crate) async fn refuse_create(&mut self, error: &str) -> CreateRunnerCommand {
        let response = self.next().await.unwrap().unwrap();
        let Some(Command::CreateRunner(create)) = response.command else {
            panic!("not a create: {response:?}")
        };
        let ack = CommandAck { command_id: response.command_id, error: error.into(), try_elsewhere: true };
        self.acks.push(ack);
        self.sync().await;
        create
    }

    /// Takes a delete and removes the runner.
    pub(crate) async fn take_delete(&mut self) -> String {
        let response = self.next().await.unwrap().unwrap();
        let Some(Command::DeleteRunner(delete)) = response.command else {
            panic!("not a delete: {response:?}")
        };
        self.acks.push(CommandAck { command_id: response.command_id, ..Default::default() });
        self.runners.retain(|r| r.runner_id != delete.runner_id);
        self.sync().await;
        delete.runner_id
    }

    /// Reports every runner in this state.
    pub(crate) async fn report(&mut self, state: RunnerState) {
        for runner in &mut self.runners {
            runner.state = state.into();
        }
        self.sync().await;
    }
}

/// Waits for a call made by [`Server::add`].
pub(crate) async fn answer<T>(call: JoinHandle<Result<T, Status>>) -> Result<T, Status> {
    timeout(TIMEOUT, call).await.expect("an answer").unwrap()
}

/// Polls for a file or a log line, which no event announces.
pub(crate) async fn eventually<T>(what: &str, poll: impl Fn() -> Option<T>) -> T {
    let polled = async {
        loop {
            match poll() {
                Some(seen) => return seen,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    timeout(TIMEOUT, polled).await.unwrap_or_else(|_| panic!("not within {TIMEOUT:?}: {what}"))
}
