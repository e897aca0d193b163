//! From a slot to a hot VM: out of its saved state; else by booting, and then with a new state saved on the way.
//!
//! ```text
//! state ─▶ restore ─▶ ready            no state ─▶ boot ─▶ pause ─▶ save ─▶ end ─▶ restore (the proof) ─▶ ready
//!             └ refused ─▶ discarded ─────▲           └ a runner waits already: it gets this one
//! ```

use shoes_vz_vm::{client::Stop, saved::Draft, spec::StateUse};

use super::{
    Class, StatesMode,
    spare::{Life, Over},
};
use crate::{
    runner::Ending,
    slot_vm::{Making, Restored, chain},
    states,
};

/// How often a guest is logged into before its state is saved: what that needs is then in its memory.
const LOGINS: usize = 3;

impl Life {
    pub(super) async fn prepare(&mut self) -> Result<(), Over> {
        let failed = |ending: Ending| Over::Failed(ending.reason);
        let mode = self.ctx.pool.plan().states;
        let own = self.spare.class == Class::own(&self.ctx.template);
        if !mode.uses() || !own {
            if mode == StatesMode::Unsupported {
                self.ctx.states.count(states::UNSUPPORTED);
            }
            return self.boot(StateUse::None).await.map_err(failed);
        }
        let slot = self.held.ticket.index();
        match self.restore().await.map_err(failed)? {
            Restored::Ready => Ok(()),
            Restored::No(_) if mode == StatesMode::Use => self.boot(StateUse::None).await.map_err(failed),
            Restored::No(_) => match self.save_and_restore().await {
                Ok(()) => Ok(()),
                Err(Unsaved::Over(over)) => Err(over),
                // Nobody waits for it, and the state was all it was for.
                Err(Unsaved::State(words)) if self.is_for_its_state() => Err(Over::Failed(words)),
                Err(Unsaved::State(words)) => {
                    let again_in = self.ctx.states.failed(slot, words.clone());
                    tracing::warn!(
                        slot,
                        words,
                        ?again_in,
                        "no state could be saved; the guest is booted instead"
                    );
                    self.held.clear().await.map_err(failed)?;
                    self.boot(StateUse::None).await.map_err(failed)
                }
            },
        }
    }

    fn making(&self) -> Making<'static> {
        let limit = self.ctx.max_lifetime.map(|limit| limit.saturating_add(self.ctx.pool.plan().max_age));
        let lives_until = limit.and_then(|limit| self.record.meta.created_at.checked_add(limit).ok());
        Making { class: self.spare.class, script: None, lives_until }
    }

    async fn boot(&mut self, state: StateUse) -> Result<(), Ending> {
        let making = self.making();
        self.held.boot_cold(&mut self.record, &making, state).await
    }

    async fn restore(&mut self) -> Result<Restored, Ending> {
        let making = self.making();
        self.held.restore_if_possible(&mut self.record, &making).await
    }

    /// A new state for this slot, proved by a restore, after which the VM is ready.
    async fn save_and_restore(&mut self) -> Result<(), Unsaved> {
        let making = self.making();
        let draft = self.held.draft_state(&making).await.map_err(Unsaved::State)?;
        self.boot(StateUse::Save(draft.dir().to_owned())).await.map_err(Unsaved::because)?;
        if self.is_claimed() {
            // Ready is ready: the state is saved another time.
            return Ok(());
        }
        self.save(draft).await?;
        let making = self.making();
        let restored =
            self.held.restore_to_prove(&mut self.record, &making).await.map_err(Unsaved::because)?;
        match restored {
            Restored::Ready => Ok(()),
            Restored::No(why) => Err(Unsaved::State(format!("it could not be restored: {why}"))),
        }
    }

    /// Saves the VM's state, which ends the VM.
    async fn save(&mut self, draft: Draft) -> Result<(), Unsaved> {
        let state = |words: String| Unsaved::State(words);
        let guest = self.held.guest().map_err(Unsaved::because)?;
        // A restore works without, only slower.
        if let Err(error) = guest.prepare_save().await {
            tracing::warn!(%error, "the guest did not get ready for its state to be saved");
        }
        for _ in 1..LOGINS {
            guest.try_ssh().await.map_err(|e| state(format!("logging in before the save: {e}")))?;
        }
        self.held.guest = None;
        let vm = self.held.vm().map_err(Unsaved::because)?;
        vm.pause().await.map_err(|e| state(chain(&e)))?;
        vm.save(&draft.machine_state()).await.map_err(|e| state(chain(&e)))?;
        vm.stop(Stop::Force).await.map_err(|e| state(chain(&e)))?;
        let bundle = self.held.bundle.path.clone();
        self.ctx.states.keep(draft, bundle).await.map_err(state)?;
        self.held.clear().await.map_err(Unsaved::because)
    }
}

/// Why there is no new state.
enum Unsaved {
    /// The VM itself cannot be had.
    Over(Over),
    /// Only the state cannot.
    State(String),
}

impl Unsaved {
    fn because(ending: Ending) -> Self {
        Self::Over(Over::Failed(ending.reason))
    }
}
