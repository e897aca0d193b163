//! gRPC: the gate every call passes, and the services behind it. Only here do refusals become codes.

mod agents;
mod drain;
mod gate;
mod operators;
pub(crate) mod panics;
mod shoes;

use std::{sync::Arc, time::Duration};

use shoes_vz_model::ResourceType;
use shoes_vz_proto::{
    FILE_DESCRIPTOR_SET,
    agent::agent_service_server::AgentServiceServer,
    fleet::{fleet_service_server::FleetServiceServer, shoes_service_server::ShoesServiceServer},
};
use tonic::{Status, service::Routes};

pub use gate::Gate;

use crate::{
    fleet::{owner::Fleet, types::Refusal},
    metrics::Metrics,
};

/// Longest request taken, in bytes: a setup script of 2 MiB has plenty of room.
pub const MAX_REQUEST: usize = 16 << 20;

/// What the services decide by themselves.
#[derive(Debug, Clone, Copy)]
pub struct Defaults {
    /// For an AddInstance without one.
    pub resource_type: ResourceType,
    /// How long an AddInstance without a deadline waits.
    pub add_patience: Duration,
    /// How long a DeleteInstance without a deadline waits.
    pub delete_patience: Duration,
}

/// Every service there is.
pub async fn routes(
    fleet: Fleet,
    metrics: Arc<Metrics>,
    defaults: Defaults,
) -> Result<Routes, tonic_reflection::server::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let shoes = ShoesServiceServer::new(shoes::Shoes::new(fleet.clone(), Arc::clone(&metrics), defaults));
    let operators = FleetServiceServer::new(operators::Operators::new(fleet.clone(), Arc::clone(&metrics)));
    let agents = AgentServiceServer::new(agents::Agents::new(fleet, Arc::clone(&metrics)));
    reporter.set_serving::<ShoesServiceServer<shoes::Shoes>>().await;
    reporter.set_serving::<FleetServiceServer<operators::Operators>>().await;
    reporter.set_serving::<AgentServiceServer<agents::Agents>>().await;
    let reflection = || {
        [
            "shoes.vz.shoes.v1.ShoesService",
            "shoes.vz.shoes.v1.FleetService",
            "shoes.vz.agent.v1.AgentService",
            "grpc.health.v1.Health",
        ]
        .into_iter()
        .fold(tonic_reflection::server::Builder::configure(), |builder, name| builder.with_service_name(name))
        .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    Ok(Routes::new(shoes.max_decoding_message_size(MAX_REQUEST))
        .add_service(operators.max_decoding_message_size(MAX_REQUEST))
        .add_service(agents.max_decoding_message_size(MAX_REQUEST))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?))
}

fn status(refusal: &Refusal) -> Status {
    let code = match refusal {
        Refusal::Invalid(_) => tonic::Code::InvalidArgument,
        Refusal::Exhausted(_) => tonic::Code::ResourceExhausted,
        Refusal::Failed(_) => tonic::Code::Internal,
        Refusal::Aborted(_) => tonic::Code::Aborted,
        Refusal::Deadline(_) => tonic::Code::DeadlineExceeded,
        // Not INVALID_ARGUMENT, whatever it is: upon that myshoes drops the job, upon any other code it asks again.
        Refusal::Unavailable(_) | Refusal::Unwritable(_) | Refusal::Stopping => tonic::Code::Unavailable,
        Refusal::NotFound(_) => tonic::Code::NotFound,
        Refusal::Ambiguous(_) => tonic::Code::FailedPrecondition,
    };
    // gRPC carries the words in a header, and intermediaries limit those.
    Status::new(code, shoes_vz_model::text::tail(refusal.to_string().as_bytes(), usize::MAX, 4 << 10))
}

/// How long the caller waits, by its `grpc-timeout` (gRPC over HTTP/2: up to eight digits and a unit).
fn patience(metadata: &tonic::metadata::MetadataMap, default: Duration) -> Duration {
    let parse = |text: &str| {
        let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let count: u64 = digits.parse().ok().filter(|_| digits.len() <= 8)?;
        Some(match unit {
            "H" => Duration::from_secs(count * 3600),
            "M" => Duration::from_secs(count * 60),
            "S" => Duration::from_secs(count),
            "m" => Duration::from_millis(count),
            "u" => Duration::from_micros(count),
            "n" => Duration::from_nanos(count),
            _ => return None,
        })
    };
    metadata.get("grpc-timeout").and_then(|v| v.to_str().ok()).and_then(parse).unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_callers_deadline_is_read_from_its_header() {
        let default = Duration::from_secs(300);
        for (text, wanted) in [
            ("5M", default),
            ("12S", Duration::from_secs(12)),
            ("250m", Duration::from_millis(250)),
            ("S", default),
            ("123456789S", default),
            ("1x", default),
        ] {
            let mut metadata = tonic::metadata::MetadataMap::new();
            metadata.insert("grpc-timeout", text.parse().unwrap());
            assert_eq!(patience(&metadata, default), wanted, "{text}");
        }
        assert_eq!(patience(&tonic::metadata::MetadataMap::new(), default), default);
    }
}
