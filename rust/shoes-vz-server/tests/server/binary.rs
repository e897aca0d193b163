//! The program itself: how it starts, what it says when it cannot, how it ends.

use std::process::{Output, Stdio};

use tempfile::tempdir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::common::PATIENCE;

fn server(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoes-vz-server"));
    command.args(args).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    command
}

async fn output(args: &[&str]) -> Output {
    timeout(PATIENCE, server(args).output()).await.expect("it ends").unwrap()
}

/// Waits for the line that says that it is ready.
async fn ready(child: &mut Child) -> serde_json::Value {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let line = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if line["message"] == "ready" {
                return line;
            }
        }
        panic!("it ended before it was ready");
    };
    timeout(PATIENCE, line).await.expect("it gets ready")
}

#[tokio::test]
async fn it_says_when_it_is_ready_and_ends_at_once_when_told_to_even_with_streams_open() {
    let dir = tempdir().unwrap();
    let (state, ready_file) = (dir.path().join("state"), dir.path().join("ready"));
    let mut child = server(&["--grpc-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0"])
        .env("SHOESVZ_SERVER_STATE_DIR", &state)
        .env("SHOESVZ_SERVER_READY_FILE", &ready_file)
        .spawn()
        .unwrap();
    let line = ready(&mut child).await;
    let file: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&ready_file).unwrap()).unwrap();
    assert_eq!((&file["grpc_addr"], &file["metrics_addr"]), (&line["grpc_addr"], &line["metrics_addr"]));
    let addr = format!("http://{}", file["grpc_addr"].as_str().unwrap());
    let channel = tonic::transport::Endpoint::from_shared(addr).unwrap().connect().await.unwrap();
    let mut client = shoes_vz_proto::fleet::fleet_service_client::FleetServiceClient::new(channel);
    let watch = shoes_vz_proto::fleet::WatchRunnersRequest::default();
    let mut views = client.watch_runners(watch).await.unwrap().into_inner();

    let pid = child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(views.message().await.unwrap().is_none(), "the stream ends properly");
    let status =
        timeout(PATIENCE / 4, child.wait()).await.expect("it does not wait for its own deadline").unwrap();
    assert!(status.success(), "{status:?}");
}

#[tokio::test]
async fn a_taken_port_is_its_end_with_words() {
    let dir = tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let state = dir.path().to_str().unwrap();
    let output = output(&["--grpc-addr", "127.0.0.1:0", "--metrics-addr", &addr, "--state-dir", state]).await;
    assert_eq!(output.status.code(), Some(1));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(told.contains(&addr) && told.contains("--metrics-addr"), "{told}");
}

#[tokio::test]
async fn a_damaged_database_is_its_end_unless_it_is_told_to_begin_without_it() {
    let dir = tempdir().unwrap();
    let file = dir.path().join(shoes_vz_server::store::FILE);
    std::fs::write(&file, "no database").unwrap();
    let state = dir.path().to_str().unwrap();
    let args = ["--grpc-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0", "--state-dir", state];
    let refused = output(&args).await;
    assert_eq!(refused.status.code(), Some(1));
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains(file.to_str().unwrap()) && told.contains("--replace-damaged-state"), "{told}");
    assert_eq!(std::fs::read(&file).unwrap(), b"no database");

    let mut child = server(&args).arg("--replace-damaged-state").spawn().unwrap();
    ready(&mut child).await;
    let kept = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
    let kept: Vec<_> = kept.filter(|p| p.to_str().unwrap().contains(".damaged-")).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(std::fs::read(&kept[0]).unwrap(), b"no database");
}

#[tokio::test]
async fn mistakes_in_its_settings_are_its_end_and_all_are_told() {
    let output = output(&["--grpc-addr", "nowhere", "--caller-grace", "soon"]).await;
    assert_eq!(output.status.code(), Some(2));
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in ["nowhere", "soon", "state-dir", "3 mistake(s)"] {
        assert!(told.contains(part), "{told}");
    }
}
