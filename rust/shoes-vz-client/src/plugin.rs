//! myshoes' `Shoes` service, translated to the server's `ShoesService`.

use std::{process::ExitCode, time::Duration};

use shoes_vz_model::ResourceType;
use shoes_vz_proto::{
    fleet::{self, shoes_service_client::ShoesServiceClient},
    myshoes::{
        self, AddInstanceRequest, AddInstanceResponse, DeleteInstanceRequest, DeleteInstanceResponse,
        shoes_server::{Shoes, ShoesServer},
    },
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, metadata::MetadataMap, service::Routes};

use crate::{
    MAX_MESSAGE,
    goplugin::{self, Handshake, Settings},
    upstream::{Call, Server, ServerAddr, Token, grpc_timeout},
};

/// myshoes pkg/shoes/shoes.go.
pub const HANDSHAKE: Handshake =
    Handshake { cookie_key: "SHOES_PLUGIN_MAGIC_COOKIE", cookie_value: "are_you_a_shoes?", version: 1 };

/// For a caller that names no deadline: myshoes' own, pkg/runner/runner.go and its deletion's.
const ADD_BUDGET: Duration = Duration::from_secs(300);
const DELETE_BUDGET: Duration = Duration::from_secs(180);

/// Serves as a plugin until the host ends it.
pub async fn run(settings: Settings, env: impl Fn(&str) -> Option<String>) -> ExitCode {
    let stop = CancellationToken::new();
    // A plugin that dies before its handshake is reported by its host as "not compiled for this architecture"; so
    // mistakes in the settings are told by every call instead, and once on stderr.
    let server = server_from_env(&env);
    let mistake = server.as_ref().err().cloned();
    let service = ShoesServer::new(Plugin { server, stop: stop.clone() })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    let ready = || {
        crate::cli::log_to_stderr();
        if let Some(words) = mistake {
            tracing::error!("{words}");
        }
    };
    match goplugin::serve(&settings, Routes::new(service), stop, ready).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shoes-vz-client: {error}");
            ExitCode::FAILURE
        }
    }
}

fn server_from_env(env: &impl Fn(&str) -> Option<String>) -> Result<Server, String> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    let addr = set("SHOESVZ_SERVER_ADDR").ok_or(
        "SHOESVZ_SERVER_ADDR is not set: set it to shoes-vz-server's HOST:PORT in myshoes' environment and restart myshoes",
    )?;
    let addr: ServerAddr = addr.parse().map_err(|e| format!("SHOESVZ_SERVER_ADDR: {e}"))?;
    let token = match set("SHOESVZ_TOKEN_FILE") {
        None => None,
        Some(path) => Some(Token::read(path.as_ref()).map_err(|e| format!("SHOESVZ_TOKEN_FILE: {e}"))?),
    };
    Ok(Server::new(addr, token))
}

/// The service. Holds nothing between calls.
struct Plugin {
    server: Result<Server, String>,
    stop: CancellationToken,
}

impl Plugin {
    fn server(&self) -> Result<&Server, Status> {
        self.server.as_ref().map_err(|words| Status::failed_precondition(words.clone()))
    }

    /// `call`, unless the host ends the plugin first. When the caller goes, tonic drops this future, and with it the
    /// call to the server.
    async fn until_stopped<T>(
        &self,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        tokio::select! {
            // The answer first: one that is there must not be lost to a shutdown that comes with it.
            biased;
            answer = call => answer.map(Response::new),
            () = self.stop.cancelled() => Err(Status::cancelled("the plugin was shut down during the call")),
        }
    }
}

fn call(what: &'static str, metadata: &MetadataMap, default: Duration) -> Call {
    let budget = grpc_timeout(metadata).unwrap_or(default);
    let request_id = metadata.get("x-request-id").and_then(|v| v.to_str().ok()).map(str::to_owned);
    Call::new(what, budget, request_id)
}

#[tonic::async_trait]
impl Shoes for Plugin {
    async fn add_instance(
        &self,
        request: Request<AddInstanceRequest>,
    ) -> Result<Response<AddInstanceResponse>, Status> {
        let call = call("AddInstance", request.metadata(), ADD_BUDGET);
        let asked = request.into_inner();
        let wanted =
            ResourceType::try_from(asked.resource_type).map_err(|e| unknown_type(asked.resource_type, &e))?;
        let server = self.server()?;
        let message = fleet::AddInstanceRequest {
            runner_name: asked.runner_name,
            setup_script: asked.setup_script,
            resource_type: wanted.to_string(),
            labels: asked.labels,
        };
        tracing::info!(runner_name = message.runner_name, request_id = call.request_id(), "AddInstance");
        let answer = server.call(&call, &message, async |channel, request| {
            sized(ShoesServiceClient::new(channel)).add_instance(request).await
        });
        self.until_stopped(async { Ok(translate(answer.await?, wanted)) }).await
    }

    async fn delete_instance(
        &self,
        request: Request<DeleteInstanceRequest>,
    ) -> Result<Response<DeleteInstanceResponse>, Status> {
        let call = call("DeleteInstance", request.metadata(), DELETE_BUDGET);
        let asked = request.into_inner();
        let server = self.server()?;
        let message = fleet::DeleteInstanceRequest { cloud_id: asked.cloud_id, labels: asked.labels };
        tracing::info!(cloud_id = message.cloud_id, request_id = call.request_id(), "DeleteInstance");
        let answer = server.call(&call, &message, async |channel, request| {
            sized(ShoesServiceClient::new(channel)).delete_instance(request).await
        });
        self.until_stopped(async { answer.await.map(|_| DeleteInstanceResponse {}) }).await
    }
}

pub(crate) fn sized(
    client: ShoesServiceClient<tonic::transport::Channel>,
) -> ShoesServiceClient<tonic::transport::Channel> {
    client.max_decoding_message_size(MAX_MESSAGE).max_encoding_message_size(MAX_MESSAGE)
}

/// Can never work, so myshoes may drop the job.
fn unknown_type(number: i32, error: &shoes_vz_model::resource::UnknownResourceType) -> Status {
    let name = myshoes::ResourceType::try_from(number).map_or("", |t| t.as_str_name());
    Status::invalid_argument(format!("resource type {number} {name}: {error}"))
}

/// The server's reply for myshoes. A Go server names no resource type: then it is the one asked for.
fn translate(answer: fleet::AddInstanceResponse, wanted: ResourceType) -> AddInstanceResponse {
    let effective = match answer.resource_type.as_str() {
        "" => wanted,
        text => text.parse().unwrap_or_else(|error| {
            tracing::warn!(%error, "the server's reply names a resource type this client does not know");
            wanted
        }),
    };
    AddInstanceResponse {
        cloud_id: answer.cloud_id,
        shoes_type: answer.shoes_type,
        ip_address: answer.ip_address,
        resource_type: myshoes::ResourceType::from(effective).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(resource_type: &str) -> i32 {
        let answer = fleet::AddInstanceResponse { resource_type: resource_type.into(), ..Default::default() };
        translate(answer, ResourceType::Small).resource_type
    }

    #[test]
    fn the_effective_resource_type_is_passed_on_and_a_go_servers_silence_is_the_type_asked_for() {
        assert_eq!(reply("large"), myshoes::ResourceType::Large as i32);
        assert_eq!(reply(""), myshoes::ResourceType::Small as i32);
        assert_eq!(reply("gigantic"), myshoes::ResourceType::Small as i32);
    }

    #[test]
    fn a_server_that_is_not_named_is_asked_for_by_the_variables_name() {
        assert!(server_from_env(&|_| None).unwrap_err().contains("SHOESVZ_SERVER_ADDR"));
        let bad = |name: &str| (name == "SHOESVZ_SERVER_ADDR").then(|| "https://x:1".to_owned());
        assert!(server_from_env(&bad).unwrap_err().contains("https"));
    }
}
