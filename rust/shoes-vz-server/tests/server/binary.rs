//! The program: how it starts, fails and stops.

use std::process::{Output, Stdio};

use tempfile::tempdir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::common::TIMEOUT;

fn server(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoes-vz-server"));
    command.args(args).env_clear().stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.kill_on_drop(true);
    command
}

async fn output(args: &[&str]) -> Output {
    timeout(TIMEOUT, server(args).output()).await.expect("it ends").unwrap()
}

/// Waits for the log line "ready".
async fn ready(child: &mut Child) -> serde_json::Value {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = async {
        while let Some(line) = lines.next_line().await.unwrap() {
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if line["message"] == "ready" {
                return line;
            }
        }
        panic!("it ended before it was ready");
    };
    timeout(TIMEOUT, line).await.expect("it gets ready")
}

#[tokio::test]
async fn it_reports_that_it_is_ready_and_stops_at_once_even_with_streams_open() {
    let dir = tempdir().unwrap();
    let (state, ready_file) = (dir.path().join("state"), dir.path().join("ready"));
    let mut child =
        server(&["-grpc-addr", "127.0.0.1:0", "-metrics-addr", "127.0.0.1:0", "--log-format", "json"])
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
        timeout(TIMEOUT / 4, child.wait()).await.expect("it does not wait for its own deadline").unwrap();
    assert!(status.success(), "{status:?}");
}

#[tokio::test]
async fn a_taken_port_ends_it_with_the_reason() {
    let dir = tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let state = dir.path().to_str().unwrap();
    let output = output(&["--grpc-addr", "127.0.0.1:0", "--metrics-addr", &addr, "--state-dir", state]).await;
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(stderr.contains(&addr) && stderr.contains("--metrics-addr"), "{stderr}");
}

#[tokio::test]
async fn a_damaged_database_ends_it_unless_its_replacement_is_requested() {
    let dir = tempdir().unwrap();
    let file = dir.path().join(shoes_vz_server::store::FILE);
    std::fs::write(&file, "not a database").unwrap();
    let state = dir.path().to_str().unwrap();
    let args = ["--grpc-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0", "--state-dir", state];
    let refused = output(&args).await;
    assert_eq!(refused.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        stderr.contains(file.to_str().unwrap()) && stderr.contains("--replace-damaged-state"),
        "{stderr}"
    );
    assert_eq!(std::fs::read(&file).unwrap(), b"not a database");

    let mut child = server(&args).args(["--replace-damaged-state", "--log-format=json"]).spawn().unwrap();
    ready(&mut child).await;
    let kept = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path());
    let kept: Vec<_> = kept.filter(|p| p.to_str().unwrap().contains(".damaged-")).collect();
    assert_eq!(kept.len(), 1, "{kept:?}");
    assert_eq!(std::fs::read(&kept[0]).unwrap(), b"not a database");
}

#[tokio::test]
async fn mistakes_in_its_settings_end_it_and_all_are_reported() {
    let output = output(&["--grpc-addr", "nowhere", "--caller-grace", "soon"]).await;
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    for part in ["nowhere", "soon", "state-dir", "3 settings are wrong"] {
        assert!(stderr.contains(part), "{stderr}");
    }
}

/// Starts a server, waits for its ready file, and returns it with its HTTP address.
async fn started(dir: &std::path::Path, configure: impl FnOnce(&mut Command)) -> (Child, String) {
    let ready_file = dir.join("ready");
    let mut command = server(&["--grpc-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0"]);
    command.env("SHOESVZ_SERVER_STATE_DIR", dir.join("state")).env("SHOESVZ_SERVER_READY_FILE", &ready_file);
    configure(&mut command);
    let child = command.spawn().unwrap();
    let written = async {
        loop {
            if let Ok(text) = std::fs::read_to_string(&ready_file) {
                return serde_json::from_str::<serde_json::Value>(&text).unwrap();
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let ready = timeout(TIMEOUT, written).await.expect("it gets ready");
    (child, ready["metrics_addr"].as_str().unwrap().to_owned())
}

async fn is_healthy(addr: &str) -> bool {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await.unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text.starts_with("HTTP/1.0 200")
}

fn kill(child: &Child, signal: &str) {
    let pid = child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args([signal, &pid]).status().unwrap().success());
}

#[tokio::test]
async fn a_log_that_cannot_be_written_changes_nothing() {
    let dir = tempdir().unwrap();
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    let (mut child, addr) = started(dir.path(), |command| {
        command.stdout(full()).stderr(full());
    })
    .await;
    assert!(is_healthy(&addr).await);
    kill(&child, "-TERM");
    assert!(timeout(TIMEOUT, child.wait()).await.unwrap().unwrap().success());
}

#[tokio::test]
async fn a_log_without_a_reader_blocks_nothing() {
    let dir = tempdir().unwrap();
    // A pipe of one page that stays full: the reader is there and reads nothing.
    let (reader, writer) = std::io::pipe().unwrap();
    let (mut child, addr) = started(dir.path(), |command| {
        command.stderr(writer).env("SHOESVZ_LOG", "trace");
    })
    .await;
    for _ in 0..200 {
        assert!(is_healthy(&addr).await);
    }
    kill(&child, "-TERM");
    assert!(timeout(TIMEOUT, child.wait()).await.unwrap().unwrap().success());
    drop(reader);
}

#[tokio::test]
async fn a_hangup_drains_and_stops_it_and_the_users_signals_do_nothing() {
    let dir = tempdir().unwrap();
    let (mut child, addr) = started(dir.path(), |_| ()).await;
    kill(&child, "-USR1");
    kill(&child, "-USR2");
    assert!(is_healthy(&addr).await);
    kill(&child, "-HUP");
    let output = timeout(TIMEOUT, child.wait()).await.unwrap().unwrap();
    assert_eq!(output.code(), Some(0), "{output:?}");
}

#[tokio::test]
async fn a_hangup_that_nohup_has_switched_off_stays_off() {
    let dir = tempdir().unwrap();
    let (mut child, addr) = started(dir.path(), |command| {
        let own = std::mem::replace(command, Command::new("nohup"));
        command.arg(own.as_std().get_program()).args(own.as_std().get_args());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
        command.envs(own.as_std().get_envs().filter_map(|(n, v)| Some((n, v?))));
    })
    .await;
    kill(&child, "-HUP");
    assert!(is_healthy(&addr).await);
    kill(&child, "-TERM");
    assert!(timeout(TIMEOUT, child.wait()).await.unwrap().unwrap().success());
}
