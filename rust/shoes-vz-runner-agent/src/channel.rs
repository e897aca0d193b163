//! The host's streams over the guest channel, and the guest channel over a virtio-serial port.

use std::net::SocketAddr;

use axum::Router;
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use shoes_vz_channel::StreamRequest;
use shoes_vz_model::guest::port;
#[cfg(target_os = "linux")]
use shoes_vz_process::backoff::Backoff;
use tracing::debug;

use crate::forward;

/// Serves the streams that the host opens.
#[derive(Debug, Clone)]
pub(crate) struct Handler {
    pub(crate) router: Router,
    pub(crate) ssh_addr: SocketAddr,
}

impl Handler {
    pub(crate) async fn handle(self, incoming: StreamRequest) {
        let port = incoming.port();
        let served = match port {
            port::API => self.api(incoming).await,
            port::SSH => forward::forward(incoming, self.ssh_addr).await.map_err(Into::into),
            other => {
                let (api, ssh) = (port::API, port::SSH);
                let reason =
                    format!("this guest agent serves ports {api} (API) and {ssh} (SSH), not {other}");
                incoming.refuse(&reason).await.map_err(Into::into)
            }
        };
        if let Err(error) = served {
            debug!(port, reason = error, "stream of the guest channel failed");
        }
    }

    async fn api(self, incoming: StreamRequest) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let stream = incoming.accept().await?;
        // When the caller ends its half of the stream it has hung up, which ends its request.
        let server = auto::Builder::new(TokioExecutor::new()).http1_only();
        server.serve_connection(TokioIo::new(stream), TowerToHyperService::new(self.router)).await
    }
}

/// Serves the guest channel over a virtio-serial port without end: a host that disconnects comes back.
#[cfg(target_os = "linux")]
pub(crate) async fn serve_serial(
    path: std::path::PathBuf,
    hello: shoes_vz_channel::Hello,
    handler: Handler,
) -> anyhow::Result<()> {
    use std::time::Duration;

    use crate::serial::SerialPort;
    let mut backoff = Backoff::new(Duration::from_millis(5), Duration::from_millis(200));
    loop {
        let began = tokio::time::Instant::now();
        let served = async {
            let (port, handler) = (SerialPort::open(&path)?, handler.clone());
            let handle = move |incoming| handler.clone().handle(incoming);
            shoes_vz_channel::mux::Guest::serve(port, hello.clone(), handle).await
        };
        let served = served.await;
        if began.elapsed() > Duration::from_secs(1) {
            backoff.reset();
        }
        if backoff.is_fresh() {
            match served {
                Ok(()) => tracing::info!("host disconnected from the guest channel; waiting for it"),
                Err(error) => {
                    tracing::warn!(reason = %error, path = %path.display(), "guest channel failed; retrying")
                }
            }
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use shoes_vz_channel::{
        Hello,
        api::GuestApi,
        mux::{Guest, Host, OpenError},
        socket,
    };
    use shoes_vz_model::guest::{ExecRequest, RunnerActivity};
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, duplex},
        net::{TcpListener, UnixListener},
        time::timeout,
    };

    use super::*;
    use crate::{api, state::State};

    const LONG: Duration = Duration::from_secs(20);

    fn host(dir: &Path, ssh_addr: SocketAddr) -> Host {
        let state =
            State::for_tests("s", dir.join("state"), Path::new("/nonexistent"), dir.to_owned()).unwrap();
        let handler = Handler { router: api::router(state), ssh_addr };
        let (a, b) = duplex(4096);
        let handle = move |incoming| handler.clone().handle(incoming);
        tokio::spawn(Guest::serve(b, Hello::new("t", "s"), handle));
        Host::spawn(a)
    }

    fn guest_api(dir: &Path) -> GuestApi {
        let sock = dir.join("guest.sock");
        let host = host(dir, ([127, 0, 0, 1], 9).into());
        tokio::spawn(socket::serve(UnixListener::bind(&sock).unwrap(), host));
        GuestApi::new(sock)
    }

    #[tokio::test]
    async fn the_api_is_served_over_the_channel_without_a_token() {
        let dir = tempfile::tempdir().unwrap();
        let api = guest_api(dir.path());
        assert_eq!(api.status().await.unwrap().state, RunnerActivity::Offline);
        assert_eq!(api.health().await.unwrap().version, api::VERSION);
        let request = ExecRequest { command: "echo".into(), args: vec!["hi".into()], timeout_seconds: 0 };
        assert_eq!(api.exec(request).await.unwrap().output, "hi\n");
    }

    #[tokio::test]
    async fn hanging_up_over_the_channel_ends_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let api = guest_api(dir.path());
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // The program holds the pipe open: when it ends, the reader reaches the end of file.
        let command = format!("exec 3> {}; echo on >&3; exec sleep 100000", fifo.display());
        let mut reader = tokio::net::unix::pipe::OpenOptions::new().open_receiver(&fifo).unwrap();
        let request =
            ExecRequest { command: "/bin/sh".into(), args: vec!["-c".into(), command], timeout_seconds: 60 };
        let call = tokio::spawn(async move { api.exec(request).await });
        let mut on = [0; 3];
        loop {
            // Before it has a writer, a pipe reads as ended.
            reader.readable().await.unwrap();
            match reader.try_read(&mut on) {
                Ok(3) => break,
                _ => tokio::task::yield_now().await,
            }
        }
        call.abort();
        let mut rest = Vec::new();
        timeout(LONG, reader.read_to_end(&mut rest)).await.expect("the program is ended").unwrap();
    }

    #[tokio::test]
    async fn another_port_is_refused_with_the_reason() {
        let dir = tempfile::tempdir().unwrap();
        let host = host(dir.path(), ([127, 0, 0, 1], 9).into());
        let error = host.open(80).await.unwrap_err();
        assert!(
            matches!(&error, OpenError::Refused { port: 80, reason } if reason.contains("not 80")),
            "{error}"
        );
    }

    #[tokio::test]
    async fn the_forward_waits_until_sshd_listens_and_keeps_half_close() {
        let dir = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = free.local_addr().unwrap();
        drop(free);
        let host = host(dir.path(), addr);
        let opening = tokio::spawn(async move { (host.open(port::SSH).await, host) });
        tokio::time::sleep(Duration::from_millis(30)).await; // the first tries are refused
        assert!(!opening.is_finished());
        let sshd = TcpListener::bind(addr).await.unwrap();
        let (mut server, _) = timeout(LONG, sshd.accept()).await.unwrap().unwrap();
        let (stream, _host) = timeout(LONG, opening).await.unwrap().unwrap();
        let mut stream = stream.unwrap();
        stream.write_all(b"ssh").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut got = String::new();
        server.read_to_string(&mut got).await.unwrap();
        server.write_all(b"bye").await.unwrap();
        drop(server);
        stream.read_to_string(&mut got).await.unwrap();
        assert_eq!(got, "sshbye");
    }

    #[tokio::test]
    async fn the_forward_stops_trying_when_its_caller_hangs_up() {
        let dir = tempfile::tempdir().unwrap();
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = free.local_addr().unwrap();
        drop(free);
        let host = host(dir.path(), addr);
        host.peer().wait_for(|p| *p != shoes_vz_channel::mux::Peer::Down).await.unwrap();
        let early = timeout(Duration::from_millis(30), host.open(port::SSH)).await;
        assert!(early.is_err(), "nothing listens");
        // An answer over the channel shows that the hang-up, which was sent before, has arrived.
        assert!(host.open(80).await.is_err());
        let sshd = TcpListener::bind(addr).await.unwrap();
        let opened = timeout(Duration::from_millis(200), sshd.accept()).await;
        assert!(opened.is_err(), "still trying: {opened:?}");
    }
}
