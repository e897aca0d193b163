//! One runner's life, owned by one task.
//!
//! ```text
//! Provisioning ─────────▶ Ready ──────────▶ Following ─────────▶ TearingDown ─▶ removed
//!  hot VM, saved state    setup script      the setup script     VM, bundle, slot
//!  or boot; or adopted    is handed over    and the job
//! ```
//! | what happens | when | then |
//! |---|---|---|
//! | DeleteRunner | in any phase; overtakes all else | torn down: DELETED |
//! | the VM ends | once there is one | torn down: VM_DIED, or DELETED when the operator ended it |
//! | start deadline | until SSH answers | torn down: FAILED, with stage, time and the console's last lines |
//! | maximum lifetime | in any phase | torn down: EXPIRED |
//! | the guest does not respond for too long | after hand-over | torn down: UNRESPONSIVE |
//! | the script fails, the runner finishes | after hand-over | torn down: FAILED, FINISHED |
//! | this task panics | in any phase | torn down: FAILED, as a fault of the agent; in the teardown: the agent ends |
//! | this agent dies | in any phase | the next one adopts the VM, or removes a bundle without one |
//! | the adopted VM process does not answer | after that | asked again for three minutes, then torn down: VM_DIED |

mod end;
mod follow;
mod job;
mod report;
mod responsiveness;
mod start;

use std::{sync::Arc, time::Duration};

use shoes_vz_model::{
    bundle::{self, DiskState, RuntimeMetadata},
    id::{RunnerId, RunnerName},
    state::Stage,
};
use shoes_vz_proto::agent as wire;
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use self::{end::RunnerEnd, report::Report};
use crate::{
    agent::Agent,
    bundles::{Bundle, Script},
    host::VmSize,
    provision::{Journal, ReadyVm, VmResources},
    slots::Admission,
    tasks::catch_panic,
};

/// Stands for "no limit" where a moment is needed.
const AGES: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What the server asks for.
#[derive(Debug, Clone)]
pub(crate) struct RunnerRequest {
    pub(crate) id: RunnerId,
    pub(crate) name: RunnerName,
    /// The server's ID, passed back to it.
    pub(crate) cloud_id: String,
    pub(crate) script: Script,
    pub(crate) size: VmSize,
    /// In place of the agent's.
    pub(crate) max_lifetime: Option<Duration>,
    /// In place of the agent's.
    pub(crate) start_deadline: Option<Duration>,
}

/// A runner's task. Dropping this does nothing to the runner.
#[derive(Debug)]
pub(crate) struct Handle {
    delete: CancellationToken,
    task: JoinHandle<()>,
}

impl Handle {
    /// Ends the runner in whatever phase it is.
    pub(crate) fn delete(&self) {
        self.delete.cancel();
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.task.is_finished()
    }
}

/// What each phase owns.
enum Phase {
    Provisioning(Provisioning),
    Ready(ReadyVm, Script),
    Following(ReadyVm),
    /// With what is to be undone, if there is anything.
    TearingDown(Option<VmResources>, RunnerEnd),
}

/// From where a runner gets its VM.
enum Provisioning {
    New(RunnerRequest),
    /// A former agent began it; this phase on disk.
    Adopted(VmResources, bundle::Phase),
}

/// What an agent that starts knows of a bundle's VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// It runs, or its VM process does not answer yet.
    Live,
    Ended,
}

/// A runner in all its phases.
struct Runner {
    agent: Arc<Agent>,
    report: Report,
    admission: Admission,
    delete: CancellationToken,
    max_lifetime: Option<Duration>,
    expires: Instant,
}

/// Begins a runner.
pub(crate) fn begin(agent: Arc<Agent>, request: RunnerRequest, admission: Admission) -> Handle {
    let host = &agent.host;
    let bundle = Bundle::of(&host.runners_path, request.id);
    let lifetime = request.max_lifetime.or(agent.limits.max_lifetime);
    let meta = RuntimeMetadata {
        runner_name: request.name.to_string(),
        cloud_id: request.cloud_id.clone(),
        template_path: host.template.path.to_string_lossy().into_owned(),
        max_lifetime_seconds: lifetime.map_or(0, |d| d.as_secs().max(1)),
        cpus: request.size.cpus,
        memory_bytes: request.size.memory_bytes,
        disk_bytes: request.size.disk_bytes,
        ..RuntimeMetadata::begun(request.id, DiskState::Creating, host.ambient.now())
    };
    // Without hot VMs there is none to claim.
    let stage = if agent.pool.is_empty() { Stage::Clone } else { Stage::Claim };
    let journal = Journal::begin(host.ambient.clone(), bundle, meta, stage);
    Runner::spawn(agent, journal, None, admission, Phase::Provisioning(Provisioning::New(request)))
}

/// Continues with a runner that a former agent began: its end, if that was decided, else its life.
pub(crate) fn resume(
    agent: Arc<Agent>,
    meta: RuntimeMetadata,
    found: Found,
    vm: VmResources,
    admission: Admission,
) -> Handle {
    let kept = agent.ends.get(vm.bundle.runner);
    let phase = meta.phase;
    let journal = Journal::resume(agent.host.ambient.clone(), vm.bundle.clone(), meta);
    let next = match (kept.as_ref().and_then(|runner| runner.end.as_ref()), found) {
        (Some(end), _) => Phase::TearingDown(Some(vm), RunnerEnd::new(end.kind(), &*end.reason)),
        (None, Found::Ended) => {
            let end = RunnerEnd::found_dead(&vm.bundle, journal.timeline.stage());
            Phase::TearingDown(Some(vm), end)
        }
        (None, Found::Live) => Phase::Provisioning(Provisioning::Adopted(vm, phase)),
    };
    Runner::spawn(agent, journal, kept, admission, next)
}

impl Runner {
    fn spawn(
        agent: Arc<Agent>,
        journal: Journal,
        kept: Option<wire::Runner>,
        admission: Admission,
        phase: Phase,
    ) -> Handle {
        let (id, name) = (journal.bundle.runner, journal.meta.runner_name.clone());
        let span = tracing::info_span!("runner", runner_id = %id, runner_name = name);
        let delete = CancellationToken::new();
        let tasks = agent.host.tasks.clone();
        // Only the VM process of an adopted VM knows when its lifetime ends, by a clock that is never set. The limit that is
        // counted from here on is later, and ends a VM whose process fails to.
        let max_lifetime = match journal.meta.max_lifetime_seconds {
            0 => None,
            seconds => Some(Duration::from_secs(seconds)),
        };
        let mut report = Report::new(agent.clone(), journal);
        if let Some(kept) = kept {
            report.resume_end(kept);
        }
        let runner = Self {
            report,
            agent,
            admission,
            delete: delete.clone(),
            max_lifetime,
            expires: Instant::now() + max_lifetime.unwrap_or(AGES).min(AGES),
        };
        let task = tasks.spawn("a runner's task", runner.live(phase).instrument(span));
        Handle { delete, task }
    }

    async fn live(mut self, mut phase: Phase) {
        let fault = |panic: String| RunnerEnd::fault_of_the_agent(&panic);
        loop {
            phase = match phase {
                Phase::Provisioning(from) => catch_panic(self.provision(from))
                    .await
                    .unwrap_or_else(|panic| Phase::TearingDown(None, fault(panic))),
                Phase::Ready(vm, script) => {
                    match catch_panic(self.hand_over(&vm, &script)).await.unwrap_or_else(|p| Err(fault(p))) {
                        Ok(()) => Phase::Following(vm),
                        Err(end) => Phase::TearingDown(Some(vm.resources), end),
                    }
                }
                Phase::Following(vm) => {
                    let end = catch_panic(self.follow(&vm)).await.unwrap_or_else(fault);
                    Phase::TearingDown(Some(vm.resources), end)
                }
                Phase::TearingDown(resources, end) => return self.tear_down(resources, &end).await,
            }
        }
    }

    /// Waits for what ends a runner from outside.
    fn interruption(&self) -> impl Future<Output = RunnerEnd> + use<> {
        let (delete, expires, max_lifetime) = (self.delete.clone(), self.expires, self.max_lifetime);
        async move {
            tokio::select! {
                biased;
                // Overtakes everything: the server waits for it.
                () = delete.cancelled() => RunnerEnd::deleted(),
                // Before the VM's own limit, which strikes at the same moment.
                () = sleep_until(expires) => RunnerEnd::expired(max_lifetime.unwrap_or(AGES)),
            }
        }
    }

    /// VM ended, bundle removed, slot free, in this order, and each before the next. A slot whose VM cannot be ended, or
    /// whose bundle cannot be removed, stays taken, and that is tried again until it works.
    async fn tear_down(mut self, resources: Option<VmResources>, end: &RunnerEnd) {
        if !self.report.has_ended() {
            self.report.decide(end);
        }
        if let Some(resources) = resources {
            resources.remove().await;
        }
        // Free before the end is published, so that its reader finds a slot.
        drop(self.admission);
        self.report.removed();
    }
}
