//! The end of every runner: VM stopped, bundle removed, slot freed, in this order, and not before each is done.

use shoes_vz_proto::agent as wire;

use super::{clock::stage_name, ending::Ending, owner::Owner};

impl Owner {
    /// Undoes whatever there is. A slot whose VM cannot be ended, or whose bundle cannot be removed, stays taken, and
    /// it is tried again until it works.
    pub(super) async fn tear_down(mut self, ending: Ending) -> wire::Runner {
        self.record.decide(&ending);
        // One that is on its way comes now or goes back to where it was.
        if let Some(mut coming) = self.claiming.take() {
            coming.close();
            if let Ok(vm) = coming.try_recv() {
                self.held = Some(vm);
            }
        }
        if let Some(held) = &mut self.held {
            held.remove().await;
        }
        if let (Some(notices), Ok(ip)) = (&self.ctx.notices, self.record.meta.ip_address.parse()) {
            notices.forget(ip);
        }
        // Free before it is told, so that whoever hears of the end finds a slot.
        drop(self.held.take());
        drop(self.place);
        let runner = self.record.gone();
        let took: u64 = runner.stages.last().map_or(0, |s| s.duration_us / 1000);
        let stage = runner.end.as_ref().map_or("unknown", |e| stage_name(e.stage));
        tracing::info!(teardown_ms = took, ended_at = stage, "runner is gone");
        runner
    }
}
