//! Template directories: `Disk.img` and what belongs to it.
//!
//! macOS (as the Go implementation has it): `Disk.img`, `AuxiliaryStorage`, `HardwareModel.json`.
//! Linux: `Disk.img`, `kernel`, `initrd`. Either may have a `Template.json`; without one the defaults hold.

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
    /// Linux: initial RAM disk.
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

/// What runs in the guest.
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
    /// The files a template of this kind cannot do without.
    pub fn required_files(self) -> &'static [&'static str] {
        match self {
            Self::Macos => &[file::DISK, file::AUXILIARY, file::HARDWARE_MODEL],
            Self::Linux => &[file::DISK, file::KERNEL, file::INITRD],
        }
    }

    /// As on the wire.
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
    /// TCP to the guest's address: the Go guest agent.
    #[default]
    Tcp,
    /// The guest channel (vsock on macOS, virtio-serial on QEMU).
    Channel,
}

/// `Template.json`. Unknown keys are refused, so that a typing mistake is not a silent default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Template {
    /// "" = the directory's name.
    pub name: String,
    /// Changes whenever the disk does.
    pub version: String,
    /// What runs in it.
    pub os: Os,
    /// Labels a job may ask for to get this template.
    pub labels: Vec<String>,
    /// Least number of CPUs; 0 = 2.
    pub min_cpus: u32,
    /// Least memory in bytes; 0 = 4 GiB for macOS, 512 MiB for Linux.
    pub min_memory_bytes: u64,
    /// Least disk in bytes; 0 = the template's own size.
    pub min_disk_bytes: u64,
    /// Who SSH logs in as.
    pub ssh_user: String,
    /// The guest's host key, one line of OpenSSH's public key format. "" = trusted on first use within one VM's life.
    pub ssh_host_key: String,
    /// Private key for `ssh_user`, a file in the template's directory; `--ssh-key` goes before it.
    pub ssh_key_file: String,
    /// How the guest agent is reached.
    pub guest_agent: Transport,
    /// Linux: the kernel's command line.
    pub kernel_cmdline: String,
}

impl Default for Template {
    /// What a template made for the Go implementation is.
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
    /// CPUs a VM of this template gets when `asked` were asked for (0 = none named).
    pub fn cpus(&self, asked: u32) -> u32 {
        let least = if self.min_cpus > 0 { self.min_cpus } else { self.os.default_cpus() };
        asked.max(least)
    }

    /// Bytes of memory a VM of this template gets when `asked` were asked for (0 = none named).
    pub fn memory_bytes(&self, asked: u64) -> u64 {
        let least =
            if self.min_memory_bytes > 0 { self.min_memory_bytes } else { self.os.default_memory_bytes() };
        asked.max(least)
    }
}

impl Os {
    fn default_cpus(self) -> u32 {
        match self {
            Self::Macos => 2,
            Self::Linux => 1,
        }
    }

    fn default_memory_bytes(self) -> u64 {
        match self {
            Self::Macos => 4 << 30,
            Self::Linux => 512 << 20,
        }
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
