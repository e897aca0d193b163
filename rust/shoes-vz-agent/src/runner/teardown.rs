//! The end of every runner: VM stopped, bundle removed, slot freed, in this order, and not before each is done.

use std::time::Duration;

use shoes_vz_proto::agent as wire;
use shoes_vz_vm::client::Stop;
use tokio::time::sleep;

use super::{
    clock::stage_name,
    ending::Ending,
    owner::{Owner, chain},
};

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

impl Owner {
    /// Undoes whatever there is. A slot whose VM cannot be ended, or whose bundle cannot be removed, stays taken, and
    /// it is tried again until it works.
    pub(super) async fn tear_down(mut self, ending: Ending) -> wire::Runner {
        self.record.decide(&ending);
        // What cannot be cut short is waited for: each is bounded by itself.
        if let Some(cloning) = self.cloning.take() {
            drop(cloning.await);
        }
        if let Some(launching) = self.launching.take()
            && let Ok(Ok(vm)) = launching.await
        {
            self.vm = Some(vm);
        }
        let mut pause = FIRST_PAUSE;
        while let Err(words) = self.try_to_remove().await {
            tracing::error!(words, again_in = ?pause, "the VM's slot stays taken until this works");
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        if let (Some(notices), Ok(ip)) = (&self.ctx.notices, self.record.meta.ip_address.parse()) {
            notices.forget(ip);
        }
        // Free before it is told, so that whoever hears of the end finds a slot.
        drop(self.ticket);
        let runner = self.record.gone();
        let took: u64 = runner.stages.last().map_or(0, |s| s.duration_us / 1000);
        let stage = runner.end.as_ref().map_or("unknown", |e| stage_name(e.stage));
        tracing::info!(teardown_ms = took, ended_at = stage, "runner is gone");
        runner
    }

    async fn try_to_remove(&mut self) -> Result<(), String> {
        let path = self.record.bundle.path.clone();
        if self.vm.is_none() {
            self.vm = self.ctx.machines.find(&path).await.map_err(|e| chain(&e))?;
        }
        if let Some(vm) = &self.vm {
            vm.stop(Stop::Force).await.map_err(|e| chain(&e))?;
        }
        self.ctx.machines.remove(&path).await.map_err(|e| chain(&e))
    }
}
