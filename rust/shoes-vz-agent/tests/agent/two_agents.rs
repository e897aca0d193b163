//! Two processes of the real program on one runners path.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
};

use shoes_vz_model::id::RunnerId;
use tokio::process::Command;

use crate::{
    fake_server::FakeServer,
    host::{Host, TIMEOUT},
};

fn agent(host: &Host, server: &FakeServer, state_dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_shoes-vz-agent"));
    command
        .args(["run", "--server", &server.addr.to_string(), "--hostname", "h", "--accelerator", "tcg"])
        .args([
            "--hypervisor",
            "qemu",
            "--min-free-disk",
            "0",
            "--hot",
            "none",
            "--saved-states",
            "off",
            "--template-path",
        ])
        .arg(host.dir.path().join("t"))
        .arg("--runners-path")
        .arg(host.runners_path())
        .arg("--state-dir")
        .arg(state_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    command
}

/// Every file below `dir` with its content.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(files(&path)),
            false => drop(all.insert(path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    all
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_agent_on_one_runners_path_exits_with_the_reason_and_changes_nothing() {
    let host = Host::new();
    let mut server = FakeServer::start("127.0.0.1:0", 1).await;
    let mut first = agent(&host, &server, &host.dir.path().join("s1")).spawn().unwrap();
    server.until(|t| t.syncs > 0).await;
    // Without the lock, the second agent would remove these.
    std::fs::create_dir(host.bundle(RunnerId::random())).unwrap();
    std::fs::write(host.runners_path().join(".ends.new"), "half").unwrap();
    let before = files(&host.runners_path());

    let second = agent(&host, &server, &host.dir.path().join("s2")).output();
    let second = tokio::time::timeout(TIMEOUT, second).await.expect("it exits").unwrap();
    assert_eq!(second.status.code(), Some(1), "{second:?}");
    let stderr = String::from_utf8(second.stderr).unwrap();
    let pid = first.id().unwrap();
    for part in ["served by another agent", &format!("pid {pid}"), host.runners_path().to_str().unwrap()] {
        assert!(stderr.contains(part), "{part:?} is not in {stderr}");
    }
    assert_eq!(files(&host.runners_path()), before);
    assert_eq!(host.entries().len(), 1, "the bundle is still there");
    assert_eq!(server.received.borrow().registrations.len(), 1, "the second agent never registered");
    assert_eq!(first.try_wait().unwrap(), None, "the first agent keeps running");
    first.kill().await.unwrap();
}
