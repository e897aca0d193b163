//! The guest agent's HTTP API, as JSON. `/status`, `/health`, `/exec` and `/notify-ip` are the Go implementation's;
//! fields and paths marked "addition" are ours.
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
//! | POST /prepare-save (addition) | | 204; before its state is saved: what a restore needs first is got ready |
//! | POST /personalize (addition) | [`Personalization`] | [`Personalized`], once it is done; 501: this guest cannot |
//! | POST /shutdown (addition) | | 202; then the guest powers off |

use serde::{Deserialize, Serialize};

/// Ports behind the guest channel: a stream begins with `CONNECT <port>`.
pub mod port {
    /// The guest agent's HTTP API.
    pub const API: u16 = 8080;
    /// The guest's own sshd; the forward waits until it listens.
    pub const SSH: u16 = 22;
    /// On vsock (macOS guests): the port the guest agent accepts streams on, each beginning with `CONNECT <port>`.
    pub const VSOCK: u32 = 5422;
}

/// Name of the virtio-serial port (QEMU) the guest agent opens.
pub const SERIAL_PORT_NAME: &str = "shoes-vz.guest.0";

/// The Actions runner as seen from outside; numbers are `GuestRunnerState`'s on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "i32", into = "i32")]
pub enum RunnerActivity {
    /// Not there (yet).
    #[default]
    Offline = 1,
    /// Listens for a job.
    Idle = 2,
    /// Being configured.
    Preparing = 3,
    /// Works on a job.
    Running = 4,
    /// Was there, and has exited.
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
            // 0 is UNSPECIFIED: a Go guest agent before its first look.
            0 | 1 => Self::Offline,
            2 => Self::Idle,
            3 => Self::Preparing,
            4 => Self::Running,
            5 => Self::Finished,
            n => return Err(format!("{n} is no guest runner state")),
        })
    }
}

/// `GET /status`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Status {
    /// As a number, for the Go implementation.
    pub state: RunnerActivity,
    /// From `.runner`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub runner_name: String,
    /// From `.runner`'s URL.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub repository: String,
    /// Labels, when known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// The job under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobInfo>,
    /// Addition: the setup script.
    #[serde(default)]
    pub setup: SetupStatus,
    /// Addition: random, new with each start of the guest agent.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub agent_start: String,
    /// Addition: the guest's addresses beyond loopback.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ip_addresses: Vec<String>,
}

/// A job as far as `_diag` tells.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct JobInfo {
    /// GitHub's job id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub job_id: String,
    /// GitHub's run id.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub run_id: String,
    /// The run's number.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub run_number: String,
    /// The workflow's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub workflow_name: String,
    /// The job's name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub job_name: String,
    /// RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<jiff::Timestamp>,
}

/// How far the setup script is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SetupStatus {
    /// The id it was handed over under; "" = none was.
    #[serde(default)]
    pub id: String,
    /// Where it stands.
    #[serde(default)]
    pub phase: SetupPhase,
    /// Once exited: its exit code, or 128+n when signal n ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Bytes of log so far.
    #[serde(default)]
    pub log_bytes: u64,
}

/// See [`SetupStatus`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SetupPhase {
    /// No script was handed over.
    #[default]
    None,
    /// It runs.
    Running,
    /// It is over.
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
    /// Its arguments.
    #[serde(default)]
    pub args: Vec<String>,
    /// Addition: seconds until it is killed; 0 = two minutes, as the Go agent waits.
    #[serde(default)]
    pub timeout_seconds: u64,
}

/// `POST /exec`'s answer.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ExecResponse {
    /// stdout and stderr as they came; bytes that are no UTF-8 become U+FFFD.
    #[serde(default)]
    pub output: String,
    /// -1 when it could not be started, 128+n when signal n ended it.
    pub exit_code: i32,
    /// Why it could not be started, or was killed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub error: String,
    /// Addition: the bytes in base64, when `output` is not exactly them.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output_base64: String,
}

/// `POST /personalize`: what makes a restored guest unlike every other clone of its saved state, and a guest that was paused
/// know the time. Each part that is given is done, in the order of the fields; what is not is left as it is.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Personalization {
    /// The host's random bytes, in base64, mixed into the kernel's; then its generator is reseeded. A secret.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub entropy: String,
    /// The time, in nanoseconds since 1970; 0 = none.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unix_nanos: i64,
    /// Linux: machine-id(5), 32 hexadecimal digits.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub machine_id: String,
    /// Linux: /proc/sys/kernel/random/boot_id, as a UUID.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub boot_id: String,
    /// sshd's only host key from now on: a private key in OpenSSH's format. A secret.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ssh_host_key: String,
    /// A line added to the runner's authorized_keys, in the place of one an earlier personalization added.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub authorized_key: String,
}

fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Without its secrets.
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

/// `POST /personalize`'s answer: everything asked for is done, and new SSH connections meet the new key.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Personalized {
    /// How far the guest's clock was behind, in milliseconds; less than 0 when it was ahead.
    #[serde(default)]
    pub clock_was_behind_ms: i64,
}

/// `POST /notify-ip`, from the guest to the host agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpNotice {
    /// What the guest calls itself (its hardware UUID with the Go guest agent): never trusted.
    pub runner_id: String,
    /// Its address; must be the connection's source.
    pub ip_address: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_go_agents_status_is_understood() {
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
    fn a_go_agents_exec_answer_is_understood() {
        let r: ExecResponse = serde_json::from_str(r#"{"output":"x","exit_code":3}"#).unwrap();
        assert_eq!((r.output.as_str(), r.exit_code, r.error.as_str()), ("x", 3, ""));
    }
}
