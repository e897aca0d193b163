//! `make bench`: measures starts of real guests (cold, restored, hot) beside a loop that polls like the Go implementation,
//! with the same guests in the same run; and the overhead of shoes-vz in each start.

mod baseline;
mod clones;
mod numbers;
mod starts;

use std::collections::BTreeMap;

use clap::Parser;
use serde::Serialize;
use shoes_vz_testkit::report::{self, ReportArgs};

use self::{
    numbers::{Percentiles, row},
    starts::{Path, Starts},
};

/// Measure starts on real guests; run it on an idle machine
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    report: ReportArgs,
    /// Measured cold starts, restored starts and baseline starts
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Measured claims of hot VMs
    #[arg(long, default_value_t = 200)]
    claims: usize,
    /// Measured bursts of ten simultaneous claims
    #[arg(long, default_value_t = 3)]
    bursts: usize,
}

#[derive(Debug, Serialize)]
struct Report {
    cold: Starts,
    restored: Starts,
    hot: Starts,
    baseline: Percentiles,
    /// p50 of restored starts as a share of the p50 of cold starts.
    restored_of_cold: f64,
    /// The slowest of ten simultaneous claims, for each burst.
    ten_at_once_ms: Vec<f64>,
    delete_instance: Percentiles,
    clone: BTreeMap<String, Percentiles>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let template = args.report.template()?;
    let (mut cold, mut deletions) = starts::measure(&template, Path::Cold, args.rounds).await?;
    let (mut restored, _) = starts::measure(&template, Path::Restored, args.rounds).await?;
    let (mut hot, _) = starts::measure(&template, Path::Hot, args.claims).await?;
    let ten_at_once_ms = starts::at_once(&template, args.bursts).await?;
    let mut baseline = baseline::measure(&template, args.rounds).await?;
    let (cold, restored, hot) = (cold.done(), restored.done(), hot.done());
    let report = Report {
        restored_of_cold: restored.total.p50_ms / cold.total.p50_ms,
        cold,
        restored,
        hot,
        baseline: Percentiles::of(&mut baseline),
        ten_at_once_ms,
        delete_instance: Percentiles::of(&mut deletions),
        clone: clones::measure(&template)?,
    };
    print(&report);
    report::write(&args.report.report, &report)?;
    println!("report: {}", args.report.report.display());
    Ok(())
}

fn print(report: &Report) {
    println!("\n{:<34} {:>10} {:>10} {:>10} {:>16}", "", "p50 ms", "p95 ms", "p99 ms", "goal");
    row("polling like Go", &report.baseline, "");
    row("cold: plugin start to reply", &report.cold.total, "");
    row("restored: plugin start to reply", &report.restored.total, "p50 0.4 of cold");
    row("hot: plugin start to reply", &report.hot.total, "p50 30, p99 100");
    for (name, starts) in [("cold", &report.cold), ("restored", &report.restored), ("hot", &report.hot)] {
        row(&format!("overhead, {name}"), &starts.overhead, "p99 20");
    }
    row("DeleteInstance", &report.delete_instance, "500");
    for (disk, p) in &report.clone {
        row(&format!("clone, {}", disk.trim()), p, "15");
    }
    println!("restored p50 of cold p50: {:.2} (goal 0.40)", report.restored_of_cold);
    println!("slowest of ten simultaneous claims: {:.0?} ms (goal 250)", report.ten_at_once_ms);
    println!("\nstages, p50 ms:");
    for (name, starts) in [("cold", &report.cold), ("restored", &report.restored), ("hot", &report.hot)] {
        let stages: Vec<String> = starts.stages_ms.iter().map(|(s, ms)| format!("{s} {ms:.1}")).collect();
        println!("  {name:<10} {}", stages.join(", "));
    }
}
