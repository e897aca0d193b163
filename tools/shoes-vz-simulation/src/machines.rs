//! A simulated host, in the place of [`shoes_vz_agent::vms::LocalVms`]: bundles are real directories, their VMs
//! are [`SimVm`]s, and everything takes its time, fails at times, and may be where the agent dies.

use std::{
    io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use shoes_vz_agent::{
    bundles::{Bundle, Script},
    guest::{Contact, Guest, GuestError, GuestFollower, Route},
    orphans::{AdoptedVms, OrphansEnded},
    slots::Slots,
    ssh::{Ssh, SshError},
    vms::{BundleContents, VmProcess, Vms},
};
use shoes_vz_model::{
    bundle::file,
    guest::{Personalization, Status},
    id::RunnerId,
};
use shoes_vz_proto::vm::{VmEnd, VmEndKind, VmStatus};
use shoes_vz_vm::{
    client::{Stop, VmError},
    clone::CloneError,
};
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};

use crate::{
    mutation::Mutation,
    plan,
    vm::{RunnerRef, SimVm},
    world::World,
};

/// One host, seen by its agent.
#[derive(Clone)]
pub(crate) struct SimHost {
    world: Arc<World>,
    agent: usize,
    name: String,
    slots: Slots,
}

impl SimHost {
    pub(crate) fn new(world: Arc<World>, agent: usize, slots: Slots) -> Self {
        Self { world, agent, name: plan::agent(agent), slots }
    }

    /// Takes the slot of a VM that is gone, for good.
    async fn keep_a_slot(self) {
        loop {
            if let Some(ticket) = self.slots.take(|_| true) {
                return std::mem::forget(ticket);
            }
            sleep(Duration::from_millis(1)).await;
        }
    }

    async fn takes(&self, from: u64, to: u64) {
        let slow = self.world.rates().slowness;
        sleep(self.world.millis(from, to * slow)).await;
        self.world.step(&self.name).await;
    }

    fn handle(&self, vm: Arc<SimVm>) -> Arc<dyn VmProcess> {
        Arc::new(SimVmProcess { host: self.clone(), vm, silent_stops: AtomicU32::new(0) })
    }
}

fn broken(path: &Path, what: &'static str) -> CloneError {
    CloneError::Io { what, path: path.to_owned(), source: io::Error::other("as the simulation has it") }
}

#[async_trait]
impl Vms for SimHost {
    async fn create(&self, contents: BundleContents) -> Result<(), CloneError> {
        self.world.step(&self.name).await;
        let path = contents.bundle.path.clone();
        if path.exists() {
            self.world.violated(format!("a bundle is created twice: {path:?}"));
        }
        contents.prepare()?;
        self.world.bundle_made(&path, RunnerRef::of(contents.meta));
        self.takes(0, 20).await;
        if self.world.one_in(self.world.rates().clone) {
            return Err(broken(&path, "cloning into"));
        }
        self.world.step(&self.name).await;
        Ok(())
    }

    async fn launch(&self, bundle: &Path) -> Result<Arc<dyn VmProcess>, VmError> {
        self.takes(0, 30).await;
        let words = |words: &str| VmError::NotReady { bundle: bundle.to_owned(), reason: words.into() };
        if self.world.one_in(self.world.rates().launch) {
            return Err(words("as the simulation has it"));
        }
        let Some(named) = self.world.bundle(bundle).filter(|_| bundle.exists()) else {
            return Err(words("there is no bundle"));
        };
        let lifetime = match named.is_hot() {
            true => plan::MAX_LIFETIME + plan::HOT_MAX_AGE,
            false => plan::MAX_LIFETIME,
        };
        let vm = SimVm::new(self.agent, bundle.to_owned(), named);
        self.world.launched(&vm);
        let aging = Arc::clone(&vm);
        self.world.spawn(async move {
            let ended = within(lifetime, aging.ended()).await;
            if ended.is_none() {
                aging.end(VmEndKind::MaxLifetime, "its time is up");
            }
        });
        self.takes(0, 10).await;
        Ok(self.handle(vm))
    }

    async fn find(&self, bundle: &Path) -> Result<Option<Arc<dyn VmProcess>>, VmError> {
        self.takes(0, 5).await;
        let vm = self.world.vm(bundle);
        if vm.is_some() && self.world.one_in(self.world.rates().find) {
            return Err(VmError::NoAnswer {
                socket: bundle.join("vm.sock"),
                reason: "as the simulation has it".into(),
            });
        }
        if self.world.has_mutation(Mutation::LiveVmsAreNotFound) {
            return Ok(None);
        }
        Ok(vm.map(|vm| self.handle(vm)))
    }

    async fn guest(&self, vm: &dyn VmProcess, _: Contact) -> Result<Arc<dyn Guest>, GuestError> {
        let mut status = vm.status();
        if status.wait_for(|s| s.guest_up || s.end.is_some()).await.is_err() {
            return Err(GuestError::Refused("the VM has no status any more".into()));
        }
        let socket = vm.guest_socket();
        match self.world.vm(socket.parent().unwrap_or(Path::new("/"))) {
            Some(vm) => Ok(Arc::new(SimGuest { host: self.clone(), vm })),
            None => Err(GuestError::Unavailable("the VM has ended".into())),
        }
    }

    fn guest_again(&self, vm: &dyn VmProcess, _: &Route, _: Ssh) -> Option<Arc<dyn Guest>> {
        let vm = self.world.vm(vm.guest_socket().parent()?)?;
        Some(Arc::new(SimGuest { host: self.clone(), vm }))
    }

    async fn kill(&self, _: &Path, bundle: &Path) {
        self.world.step(&self.name).await;
        if let Some(vm) = self.world.vm(bundle) {
            self.world.stopped(&vm);
            vm.end(VmEndKind::HypervisorKilled, "killed");
        }
    }

    async fn end_orphans(&self, _: &Path, adopted: AdoptedVms) -> OrphansEnded {
        self.world.step(&self.name).await;
        let orphans = self.world.live().into_iter().filter(|vm| vm.agent == self.agent);
        let mut ended = OrphansEnded::default();
        for vm in orphans.filter(|vm| !adopted.contains_key(&vm.bundle())) {
            self.world.stopped(&vm);
            vm.end(VmEndKind::HypervisorKilled, "an orphan is ended");
            ended.ended += 1;
        }
        ended
    }

    async fn rename(&self, _: Option<&dyn VmProcess>, from: &Bundle, to: &Bundle) -> Result<(), CloneError> {
        self.world.step(&self.name).await;
        let fail = |source| CloneError::Io { what: "renaming the bundle", path: from.path.clone(), source };
        let meta = from.metadata().map_err(fail)?.ok_or_else(|| fail(io::ErrorKind::NotFound.into()))?;
        std::fs::rename(&from.path, &to.path).map_err(fail)?;
        self.world.renamed(&from.path, &to.path, RunnerRef::of(meta));
        self.world.step(&self.name).await;
        Ok(())
    }

    async fn remove(&self, bundle: &Path) -> Result<(), CloneError> {
        self.takes(0, 10).await;
        if self.world.one_in(self.world.rates().remove) {
            return Err(broken(bundle, "removing the bundle"));
        }
        if self.world.has_mutation(Mutation::BundlesStay) {
            return Ok(());
        }
        let written = std::fs::read(bundle.join(file::METADATA)).ok();
        if let Some(meta) = written.and_then(|text| serde_json::from_slice(&text).ok()) {
            self.world.removed(&meta);
        }
        if let Some(vm) = self.world.vm(bundle) {
            self.world.violated(format!("the bundle of {} is removed under its live VM", vm.runner().name));
        }
        match std::fs::remove_dir_all(bundle) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(CloneError::Io { what: "removing the bundle", path: bundle.to_owned(), source })
            }
            _ => {
                if self.world.has_mutation(Mutation::SlotsAreNotGivenBack) {
                    tokio::spawn(self.clone().keep_a_slot());
                }
                self.world.step(&self.name).await;
                Ok(())
            }
        }
    }
}

struct SimVmProcess {
    host: SimHost,
    vm: Arc<SimVm>,
    silent_stops: AtomicU32,
}

#[async_trait]
impl VmProcess for SimVmProcess {
    fn status(&self) -> watch::Receiver<VmStatus> {
        self.vm.status()
    }

    async fn start(&self) -> Result<(), VmError> {
        self.host.world.step(&self.host.name).await;
        self.vm.start(&self.host.world);
        let mut status = self.vm.status();
        let shown = status.wait_for(|s| s.started_ms > 0 || s.end.is_some()).await;
        let end = shown.ok().filter(|s| s.started_ms == 0).and_then(|s| s.end.clone());
        self.host.world.step(&self.host.name).await;
        match end {
            Some(end) => Err(VmError::Refused { what: "start the VM", reason: end.reason }),
            None => Ok(()),
        }
    }

    async fn stop(&self, _: Stop) -> Result<(), VmError> {
        let world = &self.host.world;
        world.step(&self.host.name).await;
        if !self.vm.is_live() {
            return Ok(());
        }
        // As a process that hangs in the kernel: a few tries see nothing of it.
        if world.one_in(world.rates().stop) && self.silent_stops.fetch_add(1, Ordering::Relaxed) < 3 {
            sleep(Duration::from_secs(2)).await;
            return Err(VmError::NoAnswer {
                socket: self.vm.bundle().join("vm.sock"),
                reason: "it hangs".into(),
            });
        }
        world.stopped(&self.vm);
        if world.has_mutation(Mutation::StopsAreIgnored) {
            return Ok(());
        }
        let (vm, takes) = (Arc::clone(&self.vm), world.millis(0, 50));
        world.spawn(async move {
            sleep(takes).await;
            vm.end(VmEndKind::Requested, "ended as asked");
        });
        self.vm.ended().await;
        world.step(&self.host.name).await;
        Ok(())
    }

    async fn ended(&self) -> VmEnd {
        self.vm.ended().await
    }

    async fn pause(&self) -> Result<(), VmError> {
        self.host.takes(0, 10).await;
        self.vm.pause(true);
        Ok(())
    }

    async fn resume(&self) -> Result<(), VmError> {
        self.host.takes(0, 10).await;
        self.vm.pause(false);
        Ok(())
    }

    async fn save(&self, _: &Path) -> Result<(), VmError> {
        Err(VmError::Refused { what: "save the VM", reason: "states are not simulated".into() })
    }

    /// The world knows.
    fn moved(&self, _: &Path) {}

    /// It is never dialled: it only identifies the guest.
    fn guest_socket(&self) -> PathBuf {
        self.vm.bundle().join("guest.sock")
    }
}

struct SimGuest {
    host: SimHost,
    vm: Arc<SimVm>,
}

#[async_trait]
impl Guest for SimGuest {
    fn address(&self) -> Option<IpAddr> {
        None
    }

    async fn try_ssh(&self) -> Result<(), SshError> {
        self.host.takes(1, 20).await;
        if !self.vm.is_live() || self.host.world.one_in(self.host.world.rates().ssh) {
            return Err(SshError::Connect("as the simulation has it".into()));
        }
        self.host.world.ready(&self.vm);
        Ok(())
    }

    async fn hand_over(&self, runner: RunnerId, script: &Script) -> Result<(), GuestError> {
        self.host.takes(0, 10).await;
        let world = &self.host.world;
        let named = &self.vm.runner();
        let text = String::from_utf8_lossy(script.secret()).into_owned();
        if runner.to_string() != named.id || text != crate::client::script(&named.name) {
            world.violated(format!("the VM of {} is given the script of another runner", named.name));
        }
        if !self.vm.is_live() {
            return Err(GuestError::Unavailable("the VM is over".into()));
        }
        self.vm.set_up(&named.id, &text);
        // Taken, and the answer is lost.
        if world.one_in(world.rates().hand_over) {
            return Err(GuestError::Unavailable("as the simulation has it".into()));
        }
        world.step(&self.host.name).await;
        Ok(())
    }

    async fn personalize(&self, _: &Personalization) -> Result<(), GuestError> {
        self.host.takes(0, 5).await;
        match self.vm.is_live() && !self.vm.is_paused() {
            true => Ok(()),
            false => Err(GuestError::Unavailable("the VM does not run".into())),
        }
    }

    async fn prepare_save(&self) -> Result<(), GuestError> {
        Ok(())
    }

    async fn query_status(&self) -> Result<Option<Status>, GuestError> {
        self.host.takes(0, 5).await;
        if self.vm.is_paused() {
            std::future::pending::<()>().await;
        }
        if !self.vm.is_live() {
            return Err(GuestError::Unavailable("the VM is over".into()));
        }
        Ok(Some(self.vm.guest().borrow().clone()))
    }

    fn follow(&self, _: RunnerId, _: &Path) -> GuestFollower {
        let (sender, status) = watch::channel::<Option<Status>>(None);
        let mut guest = self.vm.guest();
        let mut follow = tokio::task::JoinSet::new();
        follow.spawn(async move {
            loop {
                let present = guest.borrow_and_update().clone();
                sender.send_replace(Some(present));
                if guest.changed().await.is_err() {
                    return;
                }
            }
        });
        let (_, logged) = watch::channel(u64::MAX);
        GuestFollower::new(status, logged, None, follow)
    }
}

/// A wait that may be long, with an end.
pub(crate) async fn within<T>(limit: Duration, what: impl Future<Output = T>) -> Option<T> {
    timeout(limit, what).await.ok()
}
