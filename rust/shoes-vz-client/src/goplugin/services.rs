//! The services that go-plugin requires beside the plugin's own.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use shoes_vz_proto::goplugin::{
    ConnInfo, Empty, StdioData, conn_info::Knock, grpc_broker_server::GrpcBroker,
    grpc_controller_server::GrpcController, grpc_stdio_server::GrpcStdio,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The plugin prints nothing to stdout after the handshake, and the host reads its log from stderr; so this stream stays
/// open and empty until the shutdown.
pub(super) struct Stdio(pub(super) CancellationToken);

#[tonic::async_trait]
impl GrpcStdio for Stdio {
    type StreamStdioStream = ResponseStream<StdioData>;

    async fn stream_stdio(&self, _: Request<()>) -> Result<Response<Self::StreamStdioStream>, Status> {
        let quiet = futures::stream::pending().take_until(self.0.clone().cancelled_owned());
        Ok(Response::new(Box::pin(quiet)))
    }
}

/// Lets the host end the plugin.
pub(super) struct Controller(pub(super) CancellationToken);

#[tonic::async_trait]
impl GrpcController for Controller {
    async fn shutdown(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        self.0.cancel();
        Ok(Response::new(Empty {}))
    }
}

/// Extra channels that a host may offer or request. The protocol of myshoes has none: offers are ignored, and go-plugin's
/// A request of the host to connect to a channel of the plugin gets an error.
pub(super) struct Broker(pub(super) CancellationToken);

#[tonic::async_trait]
impl GrpcBroker for Broker {
    type StartStreamStream = ResponseStream<ConnInfo>;

    async fn start_stream(
        &self,
        request: Request<Streaming<ConnInfo>>,
    ) -> Result<Response<Self::StartStreamStream>, Status> {
        let answers = request
            .into_inner()
            .filter_map(async |offer| match offer {
                Ok(info) => refusal(&info).map(Ok),
                Err(status) => Some(Err(status)),
            })
            .take_until(self.0.clone().cancelled_owned());
        Ok(Response::new(Box::pin(answers)))
    }
}

fn refusal(info: &ConnInfo) -> Option<ConnInfo> {
    let knock = info.knock.as_ref().filter(|k| k.knock && !k.ack)?;
    let error = format!("this plugin has no brokered service {}", info.service_id);
    Some(ConnInfo {
        service_id: info.service_id,
        knock: Some(Knock { knock: knock.knock, ack: true, error }),
        ..ConnInfo::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_knock_is_answered_and_an_offer_is_not() {
        let knock = Knock { knock: true, ack: false, error: String::new() };
        let asked = ConnInfo { service_id: 7, knock: Some(knock), ..ConnInfo::default() };
        let answer = refusal(&asked).unwrap();
        assert_eq!(answer.service_id, 7);
        assert!(answer.knock.unwrap().error.contains('7'));
        let offer = ConnInfo { service_id: 7, network: "unix".into(), address: "/x".into(), knock: None };
        assert_eq!(refusal(&offer), None);
    }
}
