//! What an agent has of VMs, behind a seam: a simulation has another host.
//!
//! ```text
//! make ─▶ launch ─▶ start ─▶ guest ─▶ … ─▶ stop ─▶ remove
//!           ▲ find, after a restart of the agent
//! ```

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use async_trait::async_trait;
use shoes_vz_model::bundle::RuntimeMetadata;
use shoes_vz_proto::vm::{VmEnd, VmStatus};
use shoes_vz_vm::{
    client::{Stop, Vm, VmError},
    clone::{self, CloneError},
    spec::VmSpec,
    template::TemplateDir,
};
use tokio::{
    sync::watch,
    task::{JoinError, spawn_blocking},
};

use crate::{
    accounting::{Adopted, Ended},
    bundles::Bundle,
    context::{Context, Launcher},
    guest::{self, Guest, GuestError},
    notify_ip::Turn,
    runner::Script,
    ssh::Ssh,
};

/// Makes VMs, finds them again, and removes what is left of them.
#[async_trait]
pub trait Machines: Send + Sync + 'static {
    /// Makes a bundle with everything in it. Whoever drops this future finds the bundle unmade, half-made or made.
    async fn make(&self, plan: Plan) -> Result<(), CloneError>;
    /// Starts the VM process of a bundle; its VM is not started.
    async fn launch(&self, bundle: &Path) -> Result<Arc<dyn Machine>, VmError>;
    /// The VM process a former agent started; `None` when there is none.
    async fn find(&self, bundle: &Path) -> Result<Option<Arc<dyn Machine>>, VmError>;
    /// Waits until the guest is up. Where it is reached by its address: that is `known`, or the VM was started in its
    /// `turn` to tell it.
    async fn guest(
        &self,
        ctx: &Context,
        machine: &dyn Machine,
        ssh: Ssh,
        known: Option<IpAddr>,
        turn: Option<Turn>,
    ) -> Result<Arc<dyn Guest>, GuestError>;
    /// A guest that was up before this agent was, where nothing has to be waited for to reach it.
    fn guest_again(&self, ctx: &Context, machine: &dyn Machine, ssh: Ssh) -> Option<Arc<dyn Guest>>;
    /// Gives a bundle, whose VM may run, another name; `machine` is told.
    async fn rename(
        &self,
        machine: Option<&dyn Machine>,
        from: &Bundle,
        to: &Bundle,
    ) -> Result<(), CloneError>;
    /// Removes a bundle whose VM is over; one that is not there is fine.
    async fn remove(&self, bundle: &Path) -> Result<(), CloneError>;
    /// Ends every process that runs a VM of a bundle below `runners_path` and is not of one adopted.
    async fn end_strays(&self, runners_path: &Path, adopted: Adopted) -> Ended;
}

/// One VM process. Dropping it does nothing to the VM.
#[async_trait]
pub trait Machine: Send + Sync + 'static {
    /// The present status and each later one. The last has `end` set.
    fn status(&self) -> watch::Receiver<VmStatus>;
    /// Starts the VM; returns when the guest runs and [`Machine::status`] shows it.
    async fn start(&self) -> Result<(), VmError>;
    /// Ends the VM; returns when it is gone. One that is over already is fine.
    async fn stop(&self, how: Stop) -> Result<(), VmError>;
    /// Waits for the VM's end.
    async fn ended(&self) -> VmEnd;
    /// Stops the guest's time.
    async fn pause(&self) -> Result<(), VmError>;
    /// Lets it go on.
    async fn resume(&self) -> Result<(), VmError>;
    /// Writes the paused VM's state to `path`; then it can only be ended.
    async fn save(&self, path: &Path) -> Result<(), VmError>;
    /// Its bundle is called otherwise now.
    fn moved(&self, bundle: &Path);
    /// Where streams to the guest begin.
    fn guest_socket(&self) -> PathBuf;
}

#[async_trait]
impl Machine for Vm {
    fn status(&self) -> watch::Receiver<VmStatus> {
        Self::status(self)
    }

    async fn start(&self) -> Result<(), VmError> {
        Self::start(self).await
    }

    async fn stop(&self, how: Stop) -> Result<(), VmError> {
        Self::stop(self, how).await
    }

    async fn ended(&self) -> VmEnd {
        Self::ended(self).await
    }

    async fn pause(&self) -> Result<(), VmError> {
        Self::pause(self).await
    }

    async fn resume(&self) -> Result<(), VmError> {
        Self::resume(self).await
    }

    async fn save(&self, path: &Path) -> Result<(), VmError> {
        Self::save(self, path).await
    }

    fn moved(&self, bundle: &Path) {
        Self::moved(self, bundle);
    }

    fn guest_socket(&self) -> PathBuf {
        Self::guest_socket(self)
    }
}

/// What a bundle is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where.
    pub bundle: Bundle,
    /// What it says of itself from the beginning.
    pub meta: RuntimeMetadata,
    /// Kept in it until the guest has it; none for a VM that waits for a runner.
    pub script: Option<Script>,
    /// From what.
    pub template: TemplateDir,
    /// Its VM.
    pub spec: VmSpec,
}

impl Plan {
    /// The directory and what is known of the runner: first of all, so that a bundle is known for what it is whenever
    /// its agent dies.
    pub fn prepare(&self) -> Result<(), CloneError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let fail = |what, path: &Path| {
            let path = path.to_owned();
            move |source| CloneError::Io { what, path, source }
        };
        let (bundle, path) = (&self.bundle, &self.bundle.path);
        std::fs::DirBuilder::new().mode(0o700).create(path).map_err(fail("making the bundle", path))?;
        bundle.set_metadata(&self.meta).map_err(fail("writing RuntimeMetadata.json in", path))?;
        match &self.script {
            Some(script) => {
                bundle.keep_script(script.secret()).map_err(fail("keeping the setup script in", path))
            }
            None => Ok(()),
        }
    }
}

/// The VMs of the host this program runs on.
pub struct OnThisHost {
    launcher: Arc<dyn Launcher>,
}

impl OnThisHost {
    /// With VM processes started by `launcher`.
    pub fn new(launcher: Arc<dyn Launcher>) -> Self {
        Self { launcher }
    }
}

#[async_trait]
impl Machines for OnThisHost {
    async fn make(&self, plan: Plan) -> Result<(), CloneError> {
        let make = move || {
            plan.prepare()?;
            clone::make_bundle(&plan.template, &plan.bundle.path, &plan.spec)
        };
        done(spawn_blocking(make).await)
    }

    async fn launch(&self, bundle: &Path) -> Result<Arc<dyn Machine>, VmError> {
        Ok(Arc::new(self.launcher.launch(bundle).await?))
    }

    async fn find(&self, bundle: &Path) -> Result<Option<Arc<dyn Machine>>, VmError> {
        Ok(Vm::adopt(bundle).await?.map(|vm| Arc::new(vm) as Arc<dyn Machine>))
    }

    async fn guest(
        &self,
        ctx: &Context,
        machine: &dyn Machine,
        ssh: Ssh,
        known: Option<IpAddr>,
        turn: Option<Turn>,
    ) -> Result<Arc<dyn Guest>, GuestError> {
        guest::find(ctx, machine, ssh, known, turn).await
    }

    fn guest_again(&self, ctx: &Context, machine: &dyn Machine, ssh: Ssh) -> Option<Arc<dyn Guest>> {
        guest::again(ctx, machine, ssh)
    }

    async fn rename(
        &self,
        machine: Option<&dyn Machine>,
        from: &Bundle,
        to: &Bundle,
    ) -> Result<(), CloneError> {
        std::fs::rename(&from.path, &to.path).map_err(|source| CloneError::Io {
            what: "renaming the bundle",
            path: from.path.clone(),
            source,
        })?;
        if let Some(machine) = machine {
            machine.moved(&to.path);
        }
        Ok(())
    }

    async fn remove(&self, bundle: &Path) -> Result<(), CloneError> {
        let path = bundle.to_owned();
        done(spawn_blocking(move || clone::remove_bundle(&path)).await)
    }

    async fn end_strays(&self, runners_path: &Path, adopted: Adopted) -> Ended {
        let path = runners_path.to_owned();
        done(spawn_blocking(move || Ended::stray(&path, &adopted)).await)
    }
}

/// A panic goes on in whoever waits.
fn done<T>(joined: Result<T, JoinError>) -> T {
    joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
