//! One runner's life, owned by one task.
//!
//! ```text
//! place ─┬▶ a hot VM (claim) ────────────────────────────────┬▶ setup handed over ─▶ runner listens ─▶ gone
//!        └▶ slot ─▶ bundle, VM, guest, SSH (slot_vm.rs) ─────┘     setup ───────────── job ──▶ teardown
//! ```
//! | what happens | when | then |
//! |---|---|---|
//! | DeleteRunner | at any stage; overtakes all else | torn down: DELETED |
//! | the VM ends | once there is one | torn down: VM_DIED, or DELETED when the operator did it |
//! | start deadline | until SSH | torn down: FAILED, with stage, time and the console's tail |
//! | maximum lifetime | at any stage | torn down: EXPIRED |
//! | the guest answers nothing for too long | after hand-over | torn down: UNRESPONSIVE |
//! | the script fails, the runner finishes | after hand-over | torn down: FAILED, FINISHED |
//! | this task panics | at any stage | torn down: FAILED, as a fault of the agent; in its teardown: the agent ends |
//! | this agent dies | at any stage | the next one adopts the VM, or removes a bundle without one |
//! | the VM found does not answer | after that | asked again for a while, then torn down: VM_DIED |
//!
//! Everything that must be undone stands in a field of [`Owner`] before anything is awaited after it, so the teardown
//! finds it however the life was cut short.

mod clock;
mod ending;
mod job;
mod owner;
mod record;
mod silence;
mod teardown;

use std::{fmt, sync::Arc, time::Duration};

use bytes::Bytes;
use shoes_vz_model::{
    bundle::{DiskState, RuntimeMetadata},
    id::RunnerId,
};
use shoes_vz_proto::agent as wire;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::owner::Owner;
pub(crate) use self::{ending::Ending, record::Record};
use crate::{
    bundles::Bundle,
    context::Context,
    hot::Class,
    machines::Machine,
    slot_vm::SlotVm,
    slots::{Place, Ticket},
};

/// A setup script: never printed.
#[derive(Clone)]
pub struct Script(Bytes);

impl Script {
    /// Its bytes.
    pub fn secret(&self) -> &Bytes {
        &self.0
    }
}

impl From<Vec<u8>> for Script {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Script {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Script({} bytes)", self.0.len())
    }
}

/// What the server wants.
#[derive(Debug, Clone)]
pub struct Order {
    /// The runner.
    pub id: RunnerId,
    /// Its name at GitHub.
    pub name: String,
    /// The server's id for it.
    pub cloud_id: String,
    /// What its VM runs first.
    pub script: Script,
    /// 0 = the template's, for each.
    pub cpus: u32,
    #[allow(missing_docs)]
    pub memory_bytes: u64,
    #[allow(missing_docs)]
    pub disk_bytes: u64,
    /// In place of the agent's own.
    pub max_lifetime: Option<Duration>,
    /// In place of the agent's own.
    pub start_deadline: Option<Duration>,
}

/// The hold on a runner's task. Dropping it does nothing to the runner.
#[derive(Debug)]
pub struct Handle {
    delete: CancellationToken,
    task: JoinHandle<()>,
}

impl Handle {
    /// Ends the runner, whatever it does.
    pub fn delete(&self) {
        self.delete.cancel();
    }

    /// Whether it is over.
    pub fn is_over(&self) -> bool {
        self.task.is_finished()
    }
}

/// Begins a runner from nothing.
pub fn begin(ctx: Arc<Context>, order: Order, place: Place) -> Handle {
    let bundle = Bundle::of(&ctx.runners_path, order.id);
    let now = ctx.ambient.now();
    let lifetime = order.max_lifetime.or(ctx.max_lifetime);
    let class = Class::of(&ctx.template, &order);
    let meta = RuntimeMetadata {
        runner_name: order.name.clone(),
        cloud_id: order.cloud_id.clone(),
        template_path: ctx.template.path.to_string_lossy().into_owned(),
        max_lifetime_seconds: lifetime.map_or(0, |d| d.as_secs()),
        cpus: class.cpus,
        memory_bytes: class.memory_bytes,
        disk_bytes: class.disk_bytes,
        ..RuntimeMetadata::begun(order.id, DiskState::Creating, now)
    };
    let record = Record::begin(ctx.clone(), bundle, meta);
    record.publish();
    spawn(Owner::new(ctx, record, place, None), |owner| Box::pin(owner.live(order)))
}

/// A runner's place and slot, of which both were taken when its VM was found.
pub type Taken = (Place, Ticket);

/// Goes on with a runner whose VM a former agent left running.
pub fn adopt(
    ctx: Arc<Context>,
    bundle: Bundle,
    meta: RuntimeMetadata,
    vm: Arc<dyn Machine>,
    taken: Taken,
) -> Handle {
    take_over(ctx, bundle, meta, Some(vm), taken)
}

fn owner(
    ctx: Arc<Context>,
    bundle: Bundle,
    meta: RuntimeMetadata,
    vm: Option<Arc<dyn Machine>>,
    (place, ticket): Taken,
) -> Owner {
    let mut held = SlotVm::new(ctx.clone(), bundle.clone(), ticket);
    held.vm = vm;
    let record = Record::adopt(ctx.clone(), bundle, meta);
    record.publish();
    Owner::new(ctx, record, place, Some(held))
}

fn take_over(
    ctx: Arc<Context>,
    bundle: Bundle,
    meta: RuntimeMetadata,
    vm: Option<Arc<dyn Machine>>,
    taken: Taken,
) -> Handle {
    let decided = ctx.ends.get(&meta.runner_id).and_then(|r| r.end);
    let owner = owner(ctx, bundle, meta, vm, taken);
    match decided {
        Some(end) => {
            let ending = Ending::new(end.kind(), end.reason);
            spawn(owner, |owner| Box::pin(owner.tear_down(ending)))
        }
        None => spawn(owner, |owner| Box::pin(owner.live_on())),
    }
}

/// As [`adopt`], once the VM answers.
pub fn seek(ctx: Arc<Context>, bundle: Bundle, meta: RuntimeMetadata, taken: Taken) -> Handle {
    take_over(ctx, bundle, meta, None, taken)
}

/// Removes a bundle whose VM is over, and reports that runner's end.
pub fn bury(ctx: Arc<Context>, bundle: Bundle, meta: RuntimeMetadata, taken: Taken) -> Handle {
    let kept = ctx.ends.get(&meta.runner_id).and_then(|r| r.end);
    let owner = owner(ctx, bundle, meta, None, taken);
    let ending = match kept {
        Some(end) => Ending::new(end.kind(), end.reason),
        None => owner.found_dead(),
    };
    spawn(owner, |owner| Box::pin(owner.tear_down(ending)))
}

type Life = std::pin::Pin<Box<dyn Future<Output = wire::Runner> + Send>>;

fn spawn(owner: Owner, life: impl FnOnce(Owner) -> Life) -> Handle {
    let span = tracing::info_span!("runner", runner_id = %owner.runner(), runner_name = owner.name());
    let (delete, tasks) = (owner.delete_token(), owner.ctx.tasks.clone());
    let life = life(owner);
    let task = tasks.spawn("a runner's task", async move { drop(life.await) }.instrument(span));
    Handle { delete, task }
}
