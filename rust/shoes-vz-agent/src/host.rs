//! A host, as far as VMs are made on it. It knows neither runners nor the server.

use std::{path::PathBuf, sync::Arc};

use shoes_vz_model::{Ambient, id::AgentId};
use shoes_vz_vm::{
    spec::{Accelerator, Display, HypervisorKind, Network, VmSpec},
    template::TemplateDir,
};

use crate::{guest::Route, ip_notices::IpNotices, saved_states::States, ssh::Login, tasks::Tasks, vms::Vms};

/// CPUs, memory and disk of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmSize {
    pub cpus: u32,
    pub memory_bytes: u64,
    pub disk_bytes: u64,
}

impl VmSize {
    /// 0 stands for the template's value, for each. A disk is never smaller than the template's.
    pub fn of(template: &TemplateDir, cpus: u32, memory_bytes: u64, disk_bytes: u64) -> Self {
        Self {
            cpus: template.meta.cpus(cpus),
            memory_bytes: template.meta.memory_bytes(memory_bytes),
            disk_bytes: template.disk_bytes.max(disk_bytes),
        }
    }

    /// Of a VM whose request names no size.
    pub fn default_of(template: &TemplateDir) -> Self {
        Self::of(template, 0, 0, 0)
    }
}

pub struct Host {
    pub id: AgentId,
    /// What VMs are cloned from.
    pub template: TemplateDir,
    /// Where bundles are.
    pub runners_path: PathBuf,
    pub login: Login,
    pub hypervisor: HypervisorKind,
    /// Detected: never `Auto` on Linux.
    pub accelerator: Accelerator,
    pub display: Display,
    pub network: Network,
    pub vms: Arc<dyn Vms>,
    /// One for each slot.
    pub saved_states: States,
    /// Addresses of guests that are reached by TCP; `None` when the template needs none.
    pub notices: Option<IpNotices>,
    pub ambient: Ambient,
    pub tasks: Tasks,
}

impl Host {
    /// A host with QEMU's emulation, no window, the network of the hypervisor, the real clock and no use of saved states.
    /// The other settings are its public fields.
    pub fn new(
        id: AgentId,
        template: TemplateDir,
        runners_path: PathBuf,
        login: Login,
        vms: Arc<dyn Vms>,
    ) -> Self {
        Self {
            id,
            saved_states: States::off(&runners_path, template.clone()),
            template,
            runners_path,
            login,
            hypervisor: HypervisorKind::Qemu,
            accelerator: Accelerator::Tcg,
            display: Display::Headless,
            network: Network::Nat,
            vms,
            notices: None,
            ambient: Ambient::real(),
            tasks: Tasks::default(),
        }
    }

    pub(crate) fn spec(&self, slot: u32, size: VmSize) -> VmSpec {
        VmSpec {
            hypervisor: self.hypervisor,
            accelerator: self.accelerator,
            display: self.display,
            network: self.network,
            mac_address: Some(self.id.slot_mac(slot)),
            cpus: size.cpus,
            memory_bytes: size.memory_bytes,
            disk_bytes: size.disk_bytes,
            ..VmSpec::of_template(&self.template)
        }
    }

    /// What a VM without a size asked for is in that slot: saved states are kept for these.
    pub(crate) fn default_spec(&self, slot: u32) -> VmSpec {
        self.spec(slot, self.default_size())
    }

    pub(crate) fn default_size(&self) -> VmSize {
        VmSize::default_of(&self.template)
    }

    /// The calendar, as guests get it.
    pub(crate) fn unix_nanos(&self) -> i64 {
        i64::try_from(self.ambient.now().as_nanosecond()).unwrap_or(0)
    }

    /// How guests of this host are reached.
    pub(crate) fn route(&self) -> Route {
        Route { transport: self.template.meta.guest_agent, notices: self.notices.clone() }
    }
}
