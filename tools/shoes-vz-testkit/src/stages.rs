//! The stages of a runner and their durations.

use std::{collections::BTreeMap, future::Future, time::Duration};

use shoes_vz_proto::convert::stage_from_wire;
use shoes_vz_proto::fleet::{RunnerView, WatchRunnersRequest};

use crate::fleet::Fleet;

/// Milliseconds by name of every stage that has ended.
pub fn stages_ms(view: &RunnerView) -> BTreeMap<&'static str, f64> {
    let mut stages = BTreeMap::from([("queue", view.queue_ms as f64)]);
    for timing in view.runner.iter().flat_map(|r| &r.stages) {
        if let Some(stage) = stage_from_wire(timing.stage) {
            stages.insert(stage.as_str(), timing.duration_us as f64 / 1000.0);
        }
    }
    stages
}

/// Follows one runner, which need not exist yet, to its end, and calls `each` on every change.
pub fn follow(
    fleet: &Fleet,
    runner_name: &str,
    mut each: impl FnMut(&RunnerView) + Send + 'static,
) -> impl Future<Output = anyhow::Result<RunnerView>> + Send + 'static {
    let mut client = fleet.fleet_client();
    let request = WatchRunnersRequest { runner_name: runner_name.into(), cloud_id: String::new() };
    async move {
        loop {
            let mut stream = client.watch_runners(request.clone()).await?.into_inner();
            while let Some(view) = stream.message().await? {
                each(&view);
                if view.runner.as_ref().is_some_and(|r| r.end.is_some()) {
                    return Ok(view);
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
