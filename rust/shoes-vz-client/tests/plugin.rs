//! The plugin process, as a go-plugin host sees it.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::{
    TIMEOUT,
    host::{COOKIE, Plugin, command},
};
use nix::sys::signal::Signal;
use shoes_vz_proto::goplugin::{
    ConnInfo, conn_info::Knock, grpc_broker_client::GrpcBrokerClient, grpc_stdio_client::GrpcStdioClient,
};
use tokio::io::AsyncBufReadExt as _;
use tonic::Code;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

async fn health(plugin: &Plugin, service: &str) -> Result<i32, Code> {
    let request = HealthCheckRequest { service: service.into() };
    let answer = HealthClient::new(plugin.channel().await).check(request).await;
    answer.map(|a| a.into_inner().status).map_err(|s| s.code())
}

#[tokio::test]
async fn the_handshake_line_is_exact_and_nothing_else_is_printed() {
    let plugin = Plugin::start(Some("127.0.0.1:1")).await;
    let socket = plugin.socket();
    assert!(socket.starts_with(plugin.temp.path()), "{}", socket.display());
    assert_eq!(plugin.line, format!("1|1|unix|{}|grpc|\n", socket.display()));
    assert_eq!(plugin.shut_down().await, "");
}

#[tokio::test]
async fn the_line_has_a_seventh_field_for_hosts_that_ask_about_multiplexing() {
    let plugin = Plugin::start_with(None, &[("PLUGIN_MULTIPLEX_GRPC", "true")]).await;
    assert_eq!(plugin.line, format!("1|1|unix|{}|grpc||false\n", plugin.socket().display()));
    plugin.shut_down().await;
}

#[tokio::test]
async fn without_the_cookie_the_program_is_a_command_line_that_shows_its_help() {
    for vars in [&[][..], &[("SHOES_PLUGIN_MAGIC_COOKIE", "are_you_a_boot?")]] {
        let output = command(vars).output().await.unwrap();
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("Usage: shoes-vz-client"), "{output:?}");
    }
}

#[tokio::test]
async fn the_handshake_line_appears_within_ten_milliseconds() {
    let mut best = Duration::MAX;
    // Other tests share the machine, so the fastest of several starts counts.
    for _ in 0..30 {
        let started = Instant::now();
        let plugin = Plugin::start(Some("127.0.0.1:1")).await;
        best = best.min(started.elapsed());
        plugin.shut_down().await;
    }
    assert!(best <= Duration::from_millis(10), "{best:?}");
}

#[tokio::test]
async fn the_health_of_the_service_named_plugin_is_serving_and_of_others_unknown() {
    let plugin = Plugin::start(None).await;
    assert_eq!(health(&plugin, "plugin").await, Ok(ServingStatus::Serving as i32));
    assert_eq!(health(&plugin, "other").await, Err(Code::NotFound));
    plugin.shut_down().await;
}

#[tokio::test]
async fn ctrl_c_in_the_hosts_terminal_does_not_end_the_plugin() {
    let plugin = Plugin::start(None).await;
    plugin.signal(Signal::SIGINT);
    plugin.signal(Signal::SIGINT);
    assert_eq!(health(&plugin, "plugin").await, Ok(ServingStatus::Serving as i32));
    plugin.shut_down().await;
}

#[tokio::test]
async fn sigterm_ends_the_plugin_cleanly() {
    let mut plugin = Plugin::start(None).await;
    plugin.signal(Signal::SIGTERM);
    plugin.ended().await;
}

#[tokio::test]
async fn a_plugin_whose_host_has_ended_ends_by_itself() {
    let mut plugin = Plugin::start(None).await;
    // A connection kept open must not keep it alive.
    let _channel = plugin.channel().await;
    plugin.stdout = None;
    plugin.ended().await;
}

#[tokio::test]
async fn the_streams_of_go_plugin_stay_open_until_the_shutdown() {
    let plugin = Plugin::start(None).await;
    let mut stdio = GrpcStdioClient::new(plugin.channel().await).stream_stdio(()).await.unwrap().into_inner();
    let (offers, sent) = tokio::sync::mpsc::channel(4);
    let sent = tokio_stream::wrappers::ReceiverStream::new(sent);
    let mut broker =
        GrpcBrokerClient::new(plugin.channel().await).start_stream(sent).await.unwrap().into_inner();
    let knock = Knock { knock: true, ack: false, error: String::new() };
    offers.send(ConnInfo { service_id: 3, knock: Some(knock), ..ConnInfo::default() }).await.unwrap();
    let answer = tokio::time::timeout(TIMEOUT, broker.message()).await.unwrap().unwrap().unwrap();
    assert!(answer.service_id == 3 && answer.knock.unwrap().error.contains("no brokered service"));

    plugin.shut_down().await;
    assert_eq!(tokio::time::timeout(TIMEOUT, stdio.message()).await.unwrap().unwrap(), None);
    assert_eq!(tokio::time::timeout(TIMEOUT, broker.message()).await.unwrap().unwrap(), None);
}

#[tokio::test]
async fn a_host_that_requires_mtls_gets_the_reason_on_stderr_and_no_line() {
    let output = command(&[COOKIE, ("PLUGIN_CLIENT_CERT", "pem")]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        output.stdout.is_empty() && String::from_utf8_lossy(&output.stderr).contains("mTLS"),
        "{output:?}"
    );
}

#[tokio::test]
async fn where_no_unix_socket_is_possible_it_listens_on_a_loopback_port() {
    let mut child = command(&[COOKIE, ("PLUGIN_UNIX_SOCKET_DIR", "/nowhere")]).spawn().unwrap();
    let mut line = String::new();
    let mut stdout = tokio::io::BufReader::new(child.stdout.take().unwrap());
    tokio::time::timeout(TIMEOUT, stdout.read_line(&mut line)).await.unwrap().unwrap();
    let port: u16 = line
        .trim_end()
        .strip_prefix("1|1|tcp|127.0.0.1:")
        .unwrap()
        .strip_suffix("|grpc|")
        .unwrap()
        .parse()
        .unwrap();
    tokio::net::TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    drop(stdout);
    assert_eq!(tokio::time::timeout(TIMEOUT, child.wait()).await.unwrap().unwrap().code(), Some(0));
}
