//! A runner's state in the three places it is kept: here, on the board for the server, in `RuntimeMetadata.json`.

use std::{sync::Arc, time::Duration};

use shoes_vz_model::{
    bundle::{DiskState, RuntimeMetadata},
    guest::{RunnerActivity, Status},
    state::{Stage, StartPath, State},
    text,
};
use shoes_vz_proto::{agent as wire, convert};

use super::{clock::Clock, ending::Ending};
use crate::{bundles::Bundle, context::Context};

/// Of a name a guest tells.
const MAX_NAME: usize = 256;

/// Who is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Audience {
    /// The server, by the board.
    Server,
    /// Nobody: it is no runner.
    Nobody,
}

pub(crate) struct Record {
    ctx: Arc<Context>,
    pub(crate) bundle: Bundle,
    pub(crate) meta: RuntimeMetadata,
    audience: Audience,
    state: State,
    clock: Clock,
    error: String,
    guest: Option<Status>,
    setup: wire::Setup,
    end: Option<wire::RunnerEnd>,
}

impl Record {
    /// Of a runner that begins now.
    pub(super) fn begin(ctx: Arc<Context>, bundle: Bundle, meta: RuntimeMetadata) -> Self {
        // With nothing hot there is nothing to claim.
        let stage = if ctx.pool.is_empty() { Stage::Clone } else { Stage::Claim };
        let clock = Clock::start(ctx.ambient.clone(), stage);
        Self::new(ctx, bundle, meta, State::Creating, clock)
    }

    /// Of a VM that is to wait for a runner.
    pub(crate) fn of_spare(ctx: Arc<Context>, bundle: Bundle, meta: RuntimeMetadata) -> Self {
        let clock = Clock::start(ctx.ambient.clone(), Stage::Clone);
        let record = Self::new(ctx, bundle, meta, State::Creating, clock);
        Self { audience: Audience::Nobody, ..record }
    }

    /// Of a runner a former agent began.
    pub(super) fn adopt(ctx: Arc<Context>, bundle: Bundle, meta: RuntimeMetadata) -> Self {
        let (state, stage) = match (meta.ssh_ready, meta.runner_seen) {
            (_, true) => (State::Running, Stage::Job),
            (true, false) => (State::SshReady, Stage::Setup),
            (false, false) => (State::Booting, Stage::Guest),
        };
        let clock = Clock::resume(ctx.ambient.clone(), meta.stages.clone(), stage, meta.created_at);
        let mut record = Self::new(ctx, bundle, meta, state, clock);
        record.setup.started = record.meta.setup_handed_over;
        record
    }

    fn new(ctx: Arc<Context>, bundle: Bundle, meta: RuntimeMetadata, state: State, clock: Clock) -> Self {
        let setup = wire::Setup::default();
        Self {
            ctx,
            bundle,
            meta,
            audience: Audience::Server,
            state,
            clock,
            error: String::new(),
            guest: None,
            setup,
            end: None,
        }
    }

    /// The runner is now in this state and stage.
    pub(crate) fn enter(&mut self, state: State, stage: Stage) {
        if !self.state.may_become(state) {
            return;
        }
        if self.state != state {
            tracing::info!(state = state.metric_label(), stage = stage.as_str(), "runner");
        }
        self.state = state;
        self.clock.enter(stage);
        self.publish();
        self.save();
    }

    /// The runner is in this stage, its state as it is.
    pub(crate) fn enter_stage(&mut self, stage: Stage) {
        self.clock.enter(stage);
        self.publish();
    }

    /// How its VM came to be ready.
    pub(crate) fn came_by(&mut self, path: StartPath) {
        self.meta.start_path = Some(path);
    }

    /// SSH has answered.
    pub(crate) fn ssh_ready(&mut self) {
        self.meta.ssh_ready = true;
        self.enter(State::SshReady, Stage::Setup);
    }

    /// The guest has the setup script.
    pub(super) fn handed_over(&mut self) {
        self.meta.setup_handed_over = true;
        self.setup.started = true;
        self.publish();
        self.save();
        if let Err(error) = self.bundle.forget_script() {
            tracing::warn!(%error, "the setup script's copy in the bundle cannot be removed yet");
        }
    }

    /// An Actions runner listens.
    pub(super) fn runner_seen(&mut self) {
        self.meta.runner_seen = true;
        self.enter(State::Running, Stage::Job);
    }

    /// The guest's address is known.
    pub(crate) fn address(&mut self, ip: String) {
        self.meta.ip_address = ip;
        self.publish();
        self.save();
    }

    /// What the guest agent says.
    pub(super) fn observe(&mut self, status: &Status) {
        let address = || status.ip_addresses.first()?.parse::<std::net::IpAddr>().ok();
        if self.meta.ip_address.is_empty()
            && let Some(ip) = address()
        {
            self.meta.ip_address = ip.to_string();
            self.save();
        }
        // On disk before the server hears of it: it decides whether the runner's name may be asked for again.
        if !self.meta.job_seen && (status.state == RunnerActivity::Running || status.job.is_some()) {
            self.meta.job_seen = true;
            self.save();
        }
        if let Some(code) = status.setup.exit_code {
            (self.setup.exited, self.setup.exit_code) = (true, code);
        }
        self.guest = Some(status.clone());
        self.publish();
    }

    /// The setup script's last words.
    pub(super) fn setup_tail(&mut self, tail: String) {
        self.setup.log_tail = tail;
    }

    /// It is decided how the runner ends; the teardown begins. Kept on disk before anything is stopped.
    pub(super) fn decide(&mut self, ending: &Ending) {
        let end = wire::RunnerEnd {
            kind: ending.kind.into(),
            reason: ending.reason.clone(),
            stage: wire::RunnerStage::from(self.clock.stage()).into(),
            at: Some(convert::time_to_wire(self.ctx.ambient.now())),
        };
        let failed = ending.is_failure();
        let kind = ending.kind.as_str_name();
        match failed {
            true => {
                tracing::warn!(kind, stage = self.stage().as_str(), reason = ending.reason, "runner ends")
            }
            false => {
                tracing::info!(kind, stage = self.stage().as_str(), reason = ending.reason, "runner ends")
            }
        }
        if failed {
            self.error.clone_from(&ending.reason);
        }
        // ERROR stays until the runner is gone: a server that looks now and then must not miss it.
        self.state = if failed { State::Error } else { State::TearingDown };
        self.clock.enter(Stage::Teardown);
        self.publish();
        self.ctx.ends.keep(wire::Runner { end: Some(end.clone()), ..self.to_wire() });
        self.end = Some(end);
    }

    /// The VM and its bundle are gone.
    pub(super) fn gone(mut self) -> wire::Runner {
        self.clock.close();
        let runner = wire::Runner { end: self.end.take(), ..self.to_wire() };
        self.ctx.ends.keep(runner.clone());
        self.ctx.board.publish(runner.clone());
        runner
    }

    pub(crate) fn stage(&self) -> Stage {
        self.clock.stage()
    }

    pub(crate) fn in_stage(&self) -> Duration {
        self.clock.in_stage()
    }

    pub(super) fn publish(&self) {
        match self.audience {
            Audience::Server => self.ctx.board.publish(self.to_wire()),
            Audience::Nobody => {}
        }
    }

    /// A full disk must not end a job, so this is said and survived. Before there is a bundle nothing is kept.
    pub(super) fn save(&mut self) {
        self.freshen();
        if self.bundle.path.is_dir()
            && let Err(error) = self.bundle.set_metadata(&self.meta)
        {
            tracing::warn!(bundle = ?self.bundle.path, %error, "RuntimeMetadata.json cannot be written");
        }
    }

    /// Brings the metadata up to the present.
    pub(super) fn freshen(&mut self) {
        self.meta.updated_at = self.ctx.ambient.now();
        self.meta.state = disk_state(self.state);
        self.meta.stages = self.clock.over().to_vec();
    }

    fn to_wire(&self) -> wire::Runner {
        let guest = self.guest.as_ref();
        wire::Runner {
            runner_id: self.meta.runner_id.clone(),
            runner_name: self.meta.runner_name.clone(),
            agent_id: self.ctx.agent_id.clone(),
            state: wire::RunnerState::from(self.state).into(),
            ip_address: self.meta.ip_address.clone(),
            created_at: Some(convert::time_to_wire(self.meta.created_at)),
            error_message: self.error.clone(),
            guest_runner_state: guest.map_or(RunnerActivity::Offline, |s| s.state).into(),
            stage: wire::RunnerStage::from(self.clock.stage()).into(),
            stages: self.clock.to_wire(),
            setup: Some(self.setup.clone()),
            job: guest.and_then(job),
            end: None,
            cloud_id: self.meta.cloud_id.clone(),
            start_path: self.meta.start_path.map_or(0, |p| wire::StartPath::from(p).into()),
            job_seen: self.meta.job_seen,
        }
    }
}

fn job(status: &Status) -> Option<wire::Job> {
    let job = status.job.as_ref()?;
    // Whoever writes a workflow chooses them, and they are shown in terminals.
    let shown = |text: &str| text::one_line(text, MAX_NAME);
    Some(wire::Job {
        job_id: shown(&job.job_id),
        run_id: shown(&job.run_id),
        repository: shown(&status.repository),
        workflow_name: shown(&job.workflow_name),
        job_name: shown(&job.job_name),
        started_at: job.started_at.map(convert::time_to_wire),
    })
}

fn disk_state(state: State) -> DiskState {
    match state {
        State::Creating => DiskState::Creating,
        State::Booting => DiskState::Booting,
        State::SshReady | State::Running => DiskState::Running,
        State::TearingDown => DiskState::Stopped,
        State::Error => DiskState::Error,
    }
}
