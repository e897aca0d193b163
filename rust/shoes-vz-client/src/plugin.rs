//! myshoes' `Shoes` service, translated to the server's `ShoesService`.

use std::{ffi::OsString, process::ExitCode, time::Duration};

use shoes_vz_model::ResourceType;
use shoes_vz_process::{
    log, panics,
    settings::{Flags, LOG, Mistakes, Values},
};
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
    cli::{args::All, settings::gather},
    goplugin::{self, Handshake, Settings, hclog},
    upstream::{Call, Server, grpc_timeout},
};

/// myshoes pkg/shoes/shoes.go.
pub const HANDSHAKE: Handshake =
    Handshake { cookie_key: "SHOES_PLUGIN_MAGIC_COOKIE", cookie_value: "are_you_a_shoes?", version: 1 };

/// For a caller that names no deadline: myshoes' own, pkg/runner/runner.go and its deletion's.
const ADD_BUDGET: Duration = Duration::from_secs(300);
const DELETE_BUDGET: Duration = Duration::from_secs(180);

/// What to do when no server is named.
const HOW: &str =
    "set SHOESVZ_SERVER_ADDR to shoes-vz-server's HOST:PORT in myshoes' environment and restart myshoes";

/// Serves as a plugin until the host ends it.
pub async fn run(settings: Settings, vars: impl IntoIterator<Item = (OsString, OsString)>) -> ExitCode {
    let values = Values::gather(&Flags::<All>::default(), vars, Mistakes::default());
    let filter =
        if values.is_given(LOG.name) { None } else { hclog::DEFAULT_FILTER.parse::<log::Filter>().ok() };
    let gathered = gather(values, HOW);
    log_to_host(&filter.unwrap_or(gathered.log.0));
    let stop = CancellationToken::new();
    // A plugin that dies before its handshake is reported by its host as "not compiled for this architecture"; so
    // mistakes in the settings are the answer to every call instead, and once in the log.
    let server = gathered.server.ok_or_else(|| gathered.mistakes.to_string());
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

/// The plugin's log, in the form its host reads.
fn log_to_host(filter: &log::Filter) {
    let log = hclog::subscriber("shoes-vz-client", filter.layer(), log::stderr);
    if tracing::subscriber::set_global_default(log).is_err() {
        tracing::debug!("logging was set up before");
    }
    panics::install_hook();
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
        let wanted = wanted(asked.resource_type)?;
        let server = self.server()?;
        let message = fleet::AddInstanceRequest {
            runner_name: asked.runner_name,
            setup_script: asked.setup_script,
            resource_type: wanted.map_or_else(String::new, |t| t.to_string()),
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

/// The resource type a call names. 0, protobuf's default, names none, and the server's `--default-resource-type`
/// applies. A number beyond myshoes' can never work, so myshoes may drop the job.
fn wanted(number: i32) -> Result<Option<ResourceType>, Status> {
    if number == i32::from(myshoes::ResourceType::Unknown) {
        return Ok(None);
    }
    let known = ResourceType::try_from(number);
    known.map(Some).map_err(|error| Status::invalid_argument(format!("resource_type {number}: {error}")))
}

/// The server's reply for myshoes. A Go server names no resource type: then it is the one asked for, and with none asked
/// for myshoes stores its target's.
fn translate(answer: fleet::AddInstanceResponse, wanted: Option<ResourceType>) -> AddInstanceResponse {
    let effective = match answer.resource_type.as_str() {
        "" => wanted,
        text => text.parse().map(Some).unwrap_or_else(|error| {
            tracing::warn!(%error, "the server's reply names a resource type this client does not know");
            wanted
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
    fn the_effective_resource_type_is_passed_on_and_a_go_servers_silence_is_the_type_asked_for() {
        assert_eq!(reply("large"), myshoes::ResourceType::Large as i32);
        assert_eq!(reply(""), myshoes::ResourceType::Small as i32);
        assert_eq!(reply("gigantic"), myshoes::ResourceType::Small as i32);
    }

    #[test]
    fn type_0_names_none_and_a_number_that_myshoes_has_not_is_refused_with_the_types_there_are() {
        assert_eq!(wanted(0).unwrap(), None);
        assert_eq!(wanted(9).unwrap(), Some(ResourceType::XLarge4));
        for number in [10, -1, i32::MAX] {
            let refused = wanted(number).unwrap_err();
            assert_eq!(refused.code(), tonic::Code::InvalidArgument);
            assert!(refused.message().contains(&number.to_string()) && refused.message().contains("4xlarge"));
        }
        let silent = translate(fleet::AddInstanceResponse::default(), None);
        assert_eq!(silent.resource_type, myshoes::ResourceType::Unknown as i32);
    }

    fn mistakes(vars: &[(&str, &str)]) -> String {
        let vars = vars.iter().map(|(n, v)| (OsString::from(n), OsString::from(v)));
        gather(Values::gather(&Flags::<All>::default(), vars, Mistakes::default()), HOW).mistakes.to_string()
    }

    #[test]
    fn a_server_that_is_not_named_is_asked_for_by_the_variables_name() {
        assert!(mistakes(&[]).contains("SHOESVZ_SERVER_ADDR"));
        let https = mistakes(&[("SHOESVZ_SERVER_ADDR", "https://x:1")]);
        assert!(https.contains("https") && https.contains("SHOESVZ_SERVER_ADDR: "), "{https}");
        assert!(mistakes(&[("SHOESVZ_SERVER_ADDR", "x:1"), ("SHOESVZ_CLIENT_SEVER", "y")]).contains("SEVER"));
    }
}
