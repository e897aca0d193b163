//! A state disk that is really full: a file system of two mebibytes, in the server's mount namespace.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::Stdio,
};

use shoes_vz_proto::agent::{EndKind, RunnerEnd, RunnerState};
use tempfile::{TempDir, tempdir};
use tokio::process::{Child, Command};
use tonic::Code;

use crate::common::{Agent, Server, answer, eventually};

/// The program, on a small disk.
struct SmallDisk {
    child: Child,
    server: Server,
    /// The disk, as seen from here.
    disk: PathBuf,
    dir: TempDir,
}

impl SmallDisk {
    async fn start() -> Self {
        let dir = tempdir().unwrap();
        let (state, ready) = (dir.path().join("state"), dir.path().join("ready"));
        std::fs::create_dir(&state).unwrap();
        let log = std::fs::File::create(dir.path().join("log")).unwrap();
        // The namespace, and the disk with it, ends with the program.
        let mount = r#"mount -t tmpfs -o size=2m,mode=700 none "$1" && exec "$2" --grpc-addr 127.0.0.1:0 \
            --metrics-addr 127.0.0.1:0 --state-dir "$1" --ready-file "$3""#;
        let child = Command::new("unshare")
            .args(["--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"])
            .args([state.as_os_str(), env!("CARGO_BIN_EXE_shoes-vz-server").as_ref(), ready.as_os_str()])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let server = Server::of_ready_file(&ready).await;
        let inside = format!("/proc/{}/root", child.id().unwrap());
        let disk = Path::new(&inside).join(state.strip_prefix("/").unwrap());
        Self { child, server, disk, dir }
    }

    /// Fills the disk until nothing fits.
    fn fill(&self) {
        let mut file = std::fs::File::create(self.disk.join("filler")).unwrap();
        for size in [64 << 10, 4 << 10, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }

    fn make_room(&self) {
        std::fs::remove_file(self.disk.join("filler")).unwrap();
    }

    fn logged(&self, what: &str) -> usize {
        std::fs::read_to_string(self.dir.path().join("log")).unwrap().matches(what).count()
    }

    async fn metric(&self, name: &str) -> f64 {
        let text = self.server.http("/metrics", "").await.1;
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }
}

#[tokio::test]
async fn a_full_state_disk_refuses_what_must_be_written_and_nothing_else_until_there_is_room() {
    let mut small = SmallDisk::start().await;
    let mut agent = Agent::connect(&small.server, 3).await;
    let mut clouds = vec![];
    for name in ["ended", "busy"] {
        let call = small.server.add(name);
        agent.take_create().await;
        agent.report(RunnerState::Running).await;
        clouds.push(answer(call).await.unwrap().cloud_id);
    }
    let (deleted, _) = tokio::join!(small.server.delete(&clouds[0]), agent.take_delete());
    deleted.unwrap();

    small.fill();
    for _ in 0..3 {
        let refused = answer(small.server.add("new")).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "myshoes must keep its job: {refused:?}");
        for part in ["fleet.sqlite3", "full", "free space", "resumes by itself"] {
            assert!(refused.message().contains(part), "{refused:?}");
        }
    }
    assert!(small.metric("shoesvz_store_writable").await < 0.1);
    assert!(small.metric("shoesvz_store_writes_failed_total").await >= 1.0);
    assert_eq!(small.metric("shoesvz_queue_length").await as u32, 0, "a refused request is not queued");
    let (status, body) = small.server.http("/healthz", "").await;
    assert!(status == 200 && body.starts_with("degraded"), "{status} {body}");
    assert_eq!(small.server.runners().await.len(), 2, "reads continue");
    small.server.delete(&clouds[0]).await.expect("it has ended, and that is durable");
    let refused = small.server.delete(&clouds[1]).await.unwrap_err();
    assert!(refused.code() == Code::Unavailable && refused.message().contains("free space"), "{refused:?}");

    // A job ends meanwhile. The server shows its end, and the agent keeps its report until the end is durable.
    let ended = RunnerEnd { kind: EndKind::Finished.into(), reason: "done".into(), ..Default::default() };
    agent.runners[0].end = Some(ended);
    agent.report(RunnerState::TearingDown).await;
    small.server.until("busy", |v| v.runner.as_ref().unwrap().end.is_some()).await;
    assert!(agent.receives_nothing().await, "an end was acknowledged before it was durable");

    small.make_room();
    let ack = agent.next().await.unwrap().unwrap();
    assert_eq!(ack.end_acks, [agent.runners[0].runner_id.clone()]);
    agent.runners.clear();
    agent.sync().await;
    let call = small.server.add("new");
    assert_eq!(agent.take_create().await.runner_name, "new");
    agent.report(RunnerState::SshReady).await;
    answer(call).await.unwrap();
    assert!((small.metric("shoesvz_store_writable").await - 1.0).abs() < 0.1);
    small.server.delete(&clouds[1]).await.unwrap();
    assert_eq!(small.logged("writing the server's state failed"), 1, "once for the whole outage");
    eventually("its recovery is logged", || {
        (small.logged("server's state written again") == 1).then_some(())
    })
    .await;
    assert!(small.child.try_wait().unwrap().is_none(), "it still runs");
}
