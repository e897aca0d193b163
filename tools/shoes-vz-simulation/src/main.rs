//! `shoes-vz-simulate`: runs a range of seeds, and says how to repeat a failed one.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use clap::Parser;
use shoes_vz_simulation::{Options, Report};

/// Run server and agents under faults drawn from seeds
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Seeds: A..B (without B), or a single seed
    #[arg(default_value = "0..2000", value_parser = range)]
    seeds: (u64, u64),
    /// Number of threads; each seed runs on one
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, std::num::NonZero::get))]
    threads: usize,
    /// Print every event; useful for single seeds
    #[arg(long)]
    log: bool,
    /// Continue after a seed that fails
    #[arg(long)]
    keep_going: bool,
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let number = |text: &str| text.trim().parse::<u64>().map_err(|e| format!("{text:?}: {e}"));
    match text.split_once("..") {
        Some((from, to)) => Ok((number(from)?, number(to)?)),
        None => number(text).map(|seed| (seed, seed + 1)),
    }
    .and_then(|(from, to)| if from < to { Ok((from, to)) } else { Err(format!("{text:?} contains no seed")) })
}

/// Between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if std::env::var_os("SHOESVZ_LOG").is_some() {
        // Without timestamps, which are not those of the simulation.
        let log = tracing_subscriber::fmt().without_time().with_ansi(false);
        log.with_env_filter(tracing_subscriber::EnvFilter::from_env("SHOESVZ_LOG")).init();
    }
    let (from, to) = args.seeds;
    let next = AtomicU64::new(from);
    let (done, faults, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let broken: Mutex<Option<anyhow::Error>> = Mutex::new(None);
    let last_shown = Mutex::new(Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let report =
                        match shoes_vz_simulation::run(seed, Options { mutation: None, log: args.log }) {
                            Ok(report) => report,
                            Err(error) => {
                                *broken.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                                stop.store(true, Ordering::Relaxed);
                                return;
                            }
                        };
                    let seeds = done.fetch_add(1, Ordering::Relaxed) + 1;
                    let total =
                        faults.fetch_add(report.counts.faults, Ordering::Relaxed) + report.counts.faults;
                    if args.log {
                        report.log.iter().for_each(|line| println!("{line}"));
                    }
                    if !report.violations.is_empty() {
                        failed.fetch_add(1, Ordering::Relaxed);
                        print_failure(&report);
                        if !args.keep_going {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                    progress(&last_shown, seeds, to - from, total);
                }
            });
        }
    });
    if let Some(error) = broken.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    let failed = failed.into_inner();
    println!("{} seeds, {} faults injected, {failed} violations", done.into_inner(), faults.into_inner());
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_failure(report: &Report) {
    println!("seed {} failed:", report.seed);
    for violation in &report.violations {
        println!("  - {violation}");
    }
    println!("repeat it with every event: make simulate SEEDS={} LOG=1", report.seed);
}

fn progress(last_shown: &Mutex<Instant>, done: u64, of: u64, faults: u64) {
    let mut last_shown = last_shown.lock().unwrap_or_else(PoisonError::into_inner);
    if last_shown.elapsed() < PROGRESS_INTERVAL && !std::io::stderr().is_terminal() {
        return;
    }
    let mut err = std::io::stderr();
    // A failure to write progress cannot be reported anywhere.
    let _ = if err.is_terminal() {
        write!(err, "\r{done} of {of} seeds, {faults} faults injected")
    } else {
        writeln!(err, "{done} of {of} seeds, {faults} faults injected")
    };
    *last_shown = Instant::now();
}
