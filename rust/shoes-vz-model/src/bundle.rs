//! Bundle directories: `<runners-path>/<runner_id>.bundle/`, one for each VM.

use serde::{Deserialize, Deserializer, Serialize};

use crate::{
    id::{BadId, RunnerId},
    state::{Stage, StartPath},
};

/// File names inside a bundle; those of the template (`Disk.img`, …) keep theirs.
pub mod file {
    /// macOS: binary `VZMacMachineIdentifier`.
    pub const MACHINE_IDENTIFIER: &str = "MachineIdentifier";
    /// [`super::RuntimeMetadata`].
    pub const METADATA: &str = "RuntimeMetadata.json";
    /// The settings of the VM process.
    pub const VM_SPEC: &str = "Vm.json";
    /// How the VM ended. The VM process writes it as its last file.
    pub const VM_END: &str = "VmEnd.json";
    /// gRPC `shoes.vz.vm.v1`.
    pub const VM_SOCKET: &str = "vm.sock";
    /// Streams to the guest: `CONNECT <port>`.
    pub const GUEST_SOCKET: &str = "guest.sock";
    pub const CONSOLE_LOG: &str = "console.log";
    /// The setup script, with its token: only until the guest has it. Mode 0600.
    pub const SETUP_SCRIPT: &str = "setup-script";
    pub const SETUP_LOG: &str = "setup.log";
    pub const VM_LOG: &str = "vm.log";
}

/// The suffix of a bundle's directory name.
pub const SUFFIX: &str = ".bundle";

/// Longest path a Unix socket may have, in bytes without the NUL: macOS' 104 is the smaller (sys/un.h).
pub const MAX_SOCKET_PATH: usize = 103;

/// The directory name of `runner`'s bundle.
pub fn dir_name(runner: RunnerId) -> String {
    format!("{runner}{SUFFIX}")
}

/// The runner that a directory of this name belongs to; `None` when it is not the name of a bundle.
pub fn runner_of(dir_name: &str) -> Option<Result<RunnerId, BadId>> {
    dir_name.strip_suffix(SUFFIX).map(str::parse)
}

/// The state on disk, with the Go implementation's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskState {
    #[default]
    Creating,
    Booting,
    Running,
    Stopped,
    Error,
}

/// How far a bundle's VM has come: an agent that adopts it goes on from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// On the way to SSH, for a runner. It also stands for a bundle of the Go implementation, which has no phase.
    #[default]
    Provisioning,
    /// SSH has answered; the guest has no setup script yet.
    Ready,
    /// The guest has the setup script.
    SettingUp,
    /// An Actions runner was seen listening.
    Running,
    /// On the way to SSH, to become a hot VM. `runner_id` is the VM's own id until a runner claims it.
    Preheating,
    /// A hot VM.
    Hot,
}

impl Phase {
    /// Whether the VM belongs to no runner.
    pub fn is_hot(self) -> bool {
        matches!(self, Self::Preheating | Self::Hot)
    }
}

/// `RuntimeMetadata.json`: the Go implementation's five fields, then additions, with which the agent can adopt the VM after
/// a restart. It never holds the setup script.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RuntimeMetadata {
    pub runner_id: String,
    /// "" until it is known, and for as long as only the guest channel is used.
    #[serde(default)]
    pub ip_address: String,
    /// When the creation of the bundle began.
    pub created_at: jiff::Timestamp,
    pub state: DiskState,
    pub updated_at: jiff::Timestamp,
    // Additions from here on.
    #[serde(default)]
    pub runner_name: String,
    #[serde(default)]
    pub cloud_id: String,
    /// The template's directory.
    #[serde(default)]
    pub template_path: String,
    /// How far the VM has come.
    #[serde(default)]
    pub phase: Phase,
    /// Whether the Actions runner was ever seen working on a job.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub job_seen: bool,
    /// The stages that have ended, with start and microseconds. A stage of another version is left out.
    #[serde(default, deserialize_with = "known_stages")]
    pub stages: Vec<(Stage, jiff::Timestamp, u64)>,
    /// The VM's maximum lifetime in seconds, counted from `created_at`; 0 = no limit.
    #[serde(default)]
    pub max_lifetime_seconds: u64,
    /// The VM's slot on the host, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// How the VM became ready; `None` until it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_path: Option<StartPath>,
    /// Virtual CPUs; 0 = not recorded, as for the next two.
    #[serde(default)]
    pub cpus: u32,
    #[serde(default)]
    pub memory_bytes: u64,
    #[serde(default)]
    pub disk_bytes: u64,
    /// The fingerprint of the template's files when a hot VM was begun; "" = not recorded, or not begun as a hot VM.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub template_fingerprint: String,
}

fn known_stages<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(Stage, jiff::Timestamp, u64)>, D::Error> {
    let all = Vec::<(String, jiff::Timestamp, u64)>::deserialize(from)?;
    let known = |name: &str| Stage::ALL.into_iter().find(|stage| stage.as_str() == name);
    Ok(all.into_iter().filter_map(|(name, start, us)| Some((known(&name)?, start, us))).collect())
}

impl RuntimeMetadata {
    /// The metadata of a bundle whose creation begins at `now`; everything else is "", 0 or false.
    pub fn begun(runner: RunnerId, state: DiskState, now: jiff::Timestamp) -> Self {
        let runner_id = runner.to_string();
        Self { runner_id, created_at: now, state, updated_at: now, ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundles_name_reads_back_as_its_runner() {
        let id = RunnerId::random();
        assert_eq!(runner_of(&dir_name(id)), Some(Ok(id)));
        assert_eq!(runner_of("lost+found"), None);
        assert!(runner_of("x.bundle").unwrap().is_err());
    }

    #[test]
    fn the_go_implementations_metadata_is_accepted() {
        let go = r#"{"runner_id":"a","ip_address":"192.168.64.2","created_at":"2026-01-02T03:04:05.123456+09:00",
            "state":"running","updated_at":"2026-01-02T03:04:05Z"}"#;
        let m: RuntimeMetadata = serde_json::from_str(go).unwrap();
        assert_eq!(m.state, DiskState::Running);
        assert_eq!(m.phase, Phase::Provisioning);
    }
}
