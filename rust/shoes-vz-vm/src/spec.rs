//! `<bundle>/Vm.json`: everything the VM process must know; the agent writes it before it starts that process.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use shoes_vz_model::{
    bundle::file,
    template::{Os, Transport},
};
use shoes_vz_process::files::{self, Readers};

use crate::template::TemplateDir;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HypervisorKind {
    /// `qemu-system-*`, on Linux.
    Qemu,
    /// Virtualization.framework, on macOS.
    Vz,
}

impl HypervisorKind {
    /// The one this operating system has.
    pub const fn of_this_host() -> Self {
        if cfg!(target_os = "macos") { Self::Vz } else { Self::Qemu }
    }
}

/// What QEMU runs the guest's instructions with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// KVM if a probe shows that it works, else TCG. The agent detects it once (`accel::detect`) and writes the answer
    /// into each spec; a VM process whose spec still has this value detects it itself.
    #[default]
    Auto,
    /// Hardware virtualization.
    Kvm,
    /// Emulation: works everywhere, slowly.
    Tcg,
}

impl Accelerator {
    /// As in settings and on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl std::str::FromStr for Accelerator {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = [Self::Auto, Self::Kvm, Self::Tcg].into_iter();
        all.find(|a| a.as_str() == text)
            .ok_or_else(|| format!("accelerator {text:?} is not one of auto, kvm, tcg"))
    }
}

/// Whether a person can look at the VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Display {
    /// No window: the serial console in `console.log` only.
    #[default]
    Headless,
    /// A window with the guest's screen.
    Window,
}

/// How a guest of Virtualization.framework reaches the world. (QEMU's guests reach nothing: they are for Linux hosts'
/// own tests and demos.)
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Network {
    /// The NAT network that macOS shares between its guests.
    #[default]
    Nat,
    /// A separate NAT network for each VM, so that guests cannot reach each other.
    Vmnet,
    None,
}

impl Network {
    /// As in settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nat => "nat",
            Self::Vmnet => "vmnet",
            Self::None => "none",
        }
    }
}

impl std::str::FromStr for Network {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let mut all = [Self::Nat, Self::Vmnet, Self::None].into_iter();
        all.find(|n| n.as_str() == text)
            .ok_or_else(|| format!("network {text:?} is not one of nat, vmnet, none"))
    }
}

/// How the VM uses saved states.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StateUse {
    #[default]
    None,
    /// It is made so that its state can be saved into this directory (absolute), where its memory may be already.
    Save(PathBuf),
    /// Its guest goes on from the state in this directory (absolute), which it does not change.
    Restore(PathBuf),
}

/// `Vm.json`. It holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmSpec {
    pub hypervisor: HypervisorKind,
    /// QEMU only.
    #[serde(default)]
    pub accelerator: Accelerator,
    pub cpus: u32,
    pub memory_bytes: u64,
    /// 0: the template's.
    #[serde(default)]
    pub disk_bytes: u64,
    /// The template's directory, absolute: kernel and initrd are read from it, the disk is backed by it.
    pub template: PathBuf,
    /// Linux: the kernel's command line.
    #[serde(default)]
    pub kernel_cmdline: String,
    #[serde(default)]
    pub display: Display,
    /// The network device's address, the same for each VM of a slot: a host's DHCP leases do not run out, and saved
    /// states need it. `None`: the hypervisor's choice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac_address: Option<String>,
    /// Virtualization.framework only.
    #[serde(default)]
    pub network: Network,
    /// The VM process ends the VM at this moment, whatever the VM does then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_lifetime: Option<jiff::Timestamp>,
    pub os: Os,
    pub transport: Transport,
    #[serde(default)]
    pub state: StateUse,
}

impl VmSpec {
    /// A VM of `template` with the template's least resources, on this host's hypervisor, without a maximum lifetime.
    pub fn of_template(template: &TemplateDir) -> Self {
        Self {
            hypervisor: HypervisorKind::of_this_host(),
            accelerator: Accelerator::Auto,
            cpus: template.meta.cpus(0),
            memory_bytes: template.meta.memory_bytes(0),
            disk_bytes: template.disk_bytes,
            template: template.path.clone(),
            kernel_cmdline: template.meta.kernel_cmdline.clone(),
            display: Display::Headless,
            mac_address: None,
            network: Network::Nat,
            max_lifetime: None,
            os: template.meta.os,
            transport: template.meta.guest_agent,
            state: StateUse::None,
        }
    }

    /// From `bundle`.
    pub fn read(bundle: &Path) -> Result<Self, SpecError> {
        let path = bundle.join(file::VM_SPEC);
        let bytes = files::read_bounded(&path, MAX_SPEC)
            .map_err(|source| SpecError::Read { path: path.clone(), source })?;
        serde_json::from_slice(&bytes).map_err(|source| SpecError::Parse { path, source })
    }

    pub(crate) fn write(&self, bundle: &Path) -> io::Result<()> {
        files::replace(&bundle.join(file::VM_SPEC), &serde_json::to_vec_pretty(self)?, Readers::Owner)
    }
}

/// Of `Vm.json`, in bytes.
const MAX_SPEC: u64 = 1 << 20;

/// Why a bundle's `Vm.json` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("reading the VM's settings {path:?} failed")]
    Read { path: PathBuf, source: io::Error },
    #[error("the VM's settings {path:?} are not valid")]
    Parse { path: PathBuf, source: serde_json::Error },
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_spec_reads_back_from_its_bundle_and_a_mistyped_key_is_named() {
        let bundle = tempfile::tempdir().unwrap();
        let spec = VmSpec {
            hypervisor: HypervisorKind::Qemu,
            accelerator: Accelerator::Tcg,
            cpus: 2,
            memory_bytes: 1 << 30,
            disk_bytes: 0,
            template: "/t".into(),
            kernel_cmdline: "quiet".into(),
            display: Display::Headless,
            mac_address: Some("02:00:00:00:00:01".into()),
            network: Network::Vmnet,
            max_lifetime: Some("2026-01-02T03:04:05Z".parse().unwrap()),
            os: Os::Linux,
            transport: Transport::Channel,
            state: StateUse::None,
        };
        spec.write(bundle.path()).unwrap();
        assert_eq!(VmSpec::read(bundle.path()).unwrap(), spec);

        fs::write(bundle.path().join(file::VM_SPEC), r#"{"cpu":1}"#).unwrap();
        let SpecError::Parse { source, .. } = VmSpec::read(bundle.path()).unwrap_err() else { panic!() };
        assert!(source.to_string().contains("`cpu`"), "{source}");
    }
}
