//! The VMs of a host, behind a seam: a simulation has another host.
//!
//! ```text
//! create ─▶ launch ─▶ start ─▶ guest ─▶ … ─▶ stop ─▶ remove
//!             ▲ find, after a restart of the agent
//! ```

use std::{
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
    bundles::{Bundle, Script},
    guest::{self, Contact, Guest, GuestError, Route},
    orphans::{AdoptedVms, OrphansEnded},
    ssh::Ssh,
};

/// Creates VMs, finds them again, and removes what is left of them.
#[async_trait]
pub trait Vms: Send + Sync + 'static {
    /// Creates a complete bundle. If this future is dropped, the bundle may be missing, incomplete or complete.
    async fn create(&self, contents: BundleContents) -> Result<(), CloneError>;
    /// Starts the VM process of a bundle; its VM is not started.
    async fn launch(&self, bundle: &Path) -> Result<Arc<dyn VmProcess>, VmError>;
    /// The VM process that a former agent started; `None` when there is none.
    async fn find(&self, bundle: &Path) -> Result<Option<Arc<dyn VmProcess>>, VmError>;
    /// Waits until the guest is up.
    async fn guest(&self, vm: &dyn VmProcess, contact: Contact) -> Result<Arc<dyn Guest>, GuestError>;
    /// A guest that was up before this agent was, where nothing has to be waited for to reach it.
    fn guest_again(&self, vm: &dyn VmProcess, route: &Route, ssh: Ssh) -> Option<Arc<dyn Guest>>;
    /// Renames a bundle, whose VM may run; `vm` learns the new name.
    async fn rename(&self, vm: Option<&dyn VmProcess>, from: &Bundle, to: &Bundle) -> Result<(), CloneError>;
    /// Removes a bundle whose VM has ended; one that does not exist is fine.
    async fn remove(&self, bundle: &Path) -> Result<(), CloneError>;
    /// Kills every process that runs the VM of this bundle.
    async fn kill(&self, runners_path: &Path, bundle: &Path);
    /// Ends every process that runs a VM of a bundle below `runners_path`, except those of adopted VMs.
    async fn end_orphans(&self, runners_path: &Path, adopted: AdoptedVms) -> OrphansEnded;
}

/// One VM process. Dropping it does nothing to the VM.
#[async_trait]
pub trait VmProcess: Send + Sync + 'static {
    /// The present status and each later one. The last has `end` set.
    fn status(&self) -> watch::Receiver<VmStatus>;
    /// Starts the VM; returns when the guest runs and [`VmProcess::status`] shows it.
    async fn start(&self) -> Result<(), VmError>;
    /// Ends the VM; returns when it has ended. One that has ended already is fine.
    async fn stop(&self, how: Stop) -> Result<(), VmError>;
    /// Waits for the VM's end.
    async fn ended(&self) -> VmEnd;
    async fn pause(&self) -> Result<(), VmError>;
    async fn resume(&self) -> Result<(), VmError>;
    /// Writes the paused VM's state to `path`; then it can only be ended.
    async fn save(&self, path: &Path) -> Result<(), VmError>;
    /// Its bundle has this path now.
    fn moved(&self, bundle: &Path);
    /// Where streams to the guest begin.
    fn guest_socket(&self) -> PathBuf;
}

/// Starts VM processes. A seam for tests only: theirs answer in the test's process.
#[async_trait]
pub trait Launcher: Send + Sync + 'static {
    async fn launch(&self, bundle: &Path) -> Result<Vm, VmError>;
}

/// The real one: this program as `vm --bundle …`.
#[derive(Debug)]
pub struct ThisProgram(pub PathBuf);

#[async_trait]
impl Launcher for ThisProgram {
    async fn launch(&self, bundle: &Path) -> Result<Vm, VmError> {
        Vm::spawn(&self.0, bundle).await
    }
}

#[async_trait]
impl VmProcess for Vm {
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

/// What a bundle is created from.
#[derive(Debug, Clone)]
pub struct BundleContents {
    pub bundle: Bundle,
    pub meta: RuntimeMetadata,
    /// Kept in the bundle until the guest has it; `None` for a hot VM.
    pub script: Option<Script>,
    pub template: TemplateDir,
    pub spec: VmSpec,
}

impl BundleContents {
    /// Creates the directory with its metadata before anything else, so that the next agent recognizes the bundle
    /// whenever this one dies.
    pub fn prepare(&self) -> Result<(), CloneError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let fail = |what, path: &Path| {
            let path = path.to_owned();
            move |source| CloneError::Io { what, path, source }
        };
        let (bundle, path) = (&self.bundle, &self.bundle.path);
        std::fs::DirBuilder::new().mode(0o700).create(path).map_err(fail("creating the bundle", path))?;
        bundle.set_metadata(&self.meta).map_err(fail("writing RuntimeMetadata.json to", path))?;
        match &self.script {
            Some(script) => bundle.keep_script(script).map_err(fail("writing the setup script to", path)),
            None => Ok(()),
        }
    }
}

/// The VMs of the host that this program runs on.
pub struct LocalVms {
    launcher: Arc<dyn Launcher>,
}

impl LocalVms {
    pub fn new(launcher: Arc<dyn Launcher>) -> Self {
        Self { launcher }
    }
}

#[async_trait]
impl Vms for LocalVms {
    async fn create(&self, contents: BundleContents) -> Result<(), CloneError> {
        let create = move || {
            contents.prepare()?;
            clone::make_bundle(&contents.template, &contents.bundle.path, &contents.spec)
        };
        done(spawn_blocking(create).await)
    }

    async fn launch(&self, bundle: &Path) -> Result<Arc<dyn VmProcess>, VmError> {
        Ok(Arc::new(self.launcher.launch(bundle).await?))
    }

    async fn find(&self, bundle: &Path) -> Result<Option<Arc<dyn VmProcess>>, VmError> {
        Ok(Vm::adopt(bundle).await?.map(|vm| Arc::new(vm) as Arc<dyn VmProcess>))
    }

    async fn guest(&self, vm: &dyn VmProcess, contact: Contact) -> Result<Arc<dyn Guest>, GuestError> {
        guest::find(vm.status(), &vm.guest_socket(), contact).await
    }

    fn guest_again(&self, vm: &dyn VmProcess, route: &Route, ssh: Ssh) -> Option<Arc<dyn Guest>> {
        guest::reconnect(&vm.guest_socket(), route, ssh)
    }

    async fn rename(&self, vm: Option<&dyn VmProcess>, from: &Bundle, to: &Bundle) -> Result<(), CloneError> {
        std::fs::rename(&from.path, &to.path).map_err(|source| CloneError::Io {
            what: "renaming the bundle",
            path: from.path.clone(),
            source,
        })?;
        if let Some(vm) = vm {
            vm.moved(&to.path);
        }
        Ok(())
    }

    async fn remove(&self, bundle: &Path) -> Result<(), CloneError> {
        let path = bundle.to_owned();
        done(spawn_blocking(move || clone::remove_bundle(&path)).await)
    }

    async fn kill(&self, runners_path: &Path, bundle: &Path) {
        let (path, bundle) = (runners_path.to_owned(), bundle.to_owned());
        done(spawn_blocking(move || OrphansEnded::end_one(&path, &bundle)).await);
    }

    async fn end_orphans(&self, runners_path: &Path, adopted: AdoptedVms) -> OrphansEnded {
        let path = runners_path.to_owned();
        done(spawn_blocking(move || OrphansEnded::end(&path, &adopted)).await)
    }
}

/// A panic goes on in the task that waits.
fn done<T>(joined: Result<T, JoinError>) -> T {
    joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}
