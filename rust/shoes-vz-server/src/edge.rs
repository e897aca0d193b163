//! gRPC: authentication, and the services behind it. Only here do refusals become gRPC codes.

mod agents;
mod auth;
mod call;
mod drain;
mod operators;
pub(crate) mod panics;
mod shoes;

use std::sync::Arc;

use shoes_vz_proto::{
    FILE_DESCRIPTOR_SET,
    agent::agent_service_server::AgentServiceServer,
    fleet::{fleet_service_server::FleetServiceServer, shoes_service_server::ShoesServiceServer},
};
use tonic::service::Routes;

pub use auth::AuthLayer;
pub use call::Defaults;

use crate::{metrics::Metrics, owner::Fleet};

/// Longest request accepted, in bytes: ample for a setup script of 2 MiB.
pub const MAX_REQUEST: usize = 16 << 20;

pub async fn routes(
    fleet: Fleet,
    metrics: Arc<Metrics>,
    defaults: Defaults,
) -> Result<Routes, tonic_reflection::server::Error> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let shoes = ShoesServiceServer::new(shoes::Shoes::new(fleet.clone(), Arc::clone(&metrics), defaults));
    let operators = operators::Operators { fleet: fleet.clone(), metrics: Arc::clone(&metrics) };
    let operators = FleetServiceServer::new(operators);
    let agents = AgentServiceServer::new(agents::Agents { fleet, metrics });
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
