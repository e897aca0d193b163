//! Commands to agents. A create's id follows from the runner and from how often it was refused so that another agent may
//! take it: one sent twice is recognised whatever was restarted in between, and one that comes back to an agent that
//! refused it is looked at anew. A delete may have to be tried again, so each of its ids is new.

use shoes_vz_model::RunnerId;
use shoes_vz_proto::agent::{
    CreateRunnerCommand, DeleteRunnerCommand, NoopCommand, SyncResponse, sync_response::Command,
};

use super::{
    core::Policy,
    runner::{Placed, Runner},
    types::Script,
};

const CREATE: &str = "create-";

/// Makes a runner.
pub fn create(runner: &Runner, placed: &Placed, script: &Script, policy: &Policy) -> SyncResponse {
    let command = CreateRunnerCommand {
        runner_id: runner.id.to_string(),
        runner_name: runner.name.to_string(),
        setup_script: script.reveal().to_owned(),
        request_id: runner.request_id.clone(),
        resource_type: runner.resource_type.to_string(),
        labels: runner.labels.clone(),
        template: placed.template.clone(),
        cpus: runner.shape.cpus,
        memory_bytes: runner.shape.memory_bytes,
        disk_bytes: runner.shape.disk_bytes,
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

/// The present id of a runner's create.
pub fn create_id(runner: &Runner) -> String {
    match runner.refusals {
        0 => format!("{CREATE}{}", runner.id),
        n => format!("{CREATE}{}-{n}", runner.id),
    }
}

/// The runner whose create has or had this command id.
pub fn created_by(command_id: &str) -> Option<RunnerId> {
    const UUID: usize = 36;
    command_id.strip_prefix(CREATE)?.get(..UUID)?.parse().ok()
}

/// Removes a runner.
pub fn delete(id: RunnerId, command_id: String, request_id: String) -> SyncResponse {
    let command = DeleteRunnerCommand { runner_id: id.to_string(), request_id };
    SyncResponse { command: Some(Command::DeleteRunner(command)), command_id, end_acks: Vec::new() }
}

/// Nothing to do, and what the server has stored.
pub fn noop(end_acks: Vec<String>) -> SyncResponse {
    SyncResponse { command: Some(Command::Noop(NoopCommand {})), command_id: String::new(), end_acks }
}
