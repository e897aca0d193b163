//! The agent and its server: registration, commands, acknowledgements, lost connections.

use std::{
    io,
    sync::{Arc, Mutex, atomic::Ordering},
};

use shoes_vz_agent::{
    control_plane::{ControlPlane, Registration},
    runners::Runners,
};
use shoes_vz_model::id::{AgentId, RunnerId};
use shoes_vz_proto::agent::{EndKind, RunnerState, SyncResponse};
use shoes_vz_testkit::ports;
use tokio_util::task::AbortOnDropHandle;

use crate::{
    fake_server::FakeServer,
    host::{Host, command, create, until, until_ended},
};

fn serve(uri: String, runners: &Arc<Runners>) -> AbortOnDropHandle<()> {
    let host = Registration { agent_id: AgentId::random(), hostname: "h".into(), max_runners: 2 };
    let server = ControlPlane::new(&uri, None, &host, runners.clone()).unwrap();
    AbortOnDropHandle::new(tokio::spawn(server.serve(|_| {})))
}

/// An agent of `host` and the server at `addr` that it serves until the link is dropped.
async fn connected(
    host: &Host,
    addr: &str,
    protocol: u32,
) -> (Arc<Runners>, FakeServer, AbortOnDropHandle<()>) {
    let runners = host.agent().await;
    let server = FakeServer::start(addr, protocol).await;
    let link = serve(format!("http://{}", server.addr), &runners);
    (runners, server, link)
}

#[tokio::test]
async fn a_command_is_executed_and_acknowledged_and_the_end_is_reported_until_acknowledged() {
    let host = Host::new();
    let (_runners, mut server, _link) = connected(&host, "127.0.0.1:0", 1).await;
    let received = server.until(|t| t.syncs > 0).await;
    let info = received.registrations[0].info.clone().unwrap();
    assert_eq!(
        (info.protocol, info.hypervisor.as_str(), info.templates[0].name.as_str()),
        (1, "qemu", "fake")
    );
    assert_eq!(received.registrations[0].capacity.unwrap().max_runners, 2);

    let id = RunnerId::random();
    server.commands.send(command("c-1", create(id, "script"))).unwrap();
    server.commands.send(command("c-1", create(id, "script"))).unwrap();
    let received = server.until(|t| t.last.runners.iter().any(|r| r.state() == RunnerState::SshReady)).await;
    assert_eq!(received.last.active_runners, 1);
    let received = server.until(|t| t.acks.len() == 2).await;
    assert_eq!(received.acks, vec![("c-1".into(), String::new()); 2]);
    assert_eq!(host.vms.all().len(), 1, "a command sent twice is applied once");

    server.commands.send(command("c-2", create(RunnerId::random(), ""))).unwrap();
    server.commands.send(command("c-3", create(RunnerId::random(), ""))).unwrap();
    let received = server.until(|t| t.acks.len() == 4).await;
    assert!(received.acks[3].1.contains("slots"), "{:?}", received.acks);

    server.commands.send(command("c-4", id)).unwrap();
    let ended = |t: &crate::fake_server::Received| {
        t.last.runners.iter().find(|r| r.runner_id == id.to_string())?.end.clone()
    };
    let received = server.until(|t| ended(t).is_some()).await;
    assert_eq!(ended(&received).unwrap().kind(), EndKind::Deleted);
    server.commands.send(SyncResponse { end_acks: vec![id.to_string()], ..SyncResponse::default() }).unwrap();
    server.commands.send(command("c-5", RunnerId::random())).unwrap();
    let received = server.until(|t| t.acks.len() == 6).await;
    assert!(received.last.runners.iter().all(|r| r.runner_id != id.to_string()), "{:?}", received.last);
}

#[tokio::test]
async fn the_server_learns_at_once_why_a_host_refuses_runners_and_when_it_accepts_them_again() {
    let host = Host::new();
    let (runners, mut server, _link) = connected(&host, "127.0.0.1:0", 1).await;
    let received = server.until(|t| t.syncs > 0).await;
    assert_eq!(received.last.unschedulable_reason, "");

    host.free_disk.store(0, Ordering::Relaxed);
    runners.agent().disk.check().unwrap_err();
    let received = server.until(|t| !t.last.unschedulable_reason.is_empty()).await;
    assert!(received.last.unschedulable_reason.contains("0 bytes free"), "{received:?}");
    server.commands.send(command("c-1", create(RunnerId::random(), "script"))).unwrap();
    let received = server.until(|t| t.acks.len() == 1).await;
    assert_eq!(received.try_elsewhere, ["c-1"]);
    assert!(received.acks[0].1.contains("0 bytes free"), "{received:?}");

    host.free_disk.store(u64::MAX, Ordering::Relaxed);
    runners.agent().disk.check().unwrap();
    server.until(|t| t.last.unschedulable_reason.is_empty()).await;
}

#[tokio::test]
async fn fault_02_an_absent_server_is_logged_as_unreachable_once_and_stops_nothing() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer({
            let log = log.clone();
            move || log.clone()
        })
        .finish();
    let _guard = capture(subscriber);

    let host = Host::new();
    let (runners, mut server, _link) = connected(&host, &ports::fixed().to_string(), 1).await;
    let id = RunnerId::random();
    server.until(|t| t.syncs > 0).await;
    server.commands.send(command("1", create(id, "script"))).unwrap();
    until(&runners, id, |r| r.state() == RunnerState::SshReady).await;
    let addr = server.crash();
    // Meanwhile the runner ends, and several connection attempts fail.
    host.vms.only().end(shoes_vz_proto::vm::VmEndKind::GuestPoweroff, "the guest powered itself off");
    until_ended(&runners, id).await;
    log.until(|text| text.matches("still no connection").count() >= 3).await;

    let mut server = FakeServer::start(&addr.to_string(), 1).await;
    let received = server.until(|t| t.syncs > 0).await;
    let end = received.last.runners[0].end.clone().expect("the end is reported when the server is back");
    assert!(end.reason.contains("powered itself off"), "{end:?}");
    log.until(|text| text.contains("reconnected")).await;
    let text = log.text();
    assert_eq!(text.matches("unreachable").count(), 1, "{text}");
    assert_eq!(text.matches("reconnected").count(), 1, "{text}");
}

#[tokio::test]
async fn a_server_that_refuses_the_token_is_not_logged_as_unreachable() {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer({
            let log = log.clone();
            move || log.clone()
        })
        .finish();
    let _guard = capture(subscriber);
    let refuse = |_: tonic::Request<()>| -> Result<tonic::Request<()>, tonic::Status> {
        Err(tonic::Status::unauthenticated("wrong token"))
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let (_, health) = tonic_health::server::health_reporter();
    let served = tonic::transport::Server::builder()
        .layer(tonic::service::InterceptorLayer::new(refuse))
        .add_service(health)
        .serve_with_incoming(tokio_stream::wrappers::TcpListenerStream::new(listener));
    let _server = AbortOnDropHandle::new(tokio::spawn(served));
    let host = Host::new();
    let runners = host.agent().await;
    let _link = serve(uri, &runners);
    log.until(|text| text.contains("refuses this agent")).await;
    assert!(log.text().contains("wrong token") && !log.text().contains("unreachable"), "{}", log.text());
}

#[tokio::test]
async fn a_go_server_gets_reports_at_its_interval_and_in_its_terms() {
    let host = Host::new();
    let (runners, mut server, _link) = connected(&host, "127.0.0.1:0", 0).await;
    server.until(|t| t.syncs > 0).await;
    let id = RunnerId::random();
    server.commands.send(command("", create(id, "script"))).unwrap();
    server.until(|t| t.last.runners.iter().any(|r| r.state() == RunnerState::SshReady)).await;
    let vm = host.vms.only();
    vm.until_set_up().await;
    vm.runner(shoes_vz_model::guest::RunnerActivity::Idle);
    until(&runners, id, |r| r.state() == RunnerState::Running).await;
    let syncs = server.received.borrow().syncs;
    let received = server.until(|t| t.syncs > syncs + 1).await;
    assert_eq!(received.last.runners[0].state(), RunnerState::SshReady, "a Go server waits for this state");
    server.commands.send(command("", id)).unwrap();
    let received = server.until(|t| t.last.runners.is_empty()).await;
    assert!(received.acks.is_empty());
    assert!(vm.has_ended());
}

/// Installs `subscriber` for this thread, after another one for all threads. If only one thread has a subscriber, tracing may
/// ask another thread whether an event is enabled, and cache its negative answer for all.
fn capture(subscriber: impl tracing::Subscriber + Send + Sync) -> tracing::subscriber::DefaultGuard {
    static GLOBAL: std::sync::Once = std::sync::Once::new();
    GLOBAL.call_once(|| {
        let all = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_writer(std::io::sink);
        tracing::subscriber::set_global_default(all.finish()).expect("no other test sets one");
    });
    tracing::subscriber::set_default(subscriber)
}

/// What was logged.
#[derive(Clone, Default)]
struct Log {
    bytes: Arc<Mutex<Vec<u8>>>,
    more: Arc<tokio::sync::Notify>,
}

impl Log {
    fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes.lock().unwrap()).into_owned()
    }

    async fn until(&self, wanted: impl Fn(&str) -> bool) {
        let found = async {
            loop {
                let more = self.more.notified();
                if wanted(&self.text()) {
                    return;
                }
                more.await;
            }
        };
        if tokio::time::timeout(crate::host::TIMEOUT, found).await.is_err() {
            panic!("not logged in time: {}", self.text());
        }
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.lock().unwrap().extend_from_slice(bytes);
        self.more.notify_waiters();
        self.more.notify_one();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
