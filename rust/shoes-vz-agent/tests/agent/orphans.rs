//! What an agent finds when it starts, all of it accounted for.

use std::{
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use shoes_vz_agent::orphans::Account;
use shoes_vz_model::id::RunnerId;
use shoes_vz_proto::agent::{EndKind, RunnerState};

use crate::host::{Host, command, create, until, until_gone};

/// A process with a VM process' command line that serves no `vm.sock`; it ends with its stdin, and so with the test.
fn hung_vm_process(host: &Host, bundle: &Path) -> Child {
    std::fs::write(host.dir.path().join("vm"), "read line\n").unwrap();
    let mut command = Command::new("sh");
    command.current_dir(host.dir.path()).args(["vm", "--bundle"]).arg(bundle).stdin(Stdio::piped());
    command.spawn().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pain_05_bundles_processes_and_files_are_adopted_removed_ended_or_named_foreign_and_counted() {
    let host = Host::new();
    let first = host.mortal_agent();
    let alive = RunnerId::random();
    first.apply(command("1", create(alive, "script")));
    until(&first.runners, alive, |r| r.state() == RunnerState::SshReady).await;
    first.kill();
    let (begun, gone) = (RunnerId::random(), RunnerId::random());
    std::fs::create_dir(host.bundle(begun)).unwrap();
    std::fs::write(host.bundle(begun).join("RuntimeMetadata.json.new"), "{\"runner_id").unwrap();
    let mut not_ready = hung_vm_process(&host, &host.bundle(begun));
    let mut without_bundle = hung_vm_process(&host, &host.bundle(gone));
    std::fs::write(host.runners_path().join(".ends.new"), "").unwrap();
    std::fs::write(host.runners_path().join("notes.txt"), "").unwrap();
    std::fs::create_dir(host.runners_path().join("photos")).unwrap();

    let (runners, account) = host.agent_and_account().await;
    assert_eq!(account, Account { adopted: 1, removed: 1, leftovers: 2, ended: 2, foreign: 2 });
    for child in [&mut not_ready, &mut without_bundle] {
        drop(child.stdin.take());
        assert_eq!(child.wait().unwrap().signal(), Some(9));
    }
    let (_, end) = until_gone(&runners, begun).await;
    assert_eq!(end.kind(), EndKind::Failed, "{end:?}");
    until(&runners, alive, |r| r.state() == RunnerState::SshReady).await;
    let mut left = host.entries();
    left.sort();
    let mut expected = [format!("{alive}.bundle"), "notes.txt".into(), "photos".into()];
    expected.sort();
    assert_eq!(left, expected);

    let (_, again) = host.agent_and_account().await;
    assert_eq!(again, Account { adopted: 1, foreign: 2, ..Account::default() });
}
