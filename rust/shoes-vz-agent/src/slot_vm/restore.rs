//! From a slot to SSH by its saved state; whatever goes wrong, by booting, within the same call.

use std::time::Duration;

use shoes_vz_model::state::{Stage, StartPath, State};
use shoes_vz_process::units;
use shoes_vz_proto::agent::EndKind;
use shoes_vz_vm::{saved::Draft, spec::StateUse};
use tokio::time::timeout;

use super::{Making, SlotVm, chain};
use crate::{
    hot::{Class, StatesMode},
    personalization::Fresh,
    runner::{Ending, Record},
    states,
};

/// A restore that takes longer is given up for a boot: it takes a second, where a boot takes many.
const RESTORE_DEADLINE: Duration = Duration::from_secs(20);

/// Whether a guest goes on from a saved state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Restored {
    /// It does, and SSH answers.
    Ready,
    /// There is no state for it, or it could not be used: why. The slot is empty.
    No(String),
}

/// Why a guest does not go on from a state.
enum Not {
    /// Nothing more is to be done here.
    Ending(Ending),
    /// It is to be booted; the state may be to blame, or not.
    Fallback { reason: &'static str, words: String, blame: Blame },
}

/// Whether a state that did not lead to a ready guest is good for another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Blame {
    State,
    Host,
}

impl Not {
    /// Whoever ended the VM on purpose did not mean the state.
    fn because(reason: &'static str) -> impl Fn(Ending) -> Self {
        move |ending| match ending.kind {
            EndKind::Deleted => Self::Ending(ending),
            _ => {
                // A full disk, or two VMs running already, is no fault of the state's.
                let innocent = matches!(reason, "clone" | "refused") && !ending.state_refused;
                let blame = if innocent { Blame::Host } else { Blame::State };
                Self::Fallback { reason, words: ending.reason, blame }
            }
        }
    }
}

impl SlotVm {
    /// Restores the slot's saved state, if there is one for such a VM.
    pub(crate) async fn restore_if_possible(
        &mut self,
        record: &mut Record,
        making: &Making<'_>,
    ) -> Result<Restored, Ending> {
        let ctx = self.ctx.clone();
        // Other sizes have none.
        let mode = ctx.pool.plan().states;
        if !mode.uses() || making.class != Class::own(&ctx.template) {
            if mode == StatesMode::Unsupported {
                ctx.states.count(states::UNSUPPORTED);
            }
            return Ok(Restored::No("no states are used for it".into()));
        }
        let spec = self.spec(making, StateUse::None);
        match ctx.states.find(&ctx, self.ticket.index(), &spec).await {
            Ok(state) => self.restore(record, making, state.dir()).await,
            Err(unusable) => {
                ctx.states.count(unusable.kind.as_str());
                tracing::info!(
                    slot = self.ticket.index(), reason = unusable.kind.as_str(), words = %unusable,
                    "there is no saved state to use; the guest is booted"
                );
                Ok(Restored::No(unusable.to_string()))
            }
        }
    }

    /// Restores the state that was just saved, and believes in it from then on.
    pub(crate) async fn restore_to_prove(
        &mut self,
        record: &mut Record,
        making: &Making<'_>,
    ) -> Result<Restored, Ending> {
        let ctx = self.ctx.clone();
        let spec = self.spec(making, StateUse::None);
        let state = match ctx.states.find_unproved(&ctx, self.ticket.index(), &spec).await {
            Ok(state) => state,
            Err(unusable) => {
                return Ok(Restored::No(unusable.to_string()));
            }
        };
        let restored = self.restore(record, making, state.dir()).await?;
        if restored == Restored::Ready
            && let Err(words) = ctx.states.proved(state).await
        {
            tracing::warn!(words, "that the saved state is good could not be written down; it is not used");
        }
        Ok(restored)
    }

    /// A place for a new state of this slot's.
    pub(crate) async fn draft_state(&self, making: &Making<'_>) -> Result<Draft, String> {
        let spec = self.spec(making, StateUse::None);
        self.ctx.states.draft(&self.ctx, self.ticket.index(), &spec).await
    }

    async fn restore(
        &mut self,
        record: &mut Record,
        making: &Making<'_>,
        dir: &std::path::Path,
    ) -> Result<Restored, Ending> {
        let slot = self.ticket.index();
        let state = StateUse::Restore(dir.to_owned());
        let outcome = match timeout(RESTORE_DEADLINE, self.go_on_from(record, making, state)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Not::Fallback {
                reason: "late",
                blame: Blame::State,
                words: format!(
                    "not ready within {} at stage {}; the last try said: {}",
                    units::show_duration(RESTORE_DEADLINE),
                    record.stage().as_str(),
                    self.last_error
                ),
            }),
        };
        match outcome {
            Ok(()) => {
                record.came_by(StartPath::Restored);
                Ok(Restored::Ready)
            }
            Err(Not::Ending(ending)) => Err(ending),
            Err(Not::Fallback { reason, words, blame }) => {
                tracing::warn!(slot, reason, words, "the saved state could not be used; the guest is booted");
                self.ctx.states.count(reason);
                if blame == Blame::State {
                    self.ctx.states.discard(&self.ctx, slot, reason).await;
                }
                self.clear().await?;
                Ok(Restored::No(words))
            }
        }
    }

    async fn go_on_from(
        &mut self,
        record: &mut Record,
        making: &Making<'_>,
        state: StateUse,
    ) -> Result<(), Not> {
        record.enter_stage(Stage::Clone);
        self.make_bundle(record, making, state).await.map_err(Not::because("clone"))?;
        self.launch(record).await.map_err(Not::because("refused"))?;
        let turn = self.start_vm().await.map_err(Not::because("refused"))?;
        record.enter(State::Booting, Stage::Guest);
        self.find_guest(record, turn).await.map_err(Not::because("guest"))?;
        record.enter(State::Booting, Stage::Personalize);
        self.unless_over(Stage::Personalize, async |this| this.personalize().await)
            .await
            .map_err(Not::because("personalize"))?;
        self.log_in(record).await.map_err(Not::because("ssh"))
    }

    /// Makes the guest unlike every other clone of its state.
    async fn personalize(&mut self) -> Result<(), Ending> {
        let own =
            |e: &dyn std::error::Error| Ending::failed(format!("personalizing the guest: {}", chain(e)));
        let fresh = Fresh::draw(&self.ctx.ambient).map_err(|e| own(&e))?;
        fresh.keep(&self.bundle.path).map_err(|e| own(&e))?;
        let mut personalization = fresh.personalization.clone();
        personalization.unix_nanos = i64::try_from(self.ctx.ambient.now().as_nanosecond()).unwrap_or(0);
        self.guest()?.personalize(&personalization).await.map_err(|e| own(&e))?;
        self.ssh = fresh.ssh(&self.ctx.login);
        // By the new keys from now on.
        if let Some(guest) = self.ctx.machines.guest_again(&self.ctx, &*self.vm()?, self.ssh.clone()) {
            self.guest = Some(guest);
        }
        Ok(())
    }

    /// Back to the empty slot.
    pub(crate) async fn clear(&mut self) -> Result<(), Ending> {
        self.settle().await;
        let cleared = self.try_to_remove().await;
        cleared.map_err(|words| Ending::failed(format!("removing the VM to boot another: {words}")))?;
        self.ssh = self.ctx.login.of_one_vm();
        self.last_error.clear();
        Ok(())
    }
}
