//! A server and an agent, started as an operator would, on ports and directories of their own.

use std::{
    ffi::OsString,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use shoes_vz_proto::{
    agent::{EndKind, RunnerEnd, RunnerStage, RunnerState},
    fleet::{
        AddInstanceRequest, AddInstanceResponse, DeleteInstanceRequest, ListAgentsRequest,
        ListRunnersRequest, RunnerView, WatchRunnersRequest, fleet_service_client::FleetServiceClient,
        shoes_service_client::ShoesServiceClient,
    },
};
use tempfile::TempDir;
use tokio::process::Command;
use tonic::transport::{Channel, Endpoint};

use crate::{
    bins::{Bins, test_template},
    daemon::Daemon,
    leftover::{self, LeftOver},
    ports,
};

/// How a fleet differs from the usual one.
#[derive(Debug, Clone)]
pub struct Options {
    /// `--max-runners`.
    pub max_runners: u32,
    /// `--template-path`.
    pub template: PathBuf,
    /// More arguments for the agent.
    pub agent_args: Vec<String>,
    /// More environment for the agent.
    pub agent_env: Vec<(String, OsString)>,
    /// More arguments for the server.
    pub server_args: Vec<String>,
    /// A directory whose programs the agent finds before the host's own.
    pub agent_programs: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_runners: 2,
            template: test_template(),
            agent_args: Vec::new(),
            agent_env: Vec::new(),
            server_args: Vec::new(),
            agent_programs: None,
        }
    }
}

/// A running fleet. Ends with everything it started, VMs too.
pub struct Fleet {
    dir: TempDir,
    bins: Bins,
    options: Options,
    server: Option<Daemon>,
    agent: Option<Daemon>,
    grpc_addr: String,
    metrics_addr: String,
}

/// Longest any single wait of a test may take on a busy machine without hardware virtualization.
pub const PATIENCE: Duration = Duration::from_secs(120);

impl Fleet {
    /// Server and agent, both ready.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// As [`Fleet::start`], with differences.
    pub async fn start_with(options: Options) -> Self {
        let mut fleet = Self::server_only(options).await;
        fleet.start_agent().await;
        fleet
    }

    /// A server without an agent.
    pub async fn server_only(options: Options) -> Self {
        // Short, since Unix socket paths are.
        let dir = tempfile::Builder::new().prefix("svz").tempdir().expect("a temporary directory");
        std::fs::create_dir(dir.path().join("r")).expect("a runners path");
        let mut fleet = Self {
            dir,
            bins: Bins::find(),
            options,
            server: None,
            agent: None,
            grpc_addr: ports::fixed().to_string(),
            metrics_addr: ports::fixed().to_string(),
        };
        fleet.start_server().await;
        fleet
    }

    /// Starts the server; again on the same addresses and state after it was ended.
    pub async fn start_server(&mut self) {
        let ready = self.dir.path().join("server.ready");
        let _ = std::fs::remove_file(&ready);
        let mut command = Command::new(self.bins.path("shoes-vz-server"));
        command
            .args(["--grpc-addr", &self.grpc_addr, "--metrics-addr", &self.metrics_addr])
            .arg("--state-dir")
            .arg(self.dir.path().join("server"))
            .arg("--ready-file")
            .arg(&ready)
            .args(&self.options.server_args)
            .env("SHOESVZ_LOG", "info,shoes_vz_server=debug");
        let mut server = Daemon::start("shoes-vz-server", &mut command, &self.dir.path().join("server.log"))
            .expect("the server starts");
        let text = server.ready(&ready, PATIENCE).await.expect("the server gets ready");
        let addrs: serde_json::Value = serde_json::from_str(&text).expect("the ready file is JSON");
        self.grpc_addr = addrs["grpc_addr"].as_str().expect("grpc_addr").to_owned();
        self.metrics_addr = addrs["metrics_addr"].as_str().expect("metrics_addr").to_owned();
        self.server = Some(server);
    }

    /// Saves a state of each slot, with the agent's own settings, before there is an agent.
    ///
    /// # Panics
    /// When that fails.
    pub async fn warm(&self) {
        let output = self.try_to_warm().await;
        assert!(output.status.success(), "template warm: {output:?}");
    }

    /// As [`Fleet::warm`], whatever comes of it.
    ///
    /// # Panics
    /// When the program cannot be run.
    pub async fn try_to_warm(&self) -> std::process::Output {
        Command::new(self.bins.path("shoes-vz-agent"))
            .args(["template", "warm", "--hostname", "test-host"])
            .args(self.host_args())
            .env("SHOESVZ_AGENT_MIN_FREE_DISK", "0")
            .env("PATH", self.agent_path())
            .output()
            .await
            .expect("the agent's program runs")
    }

    fn agent_path(&self) -> std::ffi::OsString {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let own = self.options.agent_programs.iter().cloned();
        std::env::join_paths(own.chain(std::env::split_paths(&path))).expect("no colon in a directory's name")
    }

    /// What a host's slots are and where they are.
    fn host_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> =
            vec!["--max-runners".into(), self.options.max_runners.to_string().into()];
        args.extend(["--template-path".into(), self.options.template.clone().into_os_string()]);
        args.extend(["--runners-path".into(), self.runners_path().into_os_string()]);
        args.extend(["--state-dir".into(), self.dir.path().join("agent").into_os_string()]);
        args.extend(self.options.agent_args.iter().map(Into::into));
        args
    }

    /// Starts the agent, without waiting for it.
    pub fn spawn_agent(&mut self) {
        let log = self.dir.path().join("agent.log");
        let out = std::fs::File::options().create(true).append(true).open(log).expect("the agent's log");
        self.spawn_agent_into(out.into());
    }

    /// Starts the agent with stdout and stderr in one pipe or file, without waiting for it.
    pub fn spawn_agent_into(&mut self, out: OwnedFd) {
        let _ = std::fs::remove_file(self.agent_ready_file());
        let mut command = Command::new(self.bins.path("shoes-vz-agent"));
        command
            .arg("run")
            .args(["--server", &self.grpc_addr, "--hostname", "test-host"])
            .args(self.host_args())
            .arg("--ready-file")
            .arg(self.agent_ready_file())
            // However full the machine is these tests run on.
            .env("SHOESVZ_AGENT_MIN_FREE_DISK", "0")
            // Tests of runners alone; those of hot VMs and saved states say so in their arguments.
            .env("SHOESVZ_AGENT_HOT", "none")
            .env("SHOESVZ_AGENT_SAVED_STATES", "off")
            .env("PATH", self.agent_path())
            .env("SHOESVZ_LOG", "info,shoes_vz_agent=debug,shoes_vz_vm=debug")
            .envs(self.options.agent_env.iter().map(|(name, value)| (name, value)));
        let log = self.dir.path().join("agent.log");
        let agent = Daemon::start_into("shoes-vz-agent", &mut command, &log, out).expect("the agent starts");
        self.agent = Some(agent);
    }

    /// Starts the agent and waits until it has registered.
    pub async fn start_agent(&mut self) {
        self.spawn_agent();
        self.agent_ready().await;
    }

    /// Waits until the agent has registered.
    pub async fn agent_ready(&mut self) {
        let ready = self.agent_ready_file();
        let agent = self.agent.as_mut().expect("an agent was started");
        agent.ready(&ready, PATIENCE).await.expect("the agent gets ready");
    }

    /// Waits until the agent has ended before it registered; gives what it said.
    ///
    /// # Panics
    /// When it registers.
    pub async fn agent_fails_to_start(&mut self) -> String {
        let ready = self.agent_ready_file();
        let agent = self.agent.as_mut().expect("an agent was started");
        let said = agent.ready(&ready, PATIENCE).await.expect_err("the agent does not get ready");
        self.agent = None;
        said
    }

    fn agent_ready_file(&self) -> PathBuf {
        self.dir.path().join("agent.ready")
    }

    /// Ends the agent by `signal`; its VMs live on.
    pub async fn end_agent(&mut self, signal: Signal) {
        let mut agent = self.agent.take().expect("an agent was started");
        agent.end(signal).await.expect("the agent ends");
    }

    /// Ends the server by `signal`.
    pub async fn end_server(&mut self, signal: Signal) {
        let mut server = self.server.take().expect("a server was started");
        server.end(signal).await.expect("the server ends");
    }

    /// The server's gRPC address.
    pub fn grpc_addr(&self) -> &str {
        &self.grpc_addr
    }

    /// The server's metrics address.
    pub fn metrics_addr(&self) -> &str {
        &self.metrics_addr
    }

    /// `--runners-path`.
    pub fn runners_path(&self) -> PathBuf {
        self.dir.path().join("r")
    }

    /// A directory of the test's own, gone with the fleet.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The server's process.
    ///
    /// # Panics
    /// When there is none.
    pub fn server_pid(&self) -> u32 {
        self.server.as_ref().and_then(Daemon::pid).expect("a server runs")
    }

    /// The agent's process.
    ///
    /// # Panics
    /// When there is none.
    pub fn agent_pid(&self) -> u32 {
        self.agent.as_ref().and_then(Daemon::pid).expect("an agent runs")
    }

    /// The built binaries.
    pub fn bins(&self) -> &Bins {
        &self.bins
    }

    /// Everything server and agent have printed, every start of theirs.
    pub fn logs(&self) -> String {
        ["server.log", "agent.log"]
            .map(|name| {
                let text = std::fs::read(self.dir.path().join(name)).unwrap_or_default();
                format!("--- {name}\n{}", String::from_utf8_lossy(&text))
            })
            .concat()
    }

    fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.grpc_addr)).expect("an address").connect_lazy()
    }

    /// The server's view of the fleet.
    pub fn fleet_client(&self) -> FleetServiceClient<Channel> {
        FleetServiceClient::new(self.channel()).max_decoding_message_size(64 << 20)
    }

    /// The service the plugin calls.
    pub fn shoes_client(&self) -> ShoesServiceClient<Channel> {
        ShoesServiceClient::new(self.channel())
    }

    /// AddInstance as the plugin calls it, with myshoes' five minutes.
    pub async fn add(
        &self,
        runner_name: &str,
        setup_script: &str,
    ) -> Result<AddInstanceResponse, tonic::Status> {
        let mut request = tonic::Request::new(AddInstanceRequest {
            runner_name: runner_name.into(),
            setup_script: setup_script.into(),
            resource_type: "nano".into(),
            labels: vec!["self-hosted".into()],
        });
        request.set_timeout(Duration::from_secs(300));
        self.shoes_client().add_instance(request).await.map(tonic::Response::into_inner)
    }

    /// DeleteInstance as the plugin calls it.
    pub async fn delete(&self, cloud_id: &str) -> Result<(), tonic::Status> {
        let mut request =
            tonic::Request::new(DeleteInstanceRequest { cloud_id: cloud_id.into(), labels: Vec::new() });
        request.set_timeout(Duration::from_secs(60));
        self.shoes_client().delete_instance(request).await.map(|_| ())
    }

    /// Every runner the server knows, ended ones too.
    pub async fn runners(&self) -> Vec<RunnerView> {
        let request = ListRunnersRequest { include_ended: true };
        self.fleet_client().list_runners(request).await.expect("ListRunners").into_inner().runners
    }

    /// Follows the runner of this name until `wanted` holds.
    ///
    /// # Panics
    /// With the runner's last view and the logs' place when it does not within [`PATIENCE`].
    pub async fn until(&self, runner_name: &str, wanted: impl Fn(&RunnerView) -> bool) -> RunnerView {
        let mut last = None;
        let follow = async {
            loop {
                let request =
                    WatchRunnersRequest { runner_name: runner_name.into(), cloud_id: String::new() };
                let Ok(stream) = self.fleet_client().watch_runners(request).await else {
                    // The server is being restarted by this test.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                };
                let mut stream = stream.into_inner();
                while let Ok(Some(view)) = stream.message().await {
                    if wanted(&view) {
                        return view;
                    }
                    last = Some(view);
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        match tokio::time::timeout(PATIENCE, follow).await {
            Ok(view) => view,
            Err(_) => panic!(
                "{runner_name} did not get there within {PATIENCE:?}; last seen {last:#?}\n{}",
                self.logs()
            ),
        }
    }

    /// Follows the runner until it has ended, and gives that end.
    pub async fn until_ended(&self, runner_name: &str) -> RunnerEnd {
        end_of(&self.until(runner_name, |v| v.runner.as_ref().is_some_and(|r| r.end.is_some())).await)
    }

    /// Follows the runner until the Actions runner in it listens or works.
    pub async fn until_running(&self, runner_name: &str) -> RunnerView {
        self.until(runner_name, |v| v.runner.as_ref().is_some_and(|r| r.state == RunnerState::Running as i32))
            .await
    }

    /// Follows the runner through its job to its end, and insists that it finished and that every stage was measured.
    ///
    /// # Panics
    /// When one of these is not so.
    pub async fn finishes_measured(&self, runner_name: &str) {
        let ended = |v: &RunnerView| v.runner.as_ref().is_some_and(|r| r.end.is_some());
        let view = self.until(runner_name, ended).await;
        let end = end_of(&view);
        assert_eq!(end.kind(), EndKind::Finished, "{end:?}");
        for stage in
            [RunnerStage::Clone, RunnerStage::Start, RunnerStage::Guest, RunnerStage::Ssh, RunnerStage::Job]
        {
            assert!(stage_us(&view, stage).is_some(), "{stage:?} was not measured: {view:#?}");
        }
    }

    /// The first line (and what came with it) that the runner's setup script has said, by its bundle's `setup.log`.
    ///
    /// # Panics
    /// When it says nothing within [`PATIENCE`].
    pub async fn setup_says(&self, runner_name: &str) -> String {
        let started =
            |v: &RunnerView| v.runner.as_ref().is_some_and(|r| r.setup.as_ref().is_some_and(|s| s.started));
        let runner = self.until(runner_name, started).await.runner.expect("a runner");
        let log = self.runners_path().join(format!("{}.bundle/setup.log", runner.runner_id));
        let said = async {
            loop {
                match std::fs::read_to_string(&log) {
                    Ok(text) if text.contains('\n') => return text,
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, said).await.expect("the setup script says something")
    }

    /// The bundle of the only runner there is.
    pub fn only_bundle(&self) -> PathBuf {
        let bundles: Vec<_> = std::fs::read_dir(self.runners_path())
            .expect("the runners path")
            .flatten()
            .map(|e| e.path())
            .filter(|p| p.extension().is_some_and(|x| x == "bundle"))
            .collect();
        assert_eq!(bundles.len(), 1, "{bundles:?}");
        bundles.into_iter().next().expect("one bundle")
    }

    /// The id of the only runner there is.
    ///
    /// # Panics
    /// As [`Fleet::only_bundle`].
    pub fn only_runner_id(&self) -> String {
        self.only_bundle().file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// One of the agent's own subcommands on this fleet's VMs, and what it said.
    ///
    /// # Panics
    /// When the agent's program cannot be run.
    pub async fn agent_command(&self, subcommand: &str, args: &[&str]) -> std::process::Output {
        Command::new(self.bins.path("shoes-vz-agent"))
            .arg(subcommand)
            .arg("--runners-path")
            .arg(self.runners_path())
            .args(args)
            .output()
            .await
            .expect("the agent's program runs")
    }

    /// Waits until so many VMs are hot, and no more are being started.
    ///
    /// # Panics
    /// When that takes longer than [`PATIENCE`] for each.
    pub async fn until_hot(&self, wanted: u32) {
        let mut last = (0, 0);
        let hot = async {
            loop {
                let request = ListAgentsRequest {};
                let agents = self.fleet_client().list_agents(request).await.expect("ListAgents").into_inner();
                let all = agents.agents.iter().flat_map(|a| &a.hot);
                last = all.fold((0, 0), |(r, p), h| (r + h.ready, p + h.preparing));
                if last == (wanted, 0) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        if tokio::time::timeout(PATIENCE * wanted.max(1), hot).await.is_err() {
            panic!("{last:?} are hot and being started, not {wanted}\n{}", self.logs());
        }
    }

    /// Ends the agent, and then every VM that waits for a runner.
    ///
    /// # Panics
    /// When one of them cannot be deleted.
    pub async fn end_agent_and_hot_vms(&mut self) {
        self.end_agent(Signal::SIGTERM).await;
        let bundles = std::fs::read_dir(self.runners_path()).expect("the runners path").flatten();
        for bundle in bundles.map(|e| e.path()).filter(|p| p.extension().is_some_and(|x| x == "bundle")) {
            let id = bundle.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let deleted = self.agent_command("delete", &[&id]).await;
            assert!(deleted.status.success(), "{deleted:?}");
        }
    }

    /// Waits until no bundle and no process is left of any VM.
    pub async fn until_clean(&self) {
        let runners = self.runners_path();
        let clean = async {
            while leftover::of(&runners) != LeftOver::NONE {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(20), clean).await.is_err() {
            panic!("left over: {:?}\n{}", leftover::of(&runners), self.logs());
        }
    }

    /// The test's end: no VM is left over, and both processes end when told to.
    pub async fn finish(mut self) {
        self.until_clean().await;
        if self.agent.is_some() {
            self.end_agent(Signal::SIGTERM).await;
        }
        if self.server.is_some() {
            self.end_server(Signal::SIGTERM).await;
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        // A failed test leaves no VM behind; a passed one has none.
        self.agent = None;
        for pid in leftover::processes(&self.runners_path()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// The end in a view that has one.
pub fn end_of(view: &RunnerView) -> RunnerEnd {
    view.runner.as_ref().and_then(|r| r.end.clone()).expect("the runner has ended")
}

/// Microseconds a runner spent in `stage`; `None` when it has not left it.
pub fn stage_us(view: &RunnerView, stage: RunnerStage) -> Option<u64> {
    let runner = view.runner.as_ref()?;
    runner.stages.iter().find(|t| t.stage == stage as i32).map(|t| t.duration_us)
}
