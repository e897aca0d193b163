//! Faults of the agent's own: none goes unnoticed, none holds a slot or leaves a VM.

use std::{
    path::Path,
    sync::{Arc, Mutex},
};

use async_trait::async_trait;
use shoes_vz_agent::{
    bundles::Bundle,
    guest::{Contact, Guest, GuestError, Route},
    orphans::{Adopted, Ended},
    ssh::Ssh,
    vms::{BundleContents, LocalVms, VmProcess, Vms},
};
use shoes_vz_model::{guest::RunnerActivity, id::RunnerId};
use shoes_vz_proto::agent::{EndKind, RunnerState};
use shoes_vz_vm::{client::VmError, clone::CloneError};
use tokio::time::timeout;

use crate::host::{Host, PATIENCE, command, create, until, until_gone};

/// Where the seam to the host panics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Make,
    Launch,
    Guest,
    Remove,
}

/// The next call of this kind panics. Clones are of one.
#[derive(Clone, Default)]
pub(crate) struct Panics(Arc<Mutex<Option<At>>>);

impl Panics {
    fn next(&self, at: At) {
        *self.0.lock().unwrap() = Some(at);
    }

    fn pass(&self, at: At) {
        let mut next = self.0.lock().unwrap();
        if *next == Some(at) {
            *next = None;
            drop(next);
            panic!("a test's fault at {at:?}");
        }
    }
}

/// A host whose seam panics on demand.
pub(crate) struct Panicking {
    host: LocalVms,
    panics: Panics,
}

impl Panicking {
    pub(crate) fn new(host: LocalVms, panics: Panics) -> Self {
        Self { host, panics }
    }
}

#[async_trait]
impl Vms for Panicking {
    async fn create(&self, contents: BundleContents) -> Result<(), CloneError> {
        self.panics.pass(At::Make);
        self.host.create(contents).await
    }

    async fn launch(&self, bundle: &Path) -> Result<Arc<dyn VmProcess>, VmError> {
        self.panics.pass(At::Launch);
        self.host.launch(bundle).await
    }

    async fn find(&self, bundle: &Path) -> Result<Option<Arc<dyn VmProcess>>, VmError> {
        self.host.find(bundle).await
    }

    async fn guest(&self, vm: &dyn VmProcess, contact: Contact) -> Result<Arc<dyn Guest>, GuestError> {
        self.panics.pass(At::Guest);
        self.host.guest(vm, contact).await
    }

    fn guest_again(&self, vm: &dyn VmProcess, route: &Route, ssh: Ssh) -> Option<Arc<dyn Guest>> {
        self.panics.pass(At::Guest);
        self.host.guest_again(vm, route, ssh)
    }

    async fn rename(&self, vm: Option<&dyn VmProcess>, from: &Bundle, to: &Bundle) -> Result<(), CloneError> {
        self.host.rename(vm, from, to).await
    }

    async fn remove(&self, bundle: &Path) -> Result<(), CloneError> {
        self.panics.pass(At::Remove);
        self.host.remove(bundle).await
    }

    async fn end_orphans(&self, runners_path: &Path, adopted: Adopted) -> Ended {
        self.host.end_orphans(runners_path, adopted).await
    }
}

#[tokio::test]
async fn a_runners_task_that_panics_ends_its_runner_removes_its_vm_and_frees_its_slot() {
    for at in [At::Make, At::Launch, At::Guest] {
        let mut host = Host::new();
        host.max_runners = 1;
        let runners = host.agent().await;
        host.panics.next(at);
        let id = RunnerId::random();
        assert_eq!(runners.apply(command("first", create(id, "true"))).reason, "");
        let (runner, end) = until_gone(&runners, id).await;
        assert_eq!(end.kind(), EndKind::Failed, "{at:?}: {end:?}");
        assert_eq!(runner.state(), RunnerState::Error, "{at:?}");
        assert!(end.reason.contains("panicked") || end.reason.contains("a test's fault"), "{at:?}: {end:?}");
        assert_eq!(host.entries(), Vec::<String>::new(), "{at:?}");
        assert!(host.vms.all().iter().all(|vm| vm.is_over()), "{at:?}");
        assert_eq!(runners.agent().host.tasks.failure(), None, "the agent goes on");
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
async fn a_panic_of_an_adopted_runners_task_says_whose_fault_it_was() {
    let host = Host::new();
    let first = host.mortal_agent();
    let id = RunnerId::random();
    first.apply(command("c", create(id, "true")));
    until(&first.runners, id, |r| r.state() == RunnerState::SshReady).await;
    host.vms.only().until_set_up().await;
    host.vms.only().runner(RunnerActivity::Running);
    until(&first.runners, id, |r| r.state() == RunnerState::Running).await;
    first.kill();
    host.panics.next(At::Guest);
    let runners = host.agent().await;
    let (_, end) = until_gone(&runners, id).await;
    for part in ["a fault of the agent, not of the job", "a test's fault at Guest"] {
        assert!(end.reason.contains(part), "{part:?} is not in {end:?}");
    }
    assert!(host.vms.only().is_over());
}

#[tokio::test]
async fn a_teardown_that_panics_ends_the_agent_and_the_next_one_finishes_it() {
    let host = Host::new();
    let agent = host.mortal_agent();
    let id = RunnerId::random();
    agent.apply(command("c", create(id, "true")));
    until(&agent.runners, id, |r| r.state() == RunnerState::SshReady).await;
    host.panics.next(At::Remove);
    agent.apply(command("d", id));
    let failed = timeout(PATIENCE, agent.runners.agent().host.tasks.failed()).await.expect("it is noticed");
    assert!(failed.contains("a runner's task panicked: a test's fault at Remove"), "{failed}");
    agent.kill();
    let runners = host.agent().await;
    let (_, end) = until_gone(&runners, id).await;
    assert_eq!(end.kind(), EndKind::Deleted, "{end:?}");
    assert_eq!(host.entries(), Vec::<String>::new());
}
