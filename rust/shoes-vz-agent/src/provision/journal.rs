//! What is known of a VM on its way, in memory and in `RuntimeMetadata.json`.

use shoes_vz_model::{
    Ambient,
    bundle::{DiskState, Phase, RuntimeMetadata},
    state::{Stage, State},
};

use super::timeline::Timeline;
use crate::bundles::Bundle;

pub(crate) struct Journal {
    pub(crate) bundle: Bundle,
    pub(crate) meta: RuntimeMetadata,
    pub(crate) state: State,
    pub(crate) timeline: Timeline,
    ambient: Ambient,
}

/// Whom a VM's progress concerns: a runner shows it to the server, a hot VM to no one.
pub(crate) trait Observer: Send {
    fn journal(&mut self) -> &mut Journal;

    /// The journal has changed.
    fn changed(&self);

    /// The VM is now in this state and stage.
    fn enter(&mut self, state: State, stage: Stage) {
        let journal = self.journal();
        if !journal.state.may_become(state) {
            return;
        }
        if journal.state != state {
            tracing::info!(state = state.as_str(), stage = stage.as_str(), "state changed");
        }
        journal.state = state;
        journal.timeline.enter(stage);
        self.changed();
        self.journal().save();
    }

    /// The VM is in this stage, its state unchanged.
    fn enter_stage(&mut self, stage: Stage) {
        self.journal().timeline.enter(stage);
        self.changed();
    }

    /// The guest's address is known.
    fn address(&mut self, ip: String) {
        self.journal().meta.ip_address = ip;
        self.changed();
        self.journal().save();
    }
}

/// A hot VM's.
impl Observer for Journal {
    fn journal(&mut self) -> &mut Journal {
        self
    }

    fn changed(&self) {}
}

impl Journal {
    pub(crate) fn begin(ambient: Ambient, bundle: Bundle, meta: RuntimeMetadata, stage: Stage) -> Self {
        let timeline = Timeline::start(ambient.clone(), stage);
        Self { bundle, meta, state: State::Creating, timeline, ambient }
    }

    /// Of a VM that a former agent began.
    pub(crate) fn resume(ambient: Ambient, bundle: Bundle, meta: RuntimeMetadata) -> Self {
        let (state, stage) = match meta.phase {
            Phase::Provisioning | Phase::Preheating => (State::Booting, Stage::Guest),
            Phase::Ready | Phase::SettingUp | Phase::Hot => (State::SshReady, Stage::Setup),
            Phase::Running => (State::Running, Stage::Job),
        };
        let timeline = Timeline::resume(ambient.clone(), meta.stages.clone(), stage, meta.created_at);
        Self { bundle, meta, state, timeline, ambient }
    }

    pub(crate) fn close(&mut self) {
        self.timeline.close();
    }

    /// A full disk must not end a job, so a failure is only logged. Before there is a bundle nothing is written.
    pub(crate) fn save(&mut self) {
        self.update();
        if self.bundle.path.is_dir()
            && let Err(error) = self.bundle.set_metadata(&self.meta)
        {
            tracing::warn!(bundle = ?self.bundle.path, reason = %error, "writing RuntimeMetadata.json failed");
        }
    }

    /// Brings the metadata up to the present.
    pub(crate) fn update(&mut self) {
        self.meta.updated_at = self.ambient.now();
        self.meta.state = match self.state {
            State::Creating => DiskState::Creating,
            State::Booting => DiskState::Booting,
            State::SshReady | State::Running => DiskState::Running,
            State::TearingDown => DiskState::Stopped,
            State::Error => DiskState::Error,
        };
        self.meta.stages = self.timeline.ended().to_vec();
    }
}
