//! Starts of runners by each start path, as myshoes makes them: plugin process, call, answer.

use std::{
    collections::BTreeMap,
    path::Path as FilePath,
    time::{Duration, Instant},
};

use serde::Serialize;
use shoes_vz_model::state::StartPath;
use shoes_vz_testkit::{
    fleet::{Fleet, Options},
    plugin::add_by_plugin,
    report::millis,
    script::sleeping,
    stages::stages_ms,
};

use crate::numbers::Percentiles;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    Cold,
    Restored,
    Hot,
}

/// The stages of the guest and its hypervisor; the rest of a start is the overhead of shoes-vz.
const GUEST_STAGES: [&str; 6] = ["claim", "clone", "start", "guest", "personalize", "ssh"];
/// Between two claims: the time for a refill.
const PAUSE: Duration = Duration::from_secs(2);

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

/// Measures `rounds` starts; returns also the durations of the deletions.
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
    let script = sleeping();
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
        let (view, actual) = fleet.until_started(&name).await;
        let wanted = match path {
            Path::Cold => StartPath::Cold,
            Path::Restored => StartPath::Restored,
            Path::Hot => StartPath::Hot,
        };
        anyhow::ensure!(actual == wanted, "{name} was started {actual:?}, not {wanted:?}");
        let spent = stages_ms(&view);
        let guest_ms: f64 = GUEST_STAGES.iter().filter_map(|stage| spent.get(stage)).sum();
        samples.totals.push(total);
        samples.overheads.push(total - guest_ms);
        let shown = spent.into_iter().filter(|(s, _)| *s == "queue" || GUEST_STAGES.contains(s));
        for (stage, ms) in shown {
            samples.stages.entry(stage).or_default().push(ms);
        }
        let called = Instant::now();
        fleet.delete(&added.cloud_id).await?;
        deletions.push(millis(called.elapsed()));
        eprint!("\r{path:?} {:>3}/{rounds}: {total:.0} ms   ", round + 1);
    }
    eprintln!();
    if path == Path::Hot {
        println!("claims whose refill was not ready after {} s: {missed} of {rounds}", PAUSE.as_secs());
        fleet.end_agent_and_hot_vms().await;
    }
    fleet.finish().await;
    Ok((samples, deletions))
}

/// Ten simultaneous calls on one agent with ten hot VMs; returns the slowest answer of each burst.
pub(crate) async fn at_once(template: &FilePath, bursts: usize) -> anyhow::Result<Vec<f64>> {
    const TEN: u32 = 10;
    let args = ["--hot", "all", "--saved-states", "use"].map(str::to_owned).to_vec();
    let options =
        Options { max_runners: TEN, template: template.to_owned(), agent_args: args, ..Options::default() };
    let mut fleet = Fleet::server_only(options).await;
    fleet.warm().await;
    fleet.start_agent().await;
    let script = sleeping();
    let mut slowest = Vec::new();
    for burst in 0..bursts {
        fleet.until_hot(TEN).await;
        // Without plugins: ten plugin processes would measure process starts on this machine.
        let calls = (0..TEN).map(|n| {
            let (name, fleet, script) = (format!("burst-{burst}-{n}"), &fleet, &script);
            async move {
                let called = Instant::now();
                let added = fleet.add(&name, script).await?;
                Ok::<_, tonic::Status>((added, millis(called.elapsed())))
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
        eprintln!("burst {:>3}/{bursts}: {worst:.0} ms", burst + 1);
    }
    fleet.until_hot(TEN).await;
    fleet.end_agent_and_hot_vms().await;
    fleet.finish().await;
    Ok(slowest)
}
