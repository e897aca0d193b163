//! `make bench`: how long starts, deletions and clones take, on real guests, and what of it is our own overhead.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::Context as _;
use clap::Parser;
use serde::Serialize;
use shoes_vz_testkit::{
    fleet::{Fleet, Options},
    report::{self, millis},
    script::held,
    stages::stages_ms,
};
use shoes_vz_vm::{clone::make_bundle, template::TemplateDir};

/// Measures on real guests; a quiet machine gives true numbers.
#[derive(Debug, Parser)]
struct Args {
    /// The guest template (`make template`).
    #[arg(long)]
    template: PathBuf,
    /// Where the numbers go.
    #[arg(long)]
    report: PathBuf,
    /// Starts that are measured.
    #[arg(long, default_value_t = 15)]
    rounds: usize,
}

#[derive(Debug, Serialize)]
struct Report {
    cold: Cold,
    delete_instance: Percentiles,
    clone: BTreeMap<String, Percentiles>,
}

#[derive(Debug, Serialize)]
struct Cold {
    #[serde(flatten)]
    total: Percentiles,
    overhead_p50_ms: f64,
    overhead_p99_ms: f64,
    /// Boot to SSH-ready: start, guest and ssh.
    boot_to_ssh: Percentiles,
    stages_ms: BTreeMap<&'static str, f64>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Percentiles {
    p50_ms: f64,
    p95_ms: f64,
    p99_ms: f64,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let template = args.template.canonicalize().context("the template's directory")?;
    let fleet = Fleet::start_with(Options { template: template.clone(), ..Options::default() }).await;

    let mut totals = Vec::new();
    let mut overheads = Vec::new();
    let mut boots = Vec::new();
    let mut deletions = Vec::new();
    let mut stages: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
    let script = held();
    for round in 0..args.rounds {
        let name = format!("bench-{round}");
        let asked = Instant::now();
        let added = fleet.add(&name, &script).await?;
        let total = millis(asked.elapsed());
        let view = fleet.until(&name, |v| stages_ms(v).contains_key("ssh")).await;
        let spent = stages_ms(&view);
        let of = |names: &[&str]| names.iter().filter_map(|n| spent.get(n)).sum::<f64>();
        totals.push(total);
        overheads.push(total - of(&["clone", "start", "guest", "ssh"]));
        boots.push(of(&["start", "guest", "ssh"]));
        for (stage, ms) in
            spent.into_iter().filter(|(s, _)| ["queue", "clone", "start", "guest", "ssh"].contains(s))
        {
            stages.entry(stage).or_default().push(ms);
        }
        let asked = Instant::now();
        fleet.delete(&added.cloud_id).await?;
        deletions.push(millis(asked.elapsed()));
        eprintln!("round {:>3}/{}: {total:.0} ms", round + 1, args.rounds);
    }
    fleet.finish().await;

    let report = Report {
        cold: Cold {
            total: percentiles(&mut totals),
            overhead_p50_ms: percentiles(&mut overheads).p50_ms,
            overhead_p99_ms: percentiles(&mut overheads).p99_ms,
            boot_to_ssh: percentiles(&mut boots),
            stages_ms: stages.into_iter().map(|(s, mut ms)| (s, percentiles(&mut ms).p50_ms)).collect(),
        },
        delete_instance: percentiles(&mut deletions),
        clone: clones(&template)?,
    };
    print(&report);
    report::write(&args.report, &report)?;
    println!("numbers: {}", args.report.display());
    Ok(())
}

/// Clone times of templates whose disks are of different sizes: they must not depend on it.
fn clones(template: &Path) -> anyhow::Result<BTreeMap<String, Percentiles>> {
    let dir = tempfile::tempdir()?;
    let mut results = BTreeMap::new();
    for gib in [1_u64, 16, 256] {
        let copy = dir.path().join(format!("template-{gib}"));
        std::fs::create_dir(&copy)?;
        for entry in std::fs::read_dir(template)? {
            let entry = entry?;
            if entry.file_name() != "Disk.img" {
                std::os::unix::fs::symlink(entry.path().canonicalize()?, copy.join(entry.file_name()))?;
            }
        }
        std::fs::File::create(copy.join("Disk.img"))?.set_len(gib << 30)?;
        let opened = TemplateDir::open(&copy)?;
        let spec = shoes_vz_vm::spec::VmSpec::of_template(&opened);
        let mut times = Vec::new();
        for n in 0..100 {
            let begun = Instant::now();
            make_bundle(&opened, &dir.path().join(format!("{gib}-{n}.bundle")), &spec)?;
            times.push(millis(begun.elapsed()));
        }
        results.insert(format!("{gib:>3} GiB disk"), percentiles(&mut times));
    }
    Ok(results)
}

/// Nearest-rank percentiles.
fn percentiles(samples: &mut [f64]) -> Percentiles {
    samples.sort_by(f64::total_cmp);
    let at = |p: f64| {
        let rank = (p * samples.len() as f64).ceil() as usize;
        samples.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
    };
    Percentiles { p50_ms: at(0.50), p95_ms: at(0.95), p99_ms: at(0.99) }
}

fn print(report: &Report) {
    println!("\n{:<28} {:>10} {:>10} {:>10} {:>12}", "", "p50 ms", "p95 ms", "p99 ms", "goal p50");
    let row = |name: &str, p: &Percentiles, goal: &str| {
        println!("{name:<28} {:>10.2} {:>10.2} {:>10.2} {goal:>12}", p.p50_ms, p.p95_ms, p.p99_ms);
    };
    row("AddInstance, cold", &report.cold.total, "");
    row("boot to SSH-ready", &report.cold.boot_to_ssh, "3500");
    println!(
        "{:<28} {:>10.2} {:>10} {:>10.2} {:>12}",
        "AddInstance's own overhead", report.cold.overhead_p50_ms, "", report.cold.overhead_p99_ms, "20"
    );
    row("DeleteInstance", &report.delete_instance, "500");
    for (disk, p) in &report.clone {
        row(&format!("clone, {}", disk.trim()), p, "15");
    }
    println!("\nstages, p50 ms:");
    for (stage, ms) in &report.cold.stages_ms {
        println!("  {stage:<10} {ms:>10.1}");
    }
}
