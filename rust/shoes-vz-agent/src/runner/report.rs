//! A runner as the server sees it: what its journal has, and what its guest and its end add.

use std::sync::Arc;

use shoes_vz_model::{
    bundle::Phase,
    guest::{RunnerActivity, Status},
    id::RunnerId,
    state::{Stage, State},
    text,
};
use shoes_vz_proto::{agent as wire, convert};

use super::end::RunnerEnd;
use crate::{
    agent::Agent,
    provision::{Journal, Observer},
};

/// Of a name that a guest reports.
const MAX_NAME: usize = 256;

pub(super) struct Report {
    agent: Arc<Agent>,
    id: RunnerId,
    pub(super) journal: Journal,
    error: String,
    guest: Option<Status>,
    setup: wire::Setup,
    end: Option<wire::RunnerEnd>,
}

impl Observer for Report {
    fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    fn changed(&self) {
        self.agent.board.publish(self.id, self.to_wire());
    }
}

impl Report {
    pub(super) fn new(agent: Arc<Agent>, journal: Journal) -> Self {
        let started = matches!(journal.meta.phase, Phase::SettingUp | Phase::Running);
        let setup = wire::Setup { started, ..wire::Setup::default() };
        let id = journal.bundle.runner;
        let report = Self { agent, id, journal, error: String::new(), guest: None, setup, end: None };
        report.changed();
        report
    }

    pub(super) fn stage(&self) -> Stage {
        self.journal.timeline.stage()
    }

    /// SSH has answered.
    pub(super) fn ready(&mut self) {
        self.journal.meta.phase = Phase::Ready;
        self.enter(State::SshReady, Stage::Setup);
    }

    /// The guest has the setup script.
    pub(super) fn handed_over(&mut self) {
        self.journal.meta.phase = Phase::SettingUp;
        self.setup.started = true;
        self.changed();
        self.journal.save();
        if let Err(error) = self.journal.bundle.forget_script() {
            tracing::warn!(reason = %error, "removing the setup script's copy from the bundle failed");
        }
    }

    /// An Actions runner listens.
    pub(super) fn listening(&mut self) {
        self.journal.meta.phase = Phase::Running;
        self.enter(State::Running, Stage::Job);
    }

    pub(super) fn observe(&mut self, status: &Status) {
        let meta = &mut self.journal.meta;
        let address = || status.ip_addresses.first()?.parse::<std::net::IpAddr>().ok();
        let mut dirty = false;
        if meta.ip_address.is_empty()
            && let Some(ip) = address()
        {
            (meta.ip_address, dirty) = (ip.to_string(), true);
        }
        // On disk before it is published: it decides whether the runner's name may be requested again.
        if !meta.job_seen && (status.state == RunnerActivity::Running || status.job.is_some()) {
            (meta.job_seen, dirty) = (true, true);
        }
        if dirty {
            self.journal.save();
        }
        if let Some(code) = status.setup.exit_code {
            (self.setup.exited, self.setup.exit_code) = (true, code);
        }
        self.guest = Some(status.clone());
        self.changed();
    }

    /// The last lines of the setup script's output.
    pub(super) fn setup_tail(&mut self, tail: String) {
        self.setup.log_tail = tail;
    }

    /// It is decided how the runner ends; the teardown begins. Kept on disk before anything is stopped.
    pub(super) fn decide(&mut self, end: &RunnerEnd) {
        let failed = end.is_failure();
        let (kind, stage) = (end.kind.as_str_name(), self.stage().as_str());
        match failed {
            true => tracing::warn!(kind, stage, reason = end.reason, "runner ended"),
            false => tracing::info!(kind, stage, reason = end.reason, "runner ended"),
        }
        let end = wire::RunnerEnd {
            kind: end.kind.into(),
            reason: end.reason.clone(),
            stage: wire::RunnerStage::from(self.stage()).into(),
            at: Some(convert::time_to_wire(self.agent.host.ambient.now())),
        };
        if failed {
            self.error.clone_from(&end.reason);
        }
        // ERROR stays until the runner is removed: a server that asks at an interval must not miss it.
        self.journal.state = if failed { State::Error } else { State::TearingDown };
        self.enter_stage(Stage::Teardown);
        self.agent.ends.keep(self.id, wire::Runner { end: Some(end.clone()), ..self.to_wire() });
        self.end = Some(end);
    }

    /// The end that a former agent decided.
    pub(super) fn resume_end(&mut self, kept: wire::Runner) {
        self.journal.state = convert::state_from_wire(kept.state).unwrap_or(State::TearingDown);
        (self.error, self.end) = (kept.error_message, kept.end);
        self.setup = kept.setup.unwrap_or_default();
        self.enter_stage(Stage::Teardown);
    }

    /// Whether it is decided how the runner ends.
    pub(super) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// The VM and its bundle are removed.
    pub(super) fn removed(mut self) {
        self.journal.close();
        let runner = wire::Runner { end: self.end.take(), ..self.to_wire() };
        let teardown_ms = runner.stages.last().map_or(0, |s| s.duration_us / 1000);
        let stage = runner.end.as_ref().and_then(|e| convert::stage_from_wire(e.stage));
        tracing::info!(teardown_ms, ended_at = stage.map_or("unknown", Stage::as_str), "runner removed");
        self.agent.ends.keep(self.id, runner.clone());
        self.agent.board.publish(self.id, runner);
    }

    fn to_wire(&self) -> wire::Runner {
        let guest = self.guest.as_ref();
        let Journal { meta, state, timeline, .. } = &self.journal;
        let stages = timeline.ended().iter().map(|(stage, start, us)| wire::StageTiming {
            stage: wire::RunnerStage::from(*stage).into(),
            started_at: Some(convert::time_to_wire(*start)),
            duration_us: *us,
        });
        wire::Runner {
            runner_id: meta.runner_id.clone(),
            runner_name: meta.runner_name.clone(),
            agent_id: self.agent.host.id.to_string(),
            state: wire::RunnerState::from(*state).into(),
            ip_address: meta.ip_address.clone(),
            created_at: Some(convert::time_to_wire(meta.created_at)),
            error_message: self.error.clone(),
            guest_runner_state: guest.map_or(RunnerActivity::Offline, |s| s.state).into(),
            stage: wire::RunnerStage::from(timeline.stage()).into(),
            stages: stages.collect(),
            setup: Some(self.setup.clone()),
            job: guest.and_then(job),
            end: None,
            cloud_id: meta.cloud_id.clone(),
            start_path: meta.start_path.map_or(0, |p| wire::StartPath::from(p).into()),
            job_seen: meta.job_seen,
        }
    }
}

fn job(status: &Status) -> Option<wire::Job> {
    let job = status.job.as_ref()?;
    // The author of a workflow chooses them, and they are shown in terminals.
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
