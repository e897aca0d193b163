//! Commands to agents. The id of a create follows from the runner and from how often agents have refused it. A create that
//! is sent twice is therefore recognised whatever was restarted in between, and one that returns to an agent that refused
//! it counts as new. A delete may have to be repeated, so each delete has a new id.

use shoes_vz_model::RunnerId;
use shoes_vz_proto::agent::{
    CreateRunnerCommand, DeleteRunnerCommand, NoopCommand, SyncResponse, sync_response::Command,
};

use super::{
    policy::Policy,
    runner::{Placed, Runner},
    values::Script,
};

const CREATE: &str = "create-";

pub fn create(runner: &Runner, placed: &Placed, script: &Script, policy: &Policy) -> SyncResponse {
    let command = CreateRunnerCommand {
        runner_id: runner.id.to_string(),
        runner_name: runner.name.to_string(),
        setup_script: script.reveal().to_owned(),
        request_id: runner.request_id.clone(),
        resource_type: runner.resource_type.to_string(),
        labels: runner.labels.clone(),
        template: placed.template.clone(),
        cpus: runner.size.cpus,
        memory_bytes: runner.size.memory_bytes,
        disk_bytes: runner.size.disk_bytes,
        max_lifetime_seconds: policy.max_lifetime.as_secs(),
        start_deadline_seconds: policy.start_deadline.as_secs(),
        cloud_id: runner.cloud_id.to_string(),
    };
    SyncResponse {
        command: Some(Command::CreateRunner(command)),
        command_id: create_id(runner),
        end_acks: Vec::new(),
    }
}

/// The current id of a runner's create.
pub fn create_id(runner: &Runner) -> String {
    match runner.refusals {
        0 => format!("{CREATE}{}", runner.id),
        n => format!("{CREATE}{}-{n}", runner.id),
    }
}

/// The runner that a create with this command id is or was for.
pub fn created_by(command_id: &str) -> Option<RunnerId> {
    const UUID: usize = 36;
    command_id.strip_prefix(CREATE)?.get(..UUID)?.parse().ok()
}

pub fn delete(id: RunnerId, command_id: String, request_id: String) -> SyncResponse {
    let command = DeleteRunnerCommand { runner_id: id.to_string(), request_id };
    SyncResponse { command: Some(Command::DeleteRunner(command)), command_id, end_acks: Vec::new() }
}

/// No command; acknowledges the ends that the server has stored.
pub fn noop(end_acks: Vec<String>) -> SyncResponse {
    SyncResponse { command: Some(Command::Noop(NoopCommand {})), command_id: String::new(), end_acks }
}
