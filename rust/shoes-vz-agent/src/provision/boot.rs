//! The steps from an empty slot to SSH.

use std::{sync::Arc, time::Duration};

use shoes_vz_model::{
    state::{Stage, StartPath, State},
    template::Transport,
};
use shoes_vz_process::backoff::Backoff;
use shoes_vz_proto::vm::VmState;
use shoes_vz_vm::spec::{StateUse, VmSpec};
use tokio::time::{sleep, timeout};

use super::{
    Bounds, ReadyVm, Unfinished,
    error::ProvisionError,
    identity::{self, GuestIdentity},
    journal::Observer,
    resources::{EmptySlot, FIRST_PAUSE, LONGEST_PAUSE, Launched, VmResources},
};
use crate::{
    bundles::Script,
    guest::{Contact, Guest},
    host::VmSize,
    ip_notices::IpClaim,
    ssh::Ssh,
    tasks::catch_panic,
    vms::{BundleContents, VmProcess},
};

/// Until a VM that failed to start has reported how it ended.
const END_REPORT_DEADLINE: Duration = Duration::from_secs(2);

/// What a VM is created for.
pub(crate) struct VmRequest {
    pub(crate) size: VmSize,
    /// Kept in its bundle until the guest has it; `None` for a hot VM.
    pub(crate) script: Option<Script>,
    /// When its VM process ends it.
    pub(crate) lives_until: Option<jiff::Timestamp>,
}

/// A VM whose guest answers.
pub(super) struct Up {
    pub(super) resources: VmResources,
    pub(super) vm: Arc<dyn VmProcess>,
    pub(super) guest: Arc<dyn Guest>,
    pub(super) ssh: Ssh,
}

impl EmptySlot {
    /// Boots the guest; `state` says whether that is done to save its state.
    pub(crate) async fn boot(
        self,
        request: &VmRequest,
        state: StateUse,
        bounds: &Bounds,
        observer: &mut dyn Observer,
    ) -> Result<ReadyVm, Unfinished> {
        observer.enter_stage(Stage::Clone);
        self.launch(request, state, bounds, observer).await?.reach_ssh(bounds, observer).await
    }

    /// Creates the bundle and starts the VM process.
    pub(super) async fn launch(
        self,
        request: &VmRequest,
        state: StateUse,
        bounds: &Bounds,
        observer: &mut dyn Observer,
    ) -> Result<Launched, Unfinished> {
        let mut resources = self.occupy();
        let (host, bundle) = (resources.host.clone(), resources.bundle.path.clone());
        let spec = host.spec(resources.slot, request.size);
        let restored = matches!(state, StateUse::Restore(_));
        let contents = BundleContents {
            bundle: resources.bundle.clone(),
            meta: observer.journal().meta.clone(),
            script: request.script.clone(),
            template: host.template.clone(),
            spec: VmSpec { max_lifetime: request.lives_until, state, ..spec },
        };
        let launch = async {
            let vms = host.vms.clone();
            let create = async move { vms.create(contents).await };
            let created = resources.uninterrupted(bounds, create, |_| None).await?;
            created.map_err(ProvisionError::Create)?;
            observer.enter(State::Booting, Stage::Start);
            let launch = async move { host.vms.launch(&bundle).await };
            let launched = resources.uninterrupted(bounds, launch, Result::ok).await?;
            launched.map_err(ProvisionError::Launch)
        };
        match launch.await {
            Ok(vm) => Ok(Launched { restored, ..resources.launched(vm) }),
            Err(error) => Err(resources.unfinished(error)),
        }
    }
}

impl Launched {
    /// Whatever the guest does now: starts it if it does not run yet, personalizes it if it was restored, and waits for SSH.
    pub(crate) async fn reach_ssh(
        self,
        bounds: &Bounds,
        observer: &mut dyn Observer,
    ) -> Result<ReadyVm, Unfinished> {
        let begun = self.restored;
        let mut up = self.reach_guest(bounds, observer).await?;
        // An agent may have died between a restore and the personalization; only the VM process knows then.
        let restored = begun || up.vm.status().borrow().restored;
        if restored {
            up = up.personalize(bounds, observer).await?;
        }
        let ready = up.log_in(bounds, observer).await?;
        let start_path = if restored { StartPath::Restored } else { StartPath::Cold };
        observer.journal().meta.start_path = Some(start_path);
        Ok(ready)
    }

    /// Starts the guest if it does not run yet, and waits until it is up.
    pub(super) async fn reach_guest(
        self,
        bounds: &Bounds,
        observer: &mut dyn Observer,
    ) -> Result<Up, Unfinished> {
        let Self { mut resources, vm, .. } = self;
        let ssh = identity::ssh_of(&resources.host.login, &resources.bundle.path);
        let reach = async {
            let claim = bounds.run(&*vm, Stage::Start, start(&resources, &*vm)).await?;
            observer.enter(State::Booting, Stage::Guest);
            find_guest(&mut resources, &*vm, &ssh, claim, bounds, observer).await
        };
        match reach.await {
            Ok(guest) => Ok(Up { resources, vm, guest, ssh }),
            Err(error) => Err(resources.unfinished(error)),
        }
    }

    /// A guest that was ready when a former agent followed it. If it is not any more, following it shows that.
    pub(crate) async fn find_guest_again(
        self,
        bounds: &Bounds,
        observer: &mut dyn Observer,
    ) -> Result<ReadyVm, Unfinished> {
        let Self { mut resources, vm, .. } = self;
        let ssh = identity::ssh_of(&resources.host.login, &resources.bundle.path);
        let find = async {
            let host = resources.host.clone();
            let again = catch_panic(async { host.vms.guest_again(&*vm, &host.route(), ssh.clone()) }).await;
            match again.map_err(ProvisionError::Panicked)? {
                Some(guest) => Ok(guest),
                None => find_guest(&mut resources, &*vm, &ssh, None, bounds, observer).await,
            }
        };
        match find.await {
            Ok(guest) => Ok(ReadyVm { resources, vm, guest, ssh }),
            Err(error) => Err(resources.unfinished(error)),
        }
    }
}

/// Lets the guest run, if it does not yet.
async fn start(resources: &VmResources, vm: &dyn VmProcess) -> Result<Option<IpClaim>, ProvisionError> {
    let state = vm.status().borrow().state();
    if !matches!(state, VmState::Unspecified | VmState::Created) {
        return Ok(None);
    }
    // Of guests that report their address only one starts at a time.
    let claim = match resources.host.route() {
        route if route.transport != Transport::Tcp => None,
        route => match route.notices {
            Some(notices) => Some(notices.claim().await),
            None => None,
        },
    };
    if let Err(error) = vm.start().await {
        // How it ended says more than that it would not start.
        let end = timeout(END_REPORT_DEADLINE, vm.ended()).await;
        return Err(end.map_or(ProvisionError::Start(error), |end| ProvisionError::VmEnded {
            end,
            stage: Stage::Start,
        }));
    }
    Ok(claim)
}

async fn find_guest(
    resources: &mut VmResources,
    vm: &dyn VmProcess,
    ssh: &Ssh,
    claim: Option<IpClaim>,
    bounds: &Bounds,
    observer: &mut dyn Observer,
) -> Result<Arc<dyn Guest>, ProvisionError> {
    let host = resources.host.clone();
    let known = observer.journal().meta.ip_address.parse().ok();
    let stage = observer.journal().timeline.stage();
    let contact = Contact { route: host.route(), ssh: ssh.clone(), known, claim };
    let find = async { host.vms.guest(vm, contact).await.map_err(ProvisionError::Guest) };
    let guest = bounds.run(vm, stage, find).await?;
    if let Some(ip) = guest.address() {
        resources.address = Some(ip);
        observer.address(ip.to_string());
    }
    Ok(guest)
}

impl Up {
    /// Waits until SSH answers.
    pub(super) async fn log_in(
        self,
        bounds: &Bounds,
        observer: &mut dyn Observer,
    ) -> Result<ReadyVm, Unfinished> {
        let Self { resources, vm, guest, ssh } = self;
        observer.enter(State::Booting, Stage::Ssh);
        let mut last_error = String::new();
        let attempts = attempt_ssh(&*guest, &mut last_error);
        match bounds.run(&*vm, Stage::Ssh, attempts).await {
            Ok(()) => Ok(ReadyVm { resources, vm, guest, ssh }),
            Err(error) => Err(resources.unfinished(error.after(last_error))),
        }
    }

    /// Gives the guest an identity that no other clone of its state has. May be done again.
    pub(super) async fn personalize(
        self,
        bounds: &Bounds,
        observer: &mut dyn Observer,
    ) -> Result<Self, Unfinished> {
        let Self { resources, vm, guest, .. } = self;
        observer.enter(State::Booting, Stage::Personalize);
        let personalize = async {
            let host = &resources.host;
            let identity = GuestIdentity::draw(&host.ambient).map_err(ProvisionError::Identity)?;
            identity.keep(&resources.bundle.path).map_err(ProvisionError::Identity)?;
            let mut personalization = identity.personalization.clone();
            personalization.unix_nanos = host.unix_nanos();
            guest.personalize(&personalization).await.map_err(ProvisionError::Personalize)?;
            Ok(identity.ssh(&host.login))
        };
        match bounds.run(&*vm, Stage::Personalize, personalize).await {
            Ok(ssh) => {
                // By the new keys from now on.
                let host = &resources.host;
                let guest = host.vms.guest_again(&*vm, &host.route(), ssh.clone()).unwrap_or(guest);
                Ok(Self { resources, vm, guest, ssh })
            }
            Err(error) => Err(resources.unfinished(error)),
        }
    }
}

async fn attempt_ssh(guest: &dyn Guest, last_error: &mut String) -> Result<(), ProvisionError> {
    let mut pauses = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        match guest.try_ssh().await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_final() => return Err(ProvisionError::Ssh(error)),
            Err(error) => {
                tracing::debug!(reason = %error, "SSH does not answer yet");
                *last_error = error.to_string();
            }
        }
        sleep(pauses.pause()).await;
    }
}
