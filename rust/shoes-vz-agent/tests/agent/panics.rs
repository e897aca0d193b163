//! Bugs of the agent that panic: none is missed, none keeps a slot or leaves a VM.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use shoes_vz_agent::{
    bundles::Bundle,
    guest::{Contact, Guest, GuestError, Route},
    orphans::{AdoptedVms, OrphansEnded},
    ssh::Ssh,
    vms::{BundleContents, LocalVms, VmProcess, Vms},
};
use shoes_vz_model::{guest::RunnerActivity, id::RunnerId};
use shoes_vz_proto::agent::{EndKind, RunnerState};
use shoes_vz_vm::{client::VmError, clone::CloneError};
use tokio::time::timeout;

use crate::host::{Host, TIMEOUT, command, create, until, until_ended};

/// The call that panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Create,
    Launch,
    Guest,
    Remove,
}

/// Makes the next call of one kind panic. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct Panics(Arc<Mutex<Option<At>>>);

impl Panics {
    fn arm(&self, at: At) {
        *self.0.lock().unwrap() = Some(at);
    }

    fn check(&self, at: At) {
        let mut armed = self.0.lock().unwrap();
        if *armed == Some(at) {
            *armed = None;
            drop(armed);
            panic!("a test's fault at {at:?}");
        }
    }
}

/// VMs whose calls panic on demand.
pub(crate) struct PanickingVms {
    vms: LocalVms,
    panics: Panics,
}

impl PanickingVms {
    pub(crate) fn new(vms: LocalVms, panics: Panics) -> Self {
        Self { vms, panics }
    }
}

#[async_trait]
impl Vms for PanickingVms {
    async fn create(&self, contents: BundleContents) -> Result<(), CloneError> {
        self.panics.check(At::Create);
        self.vms.create(contents).await
    }

    async fn launch(&self, bundle: &Path) -> Result<Arc<dyn VmProcess>, VmError> {
        self.panics.check(At::Launch);
        self.vms.launch(bundle).await
    }

    async fn find(&self, bundle: &Path) -> Result<Option<Arc<dyn VmProcess>>, VmError> {
        self.vms.find(bundle).await
    }

    async fn guest(&self, vm: &dyn VmProcess, contact: Contact) -> Result<Arc<dyn Guest>, GuestError> {
        self.panics.check(At::Guest);
        self.vms.guest(vm, contact).await
    }

    fn guest_again(&self, vm: &dyn VmProcess, route: &Route, ssh: Ssh) -> Option<Arc<dyn Guest>> {
        self.panics.check(At::Guest);
        self.vms.guest_again(vm, route, ssh)
    }

    async fn rename(&self, vm: Option<&dyn VmProcess>, from: &Bundle, to: &Bundle) -> Result<(), CloneError> {
        self.vms.rename(vm, from, to).await
    }

    async fn remove(&self, bundle: &Path) -> Result<(), CloneError> {
        self.panics.check(At::Remove);
        self.vms.remove(bundle).await
    }

    async fn kill(&self, runners_path: &Path, bundle: &Path) {
        self.vms.kill(runners_path, bundle).await;
    }

    async fn end_orphans(&self, runners_path: &Path, adopted: AdoptedVms) -> OrphansEnded {
        self.vms.end_orphans(runners_path, adopted).await
    }
}

#[tokio::test]
async fn a_runners_task_that_panics_ends_its_runner_removes_its_vm_and_frees_its_slot() {
    for at in [At::Create, At::Launch, At::Guest] {
        let mut host = Host::new();
        host.max_runners = 1;
        let runners = host.agent().await;
        host.panics.arm(at);
        let id = RunnerId::random();
        assert_eq!(runners.apply(command("first", create(id, "true"))).reason, "");
        let (runner, end) = until_ended(&runners, id).await;
        assert_eq!(end.kind(), EndKind::Failed, "{at:?}: {end:?}");
        assert_eq!(runner.state(), RunnerState::Error, "{at:?}");
        assert!(end.reason.contains("panicked") || end.reason.contains("a test's fault"), "{at:?}: {end:?}");
        assert_eq!(host.entries(), Vec::<String>::new(), "{at:?}");
        assert!(host.vms.all().iter().all(|vm| vm.has_ended()), "{at:?}");
        assert_eq!(runners.agent().host.tasks.failure(), None, "the agent keeps running");
        let next = RunnerId::random();
        assert_eq!(
            runners.apply(command("next", create(next, "true"))).reason,
            "",
            "{at:?}: the slot is free"
        );
        until(&runners, next, |r| r.state() == RunnerState::SshReady).await;
    }
}

#[tokio::test]
async fn a_panic_in_an_adopted_runners_task_is_reported_as_a_fault_of_the_agent() {
    let host = Host::new();
    let first = host.killable_agent();
    let id = RunnerId::random();
    first.apply(command("c", create(id, "true")));
    until(&first.runners, id, |r| r.state() == RunnerState::SshReady).await;
    host.vms.only().until_set_up().await;
    host.vms.only().runner(RunnerActivity::Running);
    until(&first.runners, id, |r| r.state() == RunnerState::Running).await;
    first.kill();
    host.panics.arm(At::Guest);
    let runners = host.agent().await;
    let (_, end) = until_ended(&runners, id).await;
    for part in ["a bug in the agent, not in the job", "a test's fault at Guest"] {
        assert!(end.reason.contains(part), "{part:?} is not in {end:?}");
    }
    assert!(host.vms.only().has_ended());
}

#[tokio::test]
async fn a_teardown_that_panics_ends_the_agent_and_the_next_one_finishes_it() {
    let host = Host::new();
    let agent = host.killable_agent();
    let id = RunnerId::random();
    agent.apply(command("c", create(id, "true")));
    until(&agent.runners, id, |r| r.state() == RunnerState::SshReady).await;
    host.panics.arm(At::Remove);
    agent.apply(command("d", id));
    let failed =
        timeout(TIMEOUT, agent.runners.agent().host.tasks.failed()).await.expect("the panic is noticed");
    assert!(failed.contains("a runner's task panicked: a test's fault at Remove"), "{failed}");
    agent.kill();
    let runners = host.agent().await;
    let (_, end) = until_ended(&runners, id).await;
    assert_eq!(end.kind(), EndKind::Deleted, "{end:?}");
    assert_eq!(host.entries(), Vec::<String>::new());
}
