//! The startup cleanup: an agent handles everything that it finds.

use std::{
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use shoes_vz_agent::orphans::CleanupSummary;
use shoes_vz_model::{bundle::file, id::RunnerId};
use shoes_vz_proto::agent::{EndKind, RunnerState};

use crate::host::{Host, TIMEOUT, command, create, until, until_ended};

/// A process with the command line of a VM process that serves no `vm.sock`. It ends when its stdin closes, and so with the
/// test.
fn hung_vm_process(host: &Host, bundle: &Path) -> Child {
    std::fs::write(host.dir.path().join("vm"), "read line\n").unwrap();
    let mut command = Command::new("sh");
    command.current_dir(host.dir.path()).args(["vm", "--bundle"]).arg(bundle).stdin(Stdio::piped());
    command.spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_05_bundles_processes_and_files_are_adopted_removed_ended_or_named_foreign_and_counted() {
    let host = Host::new();
    let first = host.killable_agent();
    let alive = RunnerId::random();
    first.apply(command("1", create(alive, "script")));
    until(&first.runners, alive, |r| r.state() == RunnerState::SshReady).await;
    first.kill();
    let (incomplete, removed) = (RunnerId::random(), RunnerId::random());
    std::fs::create_dir(host.bundle(incomplete)).unwrap();
    std::fs::write(host.bundle(incomplete).join("RuntimeMetadata.json.new"), "{\"runner_id").unwrap();
    let mut not_ready = hung_vm_process(&host, &host.bundle(incomplete));
    let mut without_bundle = hung_vm_process(&host, &host.bundle(removed));
    std::fs::write(host.runners_path().join(".ends.new"), "").unwrap();
    std::fs::write(host.runners_path().join("notes.txt"), "").unwrap();
    std::fs::create_dir(host.runners_path().join("photos")).unwrap();

    let (runners, summary) = host.agent_and_summary().await;
    assert_eq!(summary, CleanupSummary { adopted: 1, removed: 1, leftovers: 2, ended: 2, foreign: 2 });
    for child in [&mut not_ready, &mut without_bundle] {
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
    let (_, end) = until_ended(&runners, incomplete).await;
    assert_eq!(end.kind(), EndKind::Failed, "{end:?}");
    until(&runners, alive, |r| r.state() == RunnerState::SshReady).await;
    // From then on nothing is written: the other agent must not meet a file that this one is writing.
    let settled = async {
        while host.bundle(alive).join(file::SETUP_SCRIPT).exists() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(TIMEOUT, settled).await.expect("the setup script is handed over");
    let mut left = host.entries();
    left.sort();
    let mut expected = [format!("{alive}.bundle"), "notes.txt".into(), "photos".into()];
    expected.sort();
    assert_eq!(left, expected);

    let (_, again) = host.agent_and_summary().await;
    assert_eq!(again, CleanupSummary { adopted: 1, foreign: 2, ..CleanupSummary::default() });
}
