//! A server and an agent, started as an operator starts them, with separate ports and directories.

use std::{
    ffi::OsString,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use shoes_vz_model::state::StartPath;
use shoes_vz_proto::{
    agent::{EndKind, RunnerEnd, RunnerStage, RunnerState},
    convert::start_path_from_wire,
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
    /// A directory that comes first in the PATH of the agent.
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

/// A running fleet. Dropping it ends everything it started, including VMs.
pub struct Fleet {
    dir: TempDir,
    bins: Bins,
    options: Options,
    server: Option<Daemon>,
    agent: Option<Daemon>,
    grpc_addr: String,
    metrics_addr: String,
}

/// Limit for each wait of a test, on a busy machine without hardware virtualization.
pub const TIMEOUT: Duration = Duration::from_secs(120);

impl Fleet {
    /// Starts server and agent, and waits until both are ready.
    pub async fn start() -> Self {
        Self::start_with(Options::default()).await
    }

    /// As [`Fleet::start`], with options.
    pub async fn start_with(options: Options) -> Self {
        let mut fleet = Self::server_only(options).await;
        fleet.start_agent().await;
        fleet
    }

    /// Starts a server without an agent.
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

    /// Starts the server, also again after it ended, with the same addresses and state.
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
        let text = server.ready(&ready, TIMEOUT).await.expect("the server gets ready");
        let addrs: serde_json::Value = serde_json::from_str(&text).expect("the ready file is JSON");
        self.grpc_addr = addrs["grpc_addr"].as_str().expect("grpc_addr").to_owned();
        self.metrics_addr = addrs["metrics_addr"].as_str().expect("metrics_addr").to_owned();
        self.server = Some(server);
    }

    /// Saves a state for each slot, with the settings of the agent, before the agent starts.
    ///
    /// # Panics
    /// When that fails.
    pub async fn warm(&self) {
        let output = self.try_warm().await;
        assert!(output.status.success(), "template warm: {output:?}");
    }

    /// As [`Fleet::warm`], but may fail.
    ///
    /// # Panics
    /// When the program cannot be run.
    pub async fn try_warm(&self) -> std::process::Output {
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
        let first = self.options.agent_programs.iter().cloned();
        std::env::join_paths(first.chain(std::env::split_paths(&path)))
            .expect("no colon in a directory's name")
    }

    /// The arguments that describe the host and its slots.
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

    /// As [`Fleet::spawn_agent`], with stdout and stderr in one pipe or file.
    pub fn spawn_agent_into(&mut self, out: OwnedFd) {
        let _ = std::fs::remove_file(self.agent_ready_file());
        let mut command = Command::new(self.bins.path("shoes-vz-agent"));
        command
            .arg("run")
            .args(["--server", &self.grpc_addr, "--hostname", "test-host"])
            .args(self.host_args())
            .arg("--ready-file")
            .arg(self.agent_ready_file())
            // The machine may be nearly full.
            .env("SHOESVZ_AGENT_MIN_FREE_DISK", "0")
            // Tests of hot VMs and saved states enable them by their arguments.
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
        agent.ready(&ready, TIMEOUT).await.expect("the agent gets ready");
    }

    /// Waits until the agent has ended without registering; returns its error.
    ///
    /// # Panics
    /// When it registers.
    pub async fn agent_fails_to_start(&mut self) -> String {
        let ready = self.agent_ready_file();
        let agent = self.agent.as_mut().expect("an agent was started");
        let error = agent.ready(&ready, TIMEOUT).await.expect_err("the agent does not get ready");
        self.agent = None;
        error
    }

    fn agent_ready_file(&self) -> PathBuf {
        self.dir.path().join("agent.ready")
    }

    /// Ends the agent by `signal`; its VMs keep running.
    pub async fn end_agent(&mut self, signal: Signal) {
        let mut agent = self.agent.take().expect("an agent was started");
        agent.end(signal).await.expect("the agent ends");
    }

    /// Ends the server by `signal`.
    pub async fn end_server(&mut self, signal: Signal) {
        let mut server = self.server.take().expect("a server was started");
        server.end(signal).await.expect("the server ends");
    }

    pub fn grpc_addr(&self) -> &str {
        &self.grpc_addr
    }

    pub fn metrics_addr(&self) -> &str {
        &self.metrics_addr
    }

    /// `--runners-path`.
    pub fn runners_path(&self) -> PathBuf {
        self.dir.path().join("r")
    }

    /// A directory for the test, removed with the fleet.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// # Panics
    /// When there is none.
    pub fn server_pid(&self) -> u32 {
        self.server.as_ref().and_then(Daemon::pid).expect("a server runs")
    }

    /// # Panics
    /// When there is none.
    pub fn agent_pid(&self) -> u32 {
        self.agent.as_ref().and_then(Daemon::pid).expect("an agent runs")
    }

    pub fn bins(&self) -> &Bins {
        &self.bins
    }

    /// Everything that server and agent have printed since the first start.
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

    pub fn fleet_client(&self) -> FleetServiceClient<Channel> {
        FleetServiceClient::new(self.channel()).max_decoding_message_size(64 << 20)
    }

    /// The service the plugin calls.
    pub fn shoes_client(&self) -> ShoesServiceClient<Channel> {
        ShoesServiceClient::new(self.channel())
    }

    /// AddInstance as the plugin calls it, with the five minutes of myshoes.
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

    /// Every runner that the server knows, including ended ones.
    pub async fn runners(&self) -> Vec<RunnerView> {
        let request = ListRunnersRequest { include_ended: true };
        self.fleet_client().list_runners(request).await.expect("ListRunners").into_inner().runners
    }

    /// Follows the runner of this name until `wanted` holds.
    ///
    /// # Panics
    /// With the last view of the runner and the logs when it does not hold within [`TIMEOUT`].
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
        match tokio::time::timeout(TIMEOUT, follow).await {
            Ok(view) => view,
            Err(_) => panic!(
                "{runner_name} did not reach the expected state within {TIMEOUT:?}; last view: {last:#?}\n{}",
                self.logs()
            ),
        }
    }

    /// Follows the runner until it has ended; returns its end.
    pub async fn until_ended(&self, runner_name: &str) -> RunnerEnd {
        end_of(&self.ended_view(runner_name).await)
    }

    /// Follows the runner until it has ended; returns its last view.
    pub async fn ended_view(&self, runner_name: &str) -> RunnerView {
        self.until(runner_name, |v| v.runner.as_ref().is_some_and(|r| r.end.is_some())).await
    }

    /// Follows the runner until its VM is ready; returns also how its VM was started.
    ///
    /// # Panics
    /// When the start path is unknown.
    pub async fn until_started(&self, runner_name: &str) -> (RunnerView, StartPath) {
        let view = self.until(runner_name, |v| v.runner.as_ref().is_some_and(|r| r.start_path != 0)).await;
        let path = view.runner.as_ref().and_then(|r| start_path_from_wire(r.start_path));
        (view, path.expect("a start path"))
    }

    /// What the server answers to a scrape of its metrics.
    ///
    /// # Panics
    /// When it does not answer with success.
    pub fn metrics(&self) -> String {
        let mut scrape = String::new();
        let mut connection =
            std::net::TcpStream::connect(&self.metrics_addr).expect("the metrics port is open");
        connection.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("a request is sent");
        connection.read_to_string(&mut scrape).expect("an answer arrives");
        let (head, body) = scrape.split_once("\r\n\r\n").expect("a head and a body");
        assert!(head.starts_with("HTTP/1.0 200"), "{head}");
        body.to_owned()
    }

    /// Follows the runner until its Actions runner is idle or busy.
    pub async fn until_running(&self, runner_name: &str) -> RunnerView {
        self.until(runner_name, |v| v.runner.as_ref().is_some_and(|r| r.state == RunnerState::Running as i32))
            .await
    }

    /// Follows the runner to its end, and asserts that it finished and that every stage was measured.
    ///
    /// # Panics
    /// When the assertion fails.
    pub async fn assert_finishes_with_every_stage(&self, runner_name: &str) {
        let view = self.ended_view(runner_name).await;
        let end = end_of(&view);
        assert_eq!(end.kind(), EndKind::Finished, "{end:?}");
        for stage in
            [RunnerStage::Clone, RunnerStage::Start, RunnerStage::Guest, RunnerStage::Ssh, RunnerStage::Job]
        {
            assert!(stage_us(&view, stage).is_some(), "{stage:?} was not measured: {view:#?}");
        }
    }

    /// The `setup.log` in the bundle of the runner, once it has a complete line.
    ///
    /// # Panics
    /// When it has none within [`TIMEOUT`].
    pub async fn setup_log(&self, runner_name: &str) -> String {
        let started =
            |v: &RunnerView| v.runner.as_ref().is_some_and(|r| r.setup.as_ref().is_some_and(|s| s.started));
        let runner = self.until(runner_name, started).await.runner.expect("a runner");
        let log = self.runners_path().join(format!("{}.bundle/setup.log", runner.runner_id));
        let line = async {
            loop {
                match std::fs::read_to_string(&log) {
                    Ok(text) if text.contains('\n') => return text,
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        tokio::time::timeout(TIMEOUT, line).await.expect("the setup script prints a line")
    }

    /// The only bundle.
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

    /// The ID of the only runner.
    ///
    /// # Panics
    /// As [`Fleet::only_bundle`].
    pub fn only_runner_id(&self) -> String {
        self.only_bundle().file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Runs a subcommand of the agent on the VMs of this fleet.
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

    /// Waits until exactly `wanted` VMs are hot and none is being prepared.
    ///
    /// # Panics
    /// When that takes longer than [`TIMEOUT`] for each VM.
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
        if tokio::time::timeout(TIMEOUT * wanted.max(1), hot).await.is_err() {
            panic!("(hot, preparing) is {last:?}, not ({wanted}, 0)\n{}", self.logs());
        }
    }

    /// Ends the agent, and deletes every hot VM.
    ///
    /// # Panics
    /// When a VM cannot be deleted.
    pub async fn end_agent_and_hot_vms(&mut self) {
        self.end_agent(Signal::SIGTERM).await;
        let bundles = std::fs::read_dir(self.runners_path()).expect("the runners path").flatten();
        for bundle in bundles.map(|e| e.path()).filter(|p| p.extension().is_some_and(|x| x == "bundle")) {
            let id = bundle.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let deleted = self.agent_command("delete", &[&id]).await;
            assert!(deleted.status.success(), "{deleted:?}");
        }
    }

    /// Waits until no bundle and no process of a VM is left.
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

    /// Ends a test: asserts that no VM is left over, and that both processes end on SIGTERM.
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
        // After a failed test VMs may be left.
        self.agent = None;
        for pid in leftover::processes(&self.runners_path()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
    }
}

/// The end of a runner that has ended.
pub fn end_of(view: &RunnerView) -> RunnerEnd {
    view.runner.as_ref().and_then(|r| r.end.clone()).expect("the runner has ended")
}

/// Microseconds that a runner spent in `stage`; `None` while the stage has not ended.
pub fn stage_us(view: &RunnerView, stage: RunnerStage) -> Option<u64> {
    let runner = view.runner.as_ref()?;
    runner.stages.iter().find(|t| t.stage == stage as i32).map(|t| t.duration_us)
}
