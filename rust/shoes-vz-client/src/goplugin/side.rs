//! go-plugin's own services.

use std::pin::Pin;

use futures::{Stream, StreamExt as _};
use shoes_vz_proto::goplugin::{
    ConnInfo, Empty, StdioData, conn_info::Knock, grpc_broker_server::GrpcBroker,
    grpc_controller_server::GrpcController, grpc_stdio_server::GrpcStdio,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What the plugin prints after the handshake. It prints nothing on stdout and its log goes to stderr, which the host
/// reads from the process itself; so the stream is open and quiet until the end.
pub(super) struct Stdio(pub(super) CancellationToken);

#[tonic::async_trait]
impl GrpcStdio for Stdio {
    type StreamStdioStream = Answer<StdioData>;

    async fn stream_stdio(&self, _: Request<()>) -> Result<Response<Self::StreamStdioStream>, Status> {
        let quiet = futures::stream::pending().take_until(self.0.clone().cancelled_owned());
        Ok(Response::new(Box::pin(quiet)))
    }
}

/// The host's way to end the plugin.
pub(super) struct Controller(pub(super) CancellationToken);

#[tonic::async_trait]
impl GrpcController for Controller {
    async fn shutdown(&self, _: Request<Empty>) -> Result<Response<Empty>, Status> {
        self.0.cancel();
        Ok(Response::new(Empty {}))
    }
}

/// Side channels a host may offer or ask for. myshoes' protocol has none: offers are read and let be, a knock (asking
/// to connect to a channel of the plugin's) is answered that there is none.
pub(super) struct Broker(pub(super) CancellationToken);

#[tonic::async_trait]
impl GrpcBroker for Broker {
    type StartStreamStream = Answer<ConnInfo>;

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
