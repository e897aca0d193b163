//! Hot VMs: claimed, evicted, adopted.

use shoes_vz_agent::{pool::HotPlan, runners::Runners};
use shoes_vz_model::{
    bundle::{Phase, RuntimeMetadata, file},
    id::RunnerId,
};
use shoes_vz_proto::{
    agent::{RunnerState, StartPath},
    vm::VmEndKind,
};
use tokio::time::timeout;

use crate::host::{Host, TIMEOUT, command, create, until, until_ended};

fn host(slots: u32, wanted: &str) -> Host {
    let mut host = Host::new();
    host.max_runners = slots;
    host.hot = HotPlan::none();
    host.hot.parse_wanted(wanted).unwrap();
    host
}

/// Waits until `wanted` hot VMs are ready, and none is being prepared.
async fn until_hot(runners: &Runners, wanted: u32) {
    let agent = runners.agent();
    let mut changes = agent.pool.watch();
    let are_ready = async {
        loop {
            let shown = agent.pool.shown();
            let (ready, preparing) = shown.iter().fold((0, 0), |(r, p), h| (r + h.ready, p + h.preparing));
            if (ready, preparing) == (wanted, 0) {
                return;
            }
            changes.changed().await.unwrap();
        }
    };
    timeout(TIMEOUT, are_ready).await.expect("hot VMs are ready in time");
}

fn metadata(host: &Host) -> RuntimeMetadata {
    let [entry] = &host.entries()[..] else { panic!("one bundle, not {:?}", host.entries()) };
    let bytes = std::fs::read(host.runners_path().join(entry).join(file::METADATA)).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

#[tokio::test]
async fn a_claimed_vm_gets_the_name_and_the_script_of_its_runner() {
    let host = host(1, "all");
    let runners = host.agent().await;
    until_hot(&runners, 1).await;
    let hot = metadata(&host);
    assert!(hot.phase == Phase::Hot && hot.runner_name.is_empty(), "{hot:?}");
    let id = RunnerId::random();
    assert_eq!(runners.apply(command("1", create(id, "the script"))).reason, "");
    let runner = until(&runners, id, |r| r.state() == RunnerState::SshReady).await;
    assert_eq!(runner.start_path(), StartPath::Hot);
    let vm = host.vms.only();
    vm.until_set_up().await;
    assert_eq!(vm.scripts(), [(id.to_string(), "the script".into())]);
    assert_eq!(host.entries(), [format!("{id}.bundle")]);
    let meta = metadata(&host);
    assert!(!meta.phase.is_hot() && meta.runner_id == id.to_string() && meta.slot == hot.slot, "{meta:?}");
    assert_eq!(runners.apply(command("2", id)).reason, "");
    until_ended(&runners, id).await;
    until_hot(&runners, 1).await;
    assert_eq!(host.vms.all().len(), 2, "another hot VM replaced it");
}

#[tokio::test]
async fn a_hot_vm_of_another_size_is_evicted() {
    let host = host(1, "7x3GiB=1");
    let runners = host.agent().await;
    until_hot(&runners, 1).await;
    let other = host.vms.only();
    let id = RunnerId::random();
    assert_eq!(runners.apply(command("1", create(id, ""))).reason, "");
    let runner = until(&runners, id, |r| r.state() == RunnerState::SshReady).await;
    assert_eq!(runner.start_path(), StartPath::Cold);
    assert!(other.has_ended(), "never two VMs in one slot");
    assert_eq!(host.entries(), [format!("{id}.bundle")]);
}

#[tokio::test]
async fn a_vm_that_died_is_not_claimed_and_another_is_started() {
    let host = host(1, "all");
    let runners = host.agent().await;
    until_hot(&runners, 1).await;
    host.vms.only().end(VmEndKind::GuestPanic, "its kernel panicked");
    let id = RunnerId::random();
    assert_eq!(runners.apply(command("1", create(id, ""))).reason, "");
    until(&runners, id, |r| r.state() == RunnerState::SshReady).await;
    let all = host.vms.all();
    assert_eq!(all.iter().filter(|vm| !vm.has_ended()).count(), 1, "the runner's");
}

#[tokio::test]
async fn a_guest_that_no_longer_answers_is_not_claimed() {
    let host = host(2, "1");
    let runners = host.agent().await;
    until_hot(&runners, 1).await;
    let unresponsive = host.vms.only();
    unresponsive.set_unresponsive(true);
    let id = RunnerId::random();
    assert_eq!(runners.apply(command("1", create(id, ""))).reason, "");
    until(&runners, id, |r| r.state() == RunnerState::SshReady).await;
    assert_eq!(unresponsive.scripts(), [], "no runner uses it");
    until_hot(&runners, 1).await;
    assert!(unresponsive.has_ended());
}

#[tokio::test]
async fn the_next_agent_adopts_hot_vms_that_were_ready() {
    let host = host(1, "all");
    let agent = host.killable_agent();
    until_hot(&agent.runners, 1).await;
    let before = metadata(&host);
    agent.kill();
    let (runners, summary) = host.agent_and_summary().await;
    until_hot(&runners, 1).await;
    assert_eq!((summary.adopted, metadata(&host).runner_id), (1, before.runner_id));
    assert_eq!(host.vms.all().len(), 1, "no other VM was started");
}

#[tokio::test]
async fn the_next_agent_removes_hot_vms_that_were_not_ready_or_are_not_wanted() {
    let mut host = host(1, "all");
    host.vms.boots.send_replace(false);
    let agent = host.killable_agent();
    let mut pool = agent.runners.agent().pool.watch();
    while host.vms.all().is_empty() {
        // The pool reports only the start of the launch; the VM exists right afterwards.
        drop(timeout(std::time::Duration::from_millis(5), pool.changed()).await);
    }
    agent.kill();
    host.hot = HotPlan::none();
    let runners = host.agent().await;
    let free = async {
        while runners.agent().slots.free() != [0] {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    timeout(TIMEOUT, free).await.expect("its slot is free");
    assert_eq!(host.entries(), [""; 0], "it was removed before its slot was freed");
    assert!(host.vms.only().has_ended());
}

#[tokio::test]
async fn the_next_agent_completes_a_claim_that_was_interrupted_before_the_rename() {
    let host = host(1, "all");
    let agent = host.killable_agent();
    until_hot(&agent.runners, 1).await;
    agent.kill();
    let hot = metadata(&host);
    let id = RunnerId::random();
    let bundle = host.runners_path().join(format!("{}.bundle", hot.runner_id));
    std::fs::write(bundle.join("setup-script"), "its script").unwrap();
    let claimed = RuntimeMetadata {
        runner_id: id.to_string(),
        runner_name: "claimed".into(),
        phase: Phase::Ready,
        ..hot
    };
    std::fs::write(bundle.join(file::METADATA), serde_json::to_vec(&claimed).unwrap()).unwrap();
    let runners = host.agent().await;
    until(&runners, id, |r| r.state() == RunnerState::SshReady).await;
    assert_eq!(host.entries(), [format!("{id}.bundle")]);
    let vm = host.vms.only();
    vm.until_set_up().await;
    assert_eq!(vm.scripts(), [(id.to_string(), "its script".into())]);
}

#[tokio::test]
async fn a_hot_vm_that_was_being_prepared_again_is_removed_by_the_next_agent() {
    let host = host(1, "all");
    let agent = host.killable_agent();
    until_hot(&agent.runners, 1).await;
    agent.kill();
    // As while the state that it saved on the way is restored.
    let preheating = RuntimeMetadata { phase: Phase::Preheating, ..metadata(&host) };
    let bundle = host.runners_path().join(format!("{}.bundle", preheating.runner_id));
    std::fs::write(bundle.join(file::METADATA), serde_json::to_vec(&preheating).unwrap()).unwrap();
    let (runners, summary) = host.agent_and_summary().await;
    assert_eq!(summary.adopted, 1, "its process is not killed: it is stopped in order");
    until_hot(&runners, 1).await;
    assert_ne!(metadata(&host).runner_id, preheating.runner_id);
}
