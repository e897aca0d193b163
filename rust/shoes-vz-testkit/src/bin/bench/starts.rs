//! Starts of runners by each path, as myshoes makes them: the plugin's process, its call, its answer.

use std::{
    collections::BTreeMap,
    path::Path as FilePath,
    time::{Duration, Instant},
};

use serde::Serialize;
use shoes_vz_model::state::StartPath;
use shoes_vz_proto::convert::start_path_from_wire;
use shoes_vz_testkit::{
    fleet::{Fleet, Options},
    plugin::add_by_plugin,
    report::millis,
    script::held,
    stages::stages_ms,
};

use crate::numbers::Percentiles;

/// How a VM comes to be ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    Cold,
    Restored,
    Hot,
}

/// The stages that are the guest's and its hypervisor's: the rest of a start is our own.
const NOT_OURS: [&str; 6] = ["claim", "clone", "start", "guest", "personalize", "ssh"];
/// Between two claims; a refill has so long.
const PAUSE: Duration = Duration::from_secs(2);

/// Many starts, as in the report.
#[derive(Debug, Serialize)]
pub(crate) struct Starts {
    #[serde(flatten)]
    pub(crate) total: Percentiles,
    pub(crate) overhead_p50_ms: f64,
    pub(crate) overhead_p99_ms: f64,
    #[serde(skip)]
    pub(crate) overhead: Percentiles,
    pub(crate) stages_ms: BTreeMap<&'static str, f64>,
}

#[derive(Debug, Default)]
pub(crate) struct Samples {
    totals: Vec<f64>,
    overheads: Vec<f64>,
    stages: BTreeMap<&'static str, Vec<f64>>,
}

impl Samples {
    pub(crate) fn done(&mut self) -> Starts {
        let overhead = Percentiles::of(&mut self.overheads);
        Starts {
            total: Percentiles::of(&mut self.totals),
            overhead_p50_ms: overhead.p50_ms,
            overhead_p99_ms: overhead.p99_ms,
            overhead,
            stages_ms: self.stages.iter_mut().map(|(s, ms)| (*s, Percentiles::of(ms).p50_ms)).collect(),
        }
    }
}

fn options(template: &FilePath, path: Path) -> Options {
    let args: &[&str] = match path {
        Path::Cold => &["--hot", "none", "--saved-states", "off"],
        Path::Restored => &["--hot", "none", "--saved-states", "use"],
        Path::Hot => &["--hot", "1", "--saved-states", "use"],
    };
    Options {
        template: template.to_owned(),
        agent_args: args.iter().map(|a| (*a).to_owned()).collect(),
        ..Options::default()
    }
}

/// So many starts by that path; and how long deletions took.
pub(crate) async fn measure(
    template: &FilePath,
    path: Path,
    rounds: usize,
) -> anyhow::Result<(Samples, Vec<f64>)> {
    let mut fleet = Fleet::server_only(options(template, path)).await;
    if path != Path::Cold {
        fleet.warm().await;
    }
    fleet.start_agent().await;
    let script = held();
    let (mut samples, mut deletions) = (Samples::default(), Vec::new());
    let mut missed = 0;
    for round in 0..rounds {
        if path == Path::Hot {
            let waits = Instant::now();
            if round > 0 && tokio::time::timeout(PAUSE, fleet.until_hot(1)).await.is_err() {
                missed += 1;
            }
            fleet.until_hot(1).await;
            if round > 0 {
                tokio::time::sleep(PAUSE.saturating_sub(waits.elapsed())).await;
            }
        }
        let name = format!("bench-{round}");
        let (added, took) = add_by_plugin(&fleet, &name, &script).await?;
        let total = millis(took);
        let view = fleet.until(&name, |v| v.runner.as_ref().is_some_and(|r| r.start_path != 0)).await;
        let came_by = view.runner.as_ref().and_then(|r| start_path_from_wire(r.start_path));
        let wanted = match path {
            Path::Cold => StartPath::Cold,
            Path::Restored => StartPath::Restored,
            Path::Hot => StartPath::Hot,
        };
        anyhow::ensure!(came_by == Some(wanted), "{name} came by {came_by:?}, not {wanted:?}");
        let spent = stages_ms(&view);
        let not_ours: f64 = NOT_OURS.iter().filter_map(|stage| spent.get(stage)).sum();
        samples.totals.push(total);
        samples.overheads.push(total - not_ours);
        let shown = spent.into_iter().filter(|(s, _)| *s == "queue" || NOT_OURS.contains(s));
        for (stage, ms) in shown {
            samples.stages.entry(stage).or_default().push(ms);
        }
        let asked = Instant::now();
        fleet.delete(&added.cloud_id).await?;
        deletions.push(millis(asked.elapsed()));
        eprint!("\r{path:?} {:>3}/{rounds}: {total:.0} ms   ", round + 1);
    }
    eprintln!();
    if path == Path::Hot {
        println!("claims whose refill was not there after {} s: {missed} of {rounds}", PAUSE.as_secs());
        fleet.end_agent_and_hot_vms().await;
    }
    fleet.finish().await;
    Ok((samples, deletions))
}

/// Ten calls at once on one agent with ten hot VMs; the slowest answer of each time.
pub(crate) async fn at_once(template: &FilePath, bursts: usize) -> anyhow::Result<Vec<f64>> {
    const TEN: u32 = 10;
    let args = ["--hot", "all", "--saved-states", "use"].map(str::to_owned).to_vec();
    let options =
        Options { max_runners: TEN, template: template.to_owned(), agent_args: args, ..Options::default() };
    let mut fleet = Fleet::server_only(options).await;
    fleet.warm().await;
    fleet.start_agent().await;
    let script = held();
    let mut slowest = Vec::new();
    for burst in 0..bursts {
        fleet.until_hot(TEN).await;
        // The plugins are not part of it: ten of them starting at once measure this machine's exec.
        let calls = (0..TEN).map(|n| {
            let (name, fleet, script) = (format!("burst-{burst}-{n}"), &fleet, &script);
            async move {
                let asked = Instant::now();
                let added = fleet.add(&name, script).await?;
                Ok::<_, tonic::Status>((added, millis(asked.elapsed())))
            }
        });
        let mut worst = 0.0_f64;
        let mut clouds = Vec::new();
        for answer in futures::future::join_all(calls).await {
            let (added, took) = answer?;
            worst = worst.max(took);
            clouds.push(added.cloud_id);
        }
        slowest.push(worst);
        for cloud_id in clouds {
            fleet.delete(&cloud_id).await?;
        }
        eprintln!("ten at once {:>3}/{bursts}: {worst:.0} ms", burst + 1);
    }
    fleet.until_hot(TEN).await;
    fleet.end_agent_and_hot_vms().await;
    fleet.finish().await;
    Ok(slowest)
}
