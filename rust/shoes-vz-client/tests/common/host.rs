//! A minimal plugin host.

use std::{path::PathBuf, process::Stdio};

use hyper_util::rt::TokioIo;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use shoes_vz_client::upstream::MAX_MESSAGE;
use shoes_vz_proto::{
    goplugin::{Empty, grpc_controller_client::GrpcControllerClient},
    myshoes::shoes_client::ShoesClient,
};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader},
    net::UnixStream,
    process::{Child, ChildStdout, Command},
};
use tonic::transport::{Channel, Endpoint, Uri};

use super::{BIN, TIMEOUT};

pub const COOKIE: (&str, &str) = ("SHOES_PLUGIN_MAGIC_COOKIE", "are_you_a_shoes?");

/// The client with only these environment variables.
pub fn command(vars: &[(&str, &str)]) -> Command {
    let mut command = Command::new(BIN);
    command.env_clear().envs(vars.iter().copied()).kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// A running plugin.
pub struct Plugin {
    pub line: String,
    pub child: Child,
    pub stdout: Option<BufReader<ChildStdout>>,
    pub temp: tempfile::TempDir,
}

impl Plugin {
    pub async fn start(server: Option<&str>) -> Self {
        Self::start_with(server, &[]).await
    }

    pub async fn start_with(server: Option<&str>, more: &[(&str, &str)]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let mut vars =
            vec![COOKIE, ("PLUGIN_PROTOCOL_VERSIONS", "1"), ("TMPDIR", temp.path().to_str().unwrap())];
        vars.extend(server.map(|s| ("SHOESVZ_SERVER_ADDR", s)));
        vars.extend(more);
        // Stderr is not read here; a full pipe would block the plugin.
        let mut child = command(&vars).stderr(Stdio::null()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        tokio::time::timeout(TIMEOUT, stdout.read_line(&mut line)).await.expect("a handshake line").unwrap();
        Self { line, child, stdout: Some(stdout), temp }
    }

    pub fn socket(&self) -> PathBuf {
        self.line.split('|').nth(3).expect("a fourth field").into()
    }

    pub async fn channel(&self) -> Channel {
        let socket = self.socket();
        let connect = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://plugin").connect_with_connector(connect).await.unwrap()
    }

    pub async fn shoes(&self) -> ShoesClient<Channel> {
        ShoesClient::new(self.channel().await).max_encoding_message_size(MAX_MESSAGE)
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().expect("it runs")).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    pub async fn shut_down(mut self) -> String {
        GrpcControllerClient::new(self.channel().await).shutdown(Empty {}).await.unwrap();
        self.ended().await
    }

    /// Waits for a clean end: exit code 0, socket and directory removed. Returns the rest of stdout.
    pub async fn ended(&mut self) -> String {
        let status =
            tokio::time::timeout(TIMEOUT, self.child.wait()).await.expect("the plugin ends").unwrap();
        assert_eq!(status.code(), Some(0), "{status}");
        assert_eq!(
            std::fs::read_dir(self.temp.path()).unwrap().count(),
            0,
            "the socket directory is left over"
        );
        let mut rest = String::new();
        if let Some(stdout) = &mut self.stdout {
            stdout.read_to_string(&mut rest).await.unwrap();
        }
        rest
    }
}
