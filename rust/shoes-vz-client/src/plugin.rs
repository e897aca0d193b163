//! myshoes' `Shoes` service, translated to the server's `ShoesService`.

use std::{ffi::OsString, process::ExitCode, time::Duration};

use shoes_vz_model::ResourceType;
use shoes_vz_process::{
    log, panics,
    settings::{Flags, LOG, Mistakes, Values},
};
use shoes_vz_proto::{
    convert::grpc_timeout,
    fleet,
    myshoes::{
        self, AddInstanceRequest, AddInstanceResponse, DeleteInstanceRequest, DeleteInstanceResponse,
        shoes_server::{Shoes, ShoesServer},
    },
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, metadata::MetadataMap, service::Routes};

use crate::{
    goplugin::{self, Handshake, Settings, hclog},
    settings::{GlobalFlags, gather},
    upstream::{Call, MAX_MESSAGE, Server, shoes_service},
};

/// myshoes pkg/shoes/shoes.go.
pub const HANDSHAKE: Handshake =
    Handshake { cookie_key: "SHOES_PLUGIN_MAGIC_COOKIE", cookie_value: "are_you_a_shoes?", version: 1 };

/// The deadlines of myshoes (pkg/runner/runner.go), for a caller that sets none.
const ADD_BUDGET: Duration = Duration::from_secs(300);
const DELETE_BUDGET: Duration = Duration::from_secs(180);

const NO_SERVER_ADVICE: &str =
    "set SHOESVZ_SERVER_ADDR to shoes-vz-server's HOST:PORT in myshoes' environment and restart myshoes";

pub async fn run(settings: Settings, vars: impl IntoIterator<Item = (OsString, OsString)>) -> ExitCode {
    let values = Values::gather(&Flags::<GlobalFlags>::default(), vars, Mistakes::default());
    let filter =
        if values.is_given(LOG.name) { None } else { hclog::DEFAULT_FILTER.parse::<log::Filter>().ok() };
    let gathered = gather(values, NO_SERVER_ADVICE);
    log_to_host(&filter.unwrap_or(gathered.log.0));
    let stop = CancellationToken::new();
    // A host reports a plugin that ends before its handshake as "not compiled for this architecture". So mistakes in
    // the settings are logged once and are the answer to every call.
    let server = gathered.server.map_err(|mistakes| mistakes.to_string());
    if let Err(mistakes) = &server {
        tracing::error!("{mistakes}");
    }
    let service = ShoesServer::new(Plugin { server, stop: stop.clone() })
        .max_decoding_message_size(MAX_MESSAGE)
        .max_encoding_message_size(MAX_MESSAGE);
    match goplugin::serve(&settings, Routes::new(service), stop).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// Starts the log in the format that the host reads.
fn log_to_host(filter: &log::Filter) {
    let log = hclog::subscriber("shoes-vz-client", filter.layer(), log::stderr);
    if tracing::subscriber::set_global_default(log).is_err() {
        tracing::debug!("logging is already set up");
    }
    panics::install_hook();
}

/// The service. Holds no state between calls.
struct Plugin {
    server: Result<Server, String>,
    stop: CancellationToken,
}

impl Plugin {
    fn server(&self) -> Result<&Server, Status> {
        self.server.as_ref().map_err(|reason| Status::failed_precondition(reason.clone()))
    }

    /// Awaits `call`, unless the host ends the plugin first. When the caller cancels, tonic drops this future and with it
    /// the call to the server.
    async fn until_stopped<T>(
        &self,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<Response<T>, Status> {
        tokio::select! {
            // The answer first: a simultaneous shutdown must not discard it.
            biased;
            answer = call => answer.map(Response::new),
            () = self.stop.cancelled() => Err(Status::cancelled("the plugin host shut the plugin down during the call")),
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
        let request = request.into_inner();
        let requested = requested_type(request.resource_type)?;
        let server = self.server()?;
        let message = fleet::AddInstanceRequest {
            runner_name: request.runner_name,
            setup_script: request.setup_script,
            resource_type: requested.map_or_else(String::new, |t| t.to_string()),
            labels: request.labels,
        };
        tracing::info!(runner_name = message.runner_name, request_id = call.request_id(), "AddInstance");
        let answer = server.call(&call, &message, async |channel, request| {
            shoes_service(channel).add_instance(request).await
        });
        self.until_stopped(async { Ok(translate(answer.await?.into_inner(), requested)) }).await
    }

    async fn delete_instance(
        &self,
        request: Request<DeleteInstanceRequest>,
    ) -> Result<Response<DeleteInstanceResponse>, Status> {
        let call = call("DeleteInstance", request.metadata(), DELETE_BUDGET);
        let request = request.into_inner();
        let server = self.server()?;
        let message = fleet::DeleteInstanceRequest { cloud_id: request.cloud_id, labels: request.labels };
        tracing::info!(cloud_id = message.cloud_id, request_id = call.request_id(), "DeleteInstance");
        let answer = server.call(&call, &message, async |channel, request| {
            shoes_service(channel).delete_instance(request).await
        });
        self.until_stopped(async { answer.await.map(|_| DeleteInstanceResponse {}) }).await
    }
}

/// The resource type of a call. 0, protobuf's default, means none: the server's `--default-resource-type` applies. A
/// number that myshoes does not define can never work, so myshoes may drop the job.
fn requested_type(number: i32) -> Result<Option<ResourceType>, Status> {
    if number == i32::from(myshoes::ResourceType::Unknown) {
        return Ok(None);
    }
    let known = ResourceType::try_from(number);
    known.map(Some).map_err(|error| Status::invalid_argument(format!("resource_type {number}: {error}")))
}

/// The server's reply for myshoes. A Go server names no resource type: then it is the requested one, and without a request
/// myshoes stores the one of its target.
fn translate(answer: fleet::AddInstanceResponse, requested: Option<ResourceType>) -> AddInstanceResponse {
    let effective = match answer.resource_type.as_str() {
        "" => requested,
        text => text.parse().map(Some).unwrap_or_else(|error| {
            tracing::warn!(reason = %error, "unknown resource type in the server's reply");
            requested
        }),
    };
    AddInstanceResponse {
        cloud_id: answer.cloud_id,
        shoes_type: answer.shoes_type,
        ip_address: answer.ip_address,
        resource_type: effective.map_or(myshoes::ResourceType::Unknown, myshoes::ResourceType::from).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(resource_type: &str) -> i32 {
        let answer = fleet::AddInstanceResponse { resource_type: resource_type.into(), ..Default::default() };
        translate(answer, Some(ResourceType::Small)).resource_type
    }

    #[test]
    fn the_effective_resource_type_is_passed_on_and_a_go_server_that_names_none_means_the_requested_one() {
        assert_eq!(reply("large"), myshoes::ResourceType::Large as i32);
        assert_eq!(reply(""), myshoes::ResourceType::Small as i32);
        assert_eq!(reply("gigantic"), myshoes::ResourceType::Small as i32);
    }

    #[test]
    fn type_0_means_none_and_a_number_that_myshoes_does_not_define_is_refused_with_the_known_types() {
        assert_eq!(requested_type(0).unwrap(), None);
        assert_eq!(requested_type(9).unwrap(), Some(ResourceType::XLarge4));
        for number in [10, -1, i32::MAX] {
            let refused = requested_type(number).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
            assert!(refused.message().contains(&number.to_string()) && refused.message().contains("4xlarge"));
        }
        let unnamed = translate(fleet::AddInstanceResponse::default(), None);
        assert_eq!(unnamed.resource_type, myshoes::ResourceType::Unknown as i32);
    }

    fn mistakes(vars: &[(&str, &str)]) -> String {
        let vars = vars.iter().map(|(n, v)| (OsString::from(n), OsString::from(v)));
        gather(Values::gather(&Flags::<GlobalFlags>::default(), vars, Mistakes::default()), NO_SERVER_ADVICE)
            .server
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn the_mistake_about_a_missing_server_names_the_variable() {
        assert!(mistakes(&[]).contains("SHOESVZ_SERVER_ADDR"));
        let https = mistakes(&[("SHOESVZ_SERVER_ADDR", "https://x:1")]);
        assert!(https.contains("https") && https.contains("SHOESVZ_SERVER_ADDR: "), "{https}");
        assert!(mistakes(&[("SHOESVZ_SERVER_ADDR", "x:1"), ("SHOESVZ_CLIENT_SEVER", "y")]).contains("SEVER"));
    }
}
