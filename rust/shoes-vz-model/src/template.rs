//! Template directories: `Disk.img` and the files that belong to it.
//!
//! macOS (as the Go implementation has it): `Disk.img`, `AuxiliaryStorage`, `HardwareModel.json`.
//! Linux: `Disk.img`, `kernel`, `initrd`. Both may have a `Template.json`; without one the defaults apply.

use serde::{Deserialize, Serialize};

/// File names inside a template directory.
pub mod file {
    /// Root disk, raw.
    pub const DISK: &str = "Disk.img";
    /// macOS: NVRAM.
    pub const AUXILIARY: &str = "AuxiliaryStorage";
    /// macOS: [`super::HardwareModel`].
    pub const HARDWARE_MODEL: &str = "HardwareModel.json";
    /// Linux: uncompressed kernel (ELF, PVH entry) or a bzImage.
    pub const KERNEL: &str = "kernel";
    pub const INITRD: &str = "initrd";
    /// [`super::Template`].
    pub const METADATA: &str = "Template.json";
}

/// `HardwareModel.json`, as the Go implementation writes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HardwareModel {
    /// Base64 of `VZMacHardwareModel.dataRepresentation`.
    #[serde(rename = "hardwareModel")]
    pub hardware_model: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Os {
    /// macOS 13 or newer.
    #[default]
    Macos,
    /// Linux, booted by kernel and initrd.
    Linux,
}

impl Os {
    /// The files that a template must have.
    pub fn required_files(self) -> &'static [&'static str] {
        match self {
            Self::Macos => &[file::DISK, file::AUXILIARY, file::HARDWARE_MODEL],
            Self::Linux => &[file::DISK, file::KERNEL, file::INITRD],
        }
    }

    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Macos => "macos",
            Self::Linux => "linux",
        }
    }
}

/// How the host reaches the guest agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// TCP to the guest's address: for the Go guest agent.
    #[default]
    Tcp,
    /// The guest channel (vsock on macOS, virtio-serial on QEMU).
    Channel,
}

/// `Template.json`. Unknown keys are refused, so that a typing mistake does not silently mean the default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Template {
    /// "" = the directory's name.
    pub name: String,
    /// Changes whenever the disk does.
    pub version: String,
    pub os: Os,
    /// A job that asks for one of these labels gets this template.
    pub labels: Vec<String>,
    /// Least number of CPUs; 0 = 2 for macOS, 1 for Linux.
    pub min_cpus: u32,
    /// Least memory in bytes; 0 = 4 GiB for macOS, 512 MiB for Linux.
    pub min_memory_bytes: u64,
    /// Least disk in bytes; 0 = the size of the template's disk.
    pub min_disk_bytes: u64,
    /// The user that SSH logs in as.
    pub ssh_user: String,
    /// The guest's host key, one line of OpenSSH's public key format. "" = the first key that each VM shows is trusted.
    pub ssh_host_key: String,
    /// Private key for `ssh_user`, a file in the template's directory; `--ssh-key` overrides it.
    pub ssh_key_file: String,
    pub guest_agent: Transport,
    /// Linux: the kernel's command line.
    pub kernel_cmdline: String,
}

impl Default for Template {
    /// The values for a template that was made for the Go implementation.
    fn default() -> Self {
        Self {
            name: String::new(),
            version: String::new(),
            os: Os::Macos,
            labels: Vec::new(),
            min_cpus: 0,
            min_memory_bytes: 0,
            min_disk_bytes: 0,
            ssh_user: "runner".into(),
            ssh_host_key: String::new(),
            ssh_key_file: String::new(),
            guest_agent: Transport::Tcp,
            kernel_cmdline: String::new(),
        }
    }
}

impl Template {
    /// The CPUs of a VM of this template when `requested` were asked for (0 = not specified).
    pub fn cpus(&self, requested: u32) -> u32 {
        let least = match (self.min_cpus, self.os) {
            (0, Os::Macos) => 2,
            (0, Os::Linux) => 1,
            (least, _) => least,
        };
        requested.max(least)
    }

    /// The bytes of memory of a VM of this template when `requested` were asked for (0 = not specified).
    pub fn memory_bytes(&self, requested: u64) -> u64 {
        let least = match (self.min_memory_bytes, self.os) {
            (0, Os::Macos) => 4 << 30,
            (0, Os::Linux) => 512 << 20,
            (least, _) => least,
        };
        requested.max(least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let e = serde_json::from_str::<Template>(r#"{"os":"linux","sshuser":"x"}"#).unwrap_err();
        assert!(e.to_string().contains("sshuser"));
    }

    #[test]
    fn a_template_of_the_go_implementation_gets_its_two_cpus_and_four_gibibytes() {
        let t = Template::default();
        assert_eq!((t.cpus(0), t.memory_bytes(0), t.os), (2, 4 << 30, Os::Macos));
        assert_eq!(t.cpus(6), 6);
    }
}
