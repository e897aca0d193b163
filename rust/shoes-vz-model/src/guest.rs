//! The guest agent's HTTP API, as JSON. `/status`, `/health`, `/exec` and `/notify-ip` are the Go implementation's. Fields
//! and paths marked "addition" are not in it.
//!
//! | method path | request | answer |
//! |---|---|---|
//! | GET /status | | [`Status`] |
//! | GET /health | | [`Health`] |
//! | POST /exec | [`ExecRequest`] | [`ExecResponse`] |
//! | GET /events (addition) | | one [`Status`] as a JSON line at once, then one for each change, without end |
//! | PUT /setup/{id} (addition) | the script's bytes | [`SetupStatus`]; the same id again changes nothing; another id: 409 |
//! | GET /setup (addition) | | [`SetupStatus`] |
//! | GET /setup/log?offset=N (addition) | | the log's bytes from N on, followed until the script has exited |
//! | POST /prepare-save (addition) | | 204; to be called before the guest's state is saved: prepares for a fast restore |
//! | POST /personalize (addition) | [`Personalization`] | [`Personalized`], once it is done; 501: this guest cannot do it |
//! | POST /shutdown (addition) | | 202; then the guest powers off |

use serde::{Deserialize, Serialize};

/// Ports of the guest channel: a stream begins with `CONNECT <port>`.
pub mod port {
    /// The guest agent's HTTP API.
    pub const API: u16 = 8080;
    /// The guest's sshd. The guest agent waits until it listens.
    pub const SSH: u16 = 22;
    /// On vsock (macOS guests): the port on which the guest agent accepts streams.
    pub const VSOCK: u32 = 5422;
}

/// The name of the virtio-serial port (QEMU) that the guest agent opens.
pub const SERIAL_PORT_NAME: &str = "shoes-vz.guest.0";

/// What the Actions runner does, as the guest agent observes it. The numbers are those of `GuestRunnerState` on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "i32", into = "i32")]
pub enum RunnerActivity {
    /// There is no runner, or not yet.
    #[default]
    Offline = 1,
    /// Listens for a job.
    Idle = 2,
    /// Being configured.
    Preparing = 3,
    Running = 4,
    /// It ran, and has exited.
    Finished = 5,
}

impl From<RunnerActivity> for i32 {
    fn from(value: RunnerActivity) -> Self {
        value as Self
    }
}

impl TryFrom<i32> for RunnerActivity {
    type Error = String;
    fn try_from(number: i32) -> Result<Self, String> {
        Ok(match number {
            // 0 is UNSPECIFIED: from a Go guest agent before its first observation.
            0 | 1 => Self::Offline,
            2 => Self::Idle,
            3 => Self::Preparing,
            4 => Self::Running,
            5 => Self::Finished,
            n => return Err(format!("{n} is not a valid guest runner state")),
        })
    }
}

/// `GET /status`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// In JSON a number, as the Go implementation has it.
    pub state: RunnerActivity,
    /// From `.runner`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub runner_name: String,
    /// From `.runner`'s URL.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub repository: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobInfo>,
    /// Addition.
    #[serde(default)]
    pub setup: SetupStatus,
    /// Addition: a random ID, new at each start of the guest agent and at each personalization with entropy.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent_start: String,
    /// Addition: the guest's addresses, without loopback and link-local ones.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_addresses: Vec<String>,
}

/// A job, as far as the runner's logs in `_diag` describe it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct JobInfo {
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub job_id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub run_id: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub run_number: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub workflow_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub job_name: String,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<jiff::Timestamp>,
}

/// The progress of the setup script.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct SetupStatus {
    /// The ID with which it was handed over; "" = none was.
    pub id: String,
    pub phase: SetupPhase,
    /// Its exit code, or 128+n when signal n ended it; `None` until it has exited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The present size of its log.
    pub log_bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SetupPhase {
    /// No script was handed over.
    #[default]
    None,
    Running,
    Exited,
}

/// `GET /health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Health {
    /// "ok".
    pub status: String,
    /// Addition: the guest agent's version.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub version: String,
}

/// `POST /exec`: no shell is involved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecRequest {
    /// Program, looked up in PATH.
    pub command: String,
    #[serde(default)]
    pub args: Vec<String>,
    /// Addition: seconds until it is killed; 0 = two minutes, the Go agent's timeout.
    #[serde(default)]
    pub timeout_seconds: u64,
}

/// `POST /exec`'s answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecResponse {
    /// stdout and stderr together, in the order of their writing; bytes that are not valid UTF-8 become U+FFFD.
    #[serde(default)]
    pub output: String,
    /// -1 when it could not be started, 128+n when signal n ended it.
    pub exit_code: i32,
    /// Why it could not be started, or was killed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Addition: the output's bytes in base64, if `output` differs from them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output_base64: String,
}

/// `POST /personalize`: gives a restored guest its own identity, unlike every other clone of its saved state, and sets the
/// clock of a guest that was paused. The parts that are given are done in the order of the fields; the others are left as
/// they are.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Personalization {
    /// Random bytes from the host, in base64, mixed into the kernel's entropy; then its generator is reseeded. A secret.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub entropy: String,
    /// The time, in nanoseconds since 1970; 0 = not given.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unix_nanos: i64,
    /// Linux: machine-id(5), 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub machine_id: String,
    /// Linux: /proc/sys/kernel/random/boot_id, as a UUID.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    /// Becomes sshd's only host key: a private key in OpenSSH's format. A secret.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ssh_host_key: String,
    /// A line for the runner's authorized_keys. It replaces the line of an earlier personalization.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub authorized_key: String,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Leaves the secrets out.
impl std::fmt::Debug for Personalization {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Personalization")
            .field("unix_nanos", &self.unix_nanos)
            .field("machine_id", &self.machine_id)
            .field("boot_id", &self.boot_id)
            .field("authorized_key", &self.authorized_key)
            .finish_non_exhaustive()
    }
}

/// `POST /personalize`'s answer: everything given is done, and new SSH connections get the new host key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Personalized {
    /// By how many milliseconds the guest's clock was behind; negative when it was ahead.
    #[serde(default)]
    pub clock_was_behind_ms: i64,
}

/// `POST /notify-ip`, from the guest to the host agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpNotice {
    /// The guest's name for itself (its hardware UUID with the Go guest agent). Never trusted.
    pub runner_id: String,
    /// Must be the source address of the connection.
    pub ip_address: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_go_agents_status_is_accepted() {
        let go = r#"{"state":4,"runner_name":"r","job":{"job_id":"1","started_at":"2026-01-02T03:04:05Z"}}"#;
        let status: Status = serde_json::from_str(go).unwrap();
        assert_eq!(status.state, RunnerActivity::Running);
        assert_eq!(status.job.unwrap().job_id, "1");
        assert_eq!(status.setup.phase, SetupPhase::None);
    }

    #[test]
    fn a_status_reads_back_as_itself_with_a_numeric_state() {
        let status = Status { state: RunnerActivity::Idle, runner_name: "n".into(), ..Status::default() };
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!(json["state"], 2);
        assert_eq!(serde_json::from_value::<Status>(json).unwrap(), status);
    }

    #[test]
    fn a_go_agents_exec_answer_is_accepted() {
        let r: ExecResponse = serde_json::from_str(r#"{"output":"x","exit_code":3}"#).unwrap();
        assert_eq!((r.output.as_str(), r.exit_code, r.error.as_str()), ("x", 3, ""));
    }
}
