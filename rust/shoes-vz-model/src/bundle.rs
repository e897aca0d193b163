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
    /// The VM process' own settings.
    pub const VM_SPEC: &str = "Vm.json";
    /// How the VM ended, written by the VM process last of all.
    pub const VM_END: &str = "VmEnd.json";
    /// gRPC `shoes.vz.vm.v1`.
    pub const VM_SOCKET: &str = "vm.sock";
    /// Streams to the guest.
    pub const GUEST_SOCKET: &str = "guest.sock";
    /// The guest's serial console.
    pub const CONSOLE_LOG: &str = "console.log";
    /// The setup script's output.
    pub const SETUP_LOG: &str = "setup.log";
    /// The VM process' log.
    pub const VM_LOG: &str = "vm.log";
}

/// Ending of a bundle's directory name.
pub const SUFFIX: &str = ".bundle";

/// Longest path a Unix socket may have, in bytes without the NUL: macOS' 104 is the smaller (sys/un.h).
pub const MAX_SOCKET_PATH: usize = 103;

/// The directory name of `runner`'s bundle.
pub fn dir_name(runner: RunnerId) -> String {
    format!("{runner}{SUFFIX}")
}

/// The runner a directory of this name belongs to; `None` when it is no bundle's name.
pub fn runner_of(dir_name: &str) -> Option<Result<RunnerId, BadId>> {
    dir_name.strip_suffix(SUFFIX).map(str::parse)
}

/// State on disk, in the Go implementation's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskState {
    /// Bundle being made.
    Creating,
    /// VM starting.
    Booting,
    /// VM up.
    Running,
    /// VM down.
    Stopped,
    /// Failed.
    Error,
}

/// How far a bundle's VM has come: an agent that adopts it goes on from there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// On the way to SSH, for a runner. The Go implementation's bundles, which say nothing, count as such.
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

/// `RuntimeMetadata.json`: the Go implementation's five fields, then ours, enough to adopt the VM after a restart.
/// It never holds the setup script.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuntimeMetadata {
    /// The bundle's runner.
    pub runner_id: String,
    /// "" until known; it stays so when only the guest channel is used.
    #[serde(default)]
    pub ip_address: String,
    /// When the bundle was begun.
    pub created_at: jiff::Timestamp,
    /// See [`DiskState`].
    pub state: DiskState,
    /// When this file was written.
    pub updated_at: jiff::Timestamp,
    /// Addition: the name at GitHub.
    #[serde(default)]
    pub runner_name: String,
    /// Addition: the server's id.
    #[serde(default)]
    pub cloud_id: String,
    /// Addition: the template's directory.
    #[serde(default)]
    pub template_path: String,
    /// Addition: how far the VM has come.
    #[serde(default)]
    pub phase: Phase,
    /// Addition: whether the Actions runner was ever seen working on a job.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub job_seen: bool,
    /// Addition: the stages that have ended, with start and microseconds. A stage of another version is left out.
    #[serde(default, deserialize_with = "known_stages")]
    pub stages: Vec<(Stage, jiff::Timestamp, u64)>,
    /// Addition: seconds the VM may live in all, counted from `created_at`; 0 = no limit.
    #[serde(default)]
    pub max_lifetime_seconds: u64,
    /// Addition: the host's slot it is in, from 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<u32>,
    /// Addition: how it came to be ready; `None` until it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_path: Option<StartPath>,
    /// Addition: its virtual CPUs; 0 = not written down, for each of these.
    #[serde(default)]
    pub cpus: u32,
    /// Addition: its memory.
    #[serde(default)]
    pub memory_bytes: u64,
    /// Addition: the size of its disk.
    #[serde(default)]
    pub disk_bytes: u64,
    /// Addition: of the template's files when a hot VM was begun; "" = not written down, or begun for its runner.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub template_fingerprint: String,
}

fn known_stages<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<(Stage, jiff::Timestamp, u64)>, D::Error> {
    let all = Vec::<(String, jiff::Timestamp, u64)>::deserialize(from)?;
    let known = |name: &str| Stage::ALL.into_iter().find(|stage| stage.as_str() == name);
    Ok(all.into_iter().filter_map(|(name, start, us)| Some((known(&name)?, start, us))).collect())
}

impl RuntimeMetadata {
    /// What is true of any bundle begun at `now`: everything else is "", 0 or not yet.
    pub fn begun(runner: RunnerId, state: DiskState, now: jiff::Timestamp) -> Self {
        Self {
            runner_id: runner.to_string(),
            ip_address: String::new(),
            created_at: now,
            state,
            updated_at: now,
            runner_name: String::new(),
            cloud_id: String::new(),
            template_path: String::new(),
            phase: Phase::default(),
            job_seen: false,
            stages: Vec::new(),
            max_lifetime_seconds: 0,
            slot: None,
            start_path: None,
            cpus: 0,
            memory_bytes: 0,
            disk_bytes: 0,
            template_fingerprint: String::new(),
        }
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
    fn the_go_implementations_metadata_is_understood() {
        let go = r#"{"runner_id":"a","ip_address":"192.168.64.2","created_at":"2026-01-02T03:04:05.123456+09:00",
            "state":"running","updated_at":"2026-01-02T03:04:05Z"}"#;
        let m: RuntimeMetadata = serde_json::from_str(go).unwrap();
        assert_eq!(m.state, DiskState::Running);
        assert_eq!(m.phase, Phase::Provisioning);
    }
}
