//! What every runner of this agent shares.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use shoes_vz_model::{Ambient, id::AgentId};
use shoes_vz_proto::agent as wire;
use shoes_vz_vm::{
    client::{Vm, VmError},
    spec::{Accelerator, Display, HypervisorKind, Network, VmSpec},
    template::TemplateDir,
};
use tokio::sync::watch;

use crate::{
    disk::Disk,
    ends::Ends,
    hot::{Class, Pool},
    machines::Machines,
    notify_ip::Notices,
    slots::Slots,
    ssh::Login,
    states::States,
    tasks::Tasks,
};

/// Starts VM processes. A seam for tests only: theirs answer in the test's own process.
#[async_trait]
pub trait Launcher: Send + Sync + 'static {
    /// Starts the VM process of a bundle.
    async fn launch(&self, bundle: &Path) -> Result<Vm, VmError>;
}

/// The real one: this same program as `vm --bundle …`.
#[derive(Debug)]
pub struct OwnProgram(pub PathBuf);

#[async_trait]
impl Launcher for OwnProgram {
    async fn launch(&self, bundle: &Path) -> Result<Vm, VmError> {
        Vm::spawn(&self.0, bundle).await
    }
}

/// Every runner's present state, as the server is told it; each change wakes whoever watches.
#[derive(Debug, Clone)]
pub struct Board(watch::Sender<BTreeMap<String, wire::Runner>>);

impl Default for Board {
    fn default() -> Self {
        Self(watch::Sender::new(BTreeMap::new()))
    }
}

impl Board {
    /// Puts up a runner's state.
    pub fn publish(&self, runner: wire::Runner) {
        self.0.send_if_modified(|all| {
            let changed = all.get(&runner.runner_id) != Some(&runner);
            all.insert(runner.runner_id.clone(), runner);
            changed
        });
    }

    /// Takes runners down. Nobody needs to be woken: the server asked for it.
    pub fn remove(&self, runner_ids: &[String]) {
        self.0.send_if_modified(|all| {
            runner_ids.iter().for_each(|id| drop(all.remove(id)));
            false
        });
    }

    /// One runner's state.
    pub fn get(&self, runner_id: &str) -> Option<wire::Runner> {
        self.0.borrow().get(runner_id).cloned()
    }

    /// Every state, now and on each change.
    pub fn watch(&self) -> watch::Receiver<BTreeMap<String, wire::Runner>> {
        self.0.subscribe()
    }
}

/// What every runner of this agent shares.
pub struct Context {
    /// This agent.
    pub agent_id: String,
    /// What VMs are cloned from.
    pub template: TemplateDir,
    /// Where they are.
    pub runners_path: PathBuf,
    /// How to log into them.
    pub login: Login,
    /// What runs them.
    pub hypervisor: HypervisorKind,
    /// Found out, never `Auto` on Linux.
    pub accelerator: Accelerator,
    /// Window or none.
    pub display: Display,
    /// How macOS guests reach the world.
    pub network: Network,
    /// From a runner's begin to SSH.
    pub start_deadline: Duration,
    /// From a runner's begin to its VM's end.
    pub max_lifetime: Option<Duration>,
    /// From the setup script's end to the Actions runner's first sign.
    pub registration_deadline: Duration,
    /// How long a guest may answer nothing once it has the setup script; `None`: for ever.
    pub unresponsive_guest_limit: Option<Duration>,
    /// The host's VMs.
    pub machines: Arc<dyn Machines>,
    /// The calendar and chance.
    pub ambient: Ambient,
    /// States, for the server.
    pub board: Board,
    /// Ends, on disk.
    pub ends: Ends,
    /// Slots.
    pub slots: Slots,
    /// VMs that wait for a runner.
    pub pool: Pool,
    /// Saved states, one for each slot.
    pub states: States,
    /// Room for more clones.
    pub disk: Disk,
    /// Addresses of guests that are reached by TCP; `None` when no template needs them.
    pub notices: Option<Notices>,
    /// What the agent cannot do without.
    pub tasks: Tasks,
}

impl Context {
    /// A VM of that class in that slot.
    pub(crate) fn spec(&self, slot: u32, class: Class) -> VmSpec {
        VmSpec {
            hypervisor: self.hypervisor,
            accelerator: self.accelerator,
            display: self.display,
            network: self.network,
            mac_address: self.agent_id.parse().ok().map(|id: AgentId| id.slot_mac(slot)),
            cpus: class.cpus,
            memory_bytes: class.memory_bytes,
            disk_bytes: class.disk_bytes,
            ..VmSpec::of_template(&self.template)
        }
    }

    /// A VM that nobody asks anything special of.
    pub(crate) fn own_spec(&self, slot: u32) -> VmSpec {
        self.spec(slot, Class::own(&self.template))
    }
}
