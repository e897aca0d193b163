//! One host: a template, a runners path, fake VMs, and an agent that can be killed and started again.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use russh::keys::{PublicKey, ssh_key::LineEnding};
use shoes_vz_agent::{
    agent::{Agent, Limits},
    disk::Disk,
    ends::Ends,
    orphans::CleanupSummary,
    pool::HotPlan,
    runners::Runners,
    saved_states::{States, StatesMode},
    slots::Slots,
    ssh::Login,
    vms::{Launcher, LocalVms},
};
use shoes_vz_model::{bundle::file, id::RunnerId};
use shoes_vz_proto::agent::{
    CreateRunnerCommand, DeleteRunnerCommand, Runner, RunnerEnd, SyncResponse, sync_response::Command,
};
use shoes_vz_vm::template::TemplateDir;
use tempfile::TempDir;
use tokio::time::timeout;

use crate::{
    fake_vm::{FakeVms, HOST_KEY, LOGIN_KEY, key},
    panics::{PanickingVms, Panics},
};

/// Longest that a test waits for anything.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(20);
pub(crate) const MIN_FREE_DISK: u64 = 1 << 30;

/// The agent ID of every test.
pub(crate) const AGENT: &str = "6f0a2a7e-6f3c-4a52-9d4e-5d7c8f1b2a3d";

pub(crate) struct Host {
    pub(crate) dir: TempDir,
    pub(crate) vms: FakeVms,
    pub(crate) start_deadline: Duration,
    pub(crate) registration_deadline: Duration,
    pub(crate) unresponsive_guest_limit: Duration,
    pub(crate) max_runners: u32,
    pub(crate) hot: HotPlan,
    pub(crate) saved_states: StatesMode,
    /// Free bytes on the file system of the runners path, as the agent sees them.
    pub(crate) free_disk: Arc<AtomicU64>,
    /// Where the agent panics.
    pub(crate) panics: Panics,
}

impl Host {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("svza").tempdir().unwrap();
        let template = dir.path().join("t");
        std::fs::create_dir(&template).unwrap();
        std::fs::create_dir(dir.path().join("r")).unwrap();
        std::fs::write(template.join("Disk.img"), vec![0; 4096]).unwrap();
        std::fs::write(template.join("kernel"), "k").unwrap();
        std::fs::write(template.join("initrd"), "i").unwrap();
        let host_key = PublicKey::from(&key(HOST_KEY)).to_openssh().unwrap();
        let meta = serde_json::json!({
            "name": "fake", "os": "linux", "guest_agent": "channel", "ssh_host_key": host_key, "ssh_key_file": "key",
        });
        std::fs::write(template.join("Template.json"), meta.to_string()).unwrap();
        std::fs::write(template.join("key"), key(LOGIN_KEY).to_openssh(LineEnding::LF).unwrap()).unwrap();
        Self {
            dir,
            vms: FakeVms::new(),
            start_deadline: TIMEOUT,
            registration_deadline: TIMEOUT,
            unresponsive_guest_limit: TIMEOUT,
            max_runners: 2,
            hot: HotPlan::none(),
            saved_states: StatesMode::Off,
            free_disk: Arc::new(AtomicU64::new(u64::MAX)),
            panics: Panics::default(),
        }
    }

    pub(crate) fn runners_path(&self) -> PathBuf {
        self.dir.path().join("r")
    }

    /// The names of visible entries below the runners path.
    pub(crate) fn entries(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.runners_path()).unwrap();
        entries
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .filter(|n| !n.starts_with('.'))
            .collect()
    }

    pub(crate) fn bundle(&self, id: RunnerId) -> PathBuf {
        self.runners_path().join(format!("{id}.bundle"))
    }

    /// An agent in the runtime of the caller.
    pub(crate) async fn agent(&self) -> Arc<Runners> {
        self.agent_and_summary().await.0
    }

    /// Also returns what its startup cleanup did.
    pub(crate) async fn agent_and_summary(&self) -> (Arc<Runners>, CleanupSummary) {
        let template = TemplateDir::open(&self.dir.path().join("t")).unwrap();
        let login = Login::new("runner", &template.ssh_key().unwrap(), &template.meta.ssh_host_key).unwrap();
        let free = self.free_disk.clone();
        let disk = Disk::new(
            self.runners_path(),
            MIN_FREE_DISK,
            Arc::new(move |_| Ok(free.load(Ordering::Relaxed))),
        );
        let launcher: Arc<dyn Launcher> = Arc::new(self.vms.clone());
        let vms = Arc::new(PanickingVms::new(LocalVms::new(launcher), self.panics.clone()));
        let host = shoes_vz_agent::host::Host {
            saved_states: States::below(&self.runners_path(), template.clone(), self.saved_states),
            ..shoes_vz_agent::host::Host::new(
                AGENT.parse().unwrap(),
                template,
                self.runners_path(),
                login,
                vms,
            )
        };
        let limits = Limits {
            start_deadline: self.start_deadline,
            max_lifetime: None,
            registration_deadline: self.registration_deadline,
            unresponsive_guest_limit: Some(self.unresponsive_guest_limit),
        };
        let ends = Ends::open(self.dir.path()).unwrap();
        let agent = Agent::new(host, limits, Slots::new(self.max_runners), self.hot.clone(), disk, ends);
        let runners = Arc::new(Runners::new(agent.clone()));
        let summary = runners.adopt_all().await.unwrap();
        tokio::spawn(async move { agent.pool.keep().await });
        (runners, summary)
    }

    /// An agent that the test can kill.
    pub(crate) fn killable_agent(&self) -> KillableAgent {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let runners = std::thread::scope(|s| s.spawn(|| runtime.block_on(self.agent())).join().unwrap());
        KillableAgent { runtime, runners }
    }
}

/// An agent in a separate runtime.
pub(crate) struct KillableAgent {
    runtime: tokio::runtime::Runtime,
    pub(crate) runners: Arc<Runners>,
}

impl KillableAgent {
    pub(crate) fn apply(&self, response: SyncResponse) {
        let _guard = self.runtime.enter();
        assert_eq!(self.runners.apply(response).reason, "");
    }

    /// None of its tasks runs once this returns.
    pub(crate) fn kill(self) {
        let runtime = self.runtime;
        std::thread::scope(|s| s.spawn(|| runtime.shutdown_timeout(TIMEOUT)).join().unwrap());
    }
}

pub(crate) fn create(id: RunnerId, script: &str) -> CreateRunnerCommand {
    CreateRunnerCommand {
        runner_id: id.to_string(),
        runner_name: format!("name-{id}"),
        setup_script: script.into(),
        cloud_id: format!("shoes-vz-{id}"),
        ..CreateRunnerCommand::default()
    }
}

pub(crate) fn command(command_id: &str, command: impl Into<AnyCommand>) -> SyncResponse {
    SyncResponse { command: Some(command.into().0), command_id: command_id.into(), end_acks: Vec::new() }
}

pub(crate) struct AnyCommand(pub(crate) Command);

impl From<CreateRunnerCommand> for AnyCommand {
    fn from(create: CreateRunnerCommand) -> Self {
        Self(Command::CreateRunner(create))
    }
}

impl From<RunnerId> for AnyCommand {
    /// A deletion.
    fn from(id: RunnerId) -> Self {
        Self(Command::DeleteRunner(DeleteRunnerCommand {
            runner_id: id.to_string(),
            request_id: String::new(),
        }))
    }
}

/// Waits until a runner on the board satisfies `wanted`.
pub(crate) async fn until(runners: &Runners, id: RunnerId, wanted: impl Fn(&Runner) -> bool) -> Runner {
    let mut board = runners.agent().board.watch();
    let found = timeout(TIMEOUT, board.wait_for(|all| all.get(&id).is_some_and(&wanted))).await;
    match found {
        Ok(all) => all.unwrap()[&id].clone(),
        Err(_) => panic!("not within {TIMEOUT:?}; the runner is {:#?}", runners.agent().board.get(id)),
    }
}

/// Waits until a runner has ended, and returns it with its end.
pub(crate) async fn until_ended(runners: &Runners, id: RunnerId) -> (Runner, RunnerEnd) {
    let runner = until(runners, id, |r| r.end.is_some()).await;
    let end = runner.end.clone().unwrap();
    (runner, end)
}

/// Waits until `setup.log` is exactly `text`.
pub(crate) async fn until_logged(host: &Host, id: RunnerId, text: &str) {
    let log = host.bundle(id).join(file::SETUP_LOG);
    let logged = async {
        while std::fs::read(&log).unwrap_or_default() != text.as_bytes() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    if timeout(TIMEOUT, logged).await.is_err() {
        panic!("setup.log is {:?}, not {text:?}", std::fs::read_to_string(&log));
    }
}
