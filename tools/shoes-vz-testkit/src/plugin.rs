//! A plugin host like myshoes: for each call it starts the client, reads the handshake line, calls, and ends the client.

use std::{path::PathBuf, process::Stdio};

use anyhow::Context as _;
use hyper_util::rt::TokioIo;
use shoes_vz_proto::{
    goplugin::{Empty, grpc_controller_client::GrpcControllerClient},
    myshoes::{AddInstanceRequest, AddInstanceResponse, ResourceType, shoes_client::ShoesClient},
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::UnixStream,
    process::Command,
};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::fleet::Fleet;

const COOKIE: (&str, &str) = ("SHOES_PLUGIN_MAGIC_COOKIE", "are_you_a_shoes?");

/// AddInstance through a new plugin process; returns the time from its start to the answer.
pub async fn add_by_plugin(
    fleet: &Fleet,
    runner_name: &str,
    setup_script: &str,
) -> anyhow::Result<(AddInstanceResponse, std::time::Duration)> {
    let began = std::time::Instant::now();
    let mut child = Command::new(fleet.bins().path("shoes-vz-client"))
        .env(COOKIE.0, COOKIE.1)
        .env("PLUGIN_PROTOCOL_VERSIONS", "1")
        .env("TMPDIR", fleet.path())
        .env("SHOESVZ_SERVER_ADDR", fleet.grpc_addr())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .context("starting shoes-vz-client")?;
    let mut line = String::new();
    // Kept open: a plugin whose host closes stdout ends its call.
    let mut stdout = BufReader::new(child.stdout.take().context("the plugin has no stdout")?);
    stdout.read_line(&mut line).await?;
    let socket: PathBuf =
        line.split('|').nth(3).with_context(|| format!("{line:?} is not a handshake line"))?.into();
    let channel = connect(socket).await?;
    let request = AddInstanceRequest {
        runner_name: runner_name.into(),
        setup_script: setup_script.into(),
        resource_type: ResourceType::Nano.into(),
        labels: vec!["self-hosted".into()],
    };
    let added = ShoesClient::new(channel.clone()).add_instance(request).await?.into_inner();
    let took = began.elapsed();
    GrpcControllerClient::new(channel).shutdown(Empty {}).await?;
    child.wait().await?;
    drop(stdout);
    Ok((added, took))
}

async fn connect(socket: PathBuf) -> anyhow::Result<Channel> {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    Ok(Endpoint::from_static("http://plugin").connect_with_connector(connector).await?)
}
