//! `shoes-vz-simulate`: a range of seeds, and how to repeat the one that fails.

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

/// Runs server and agents under faults drawn from seeds.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// A..B: from A to B, B not included; or a single one.
    #[arg(default_value = "0..2000", value_parser = range)]
    seeds: (u64, u64),
    /// Threads; one seed runs on one.
    #[arg(long, default_value_t = std::thread::available_parallelism().map_or(1, std::num::NonZero::get))]
    threads: usize,
    /// Prints everything that happens; for single seeds.
    #[arg(long)]
    log: bool,
    /// Goes on after a seed that fails.
    #[arg(long)]
    keep_going: bool,
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let number = |text: &str| text.trim().parse::<u64>().map_err(|e| format!("{text:?}: {e}"));
    match text.split_once("..") {
        Some((from, to)) => Ok((number(from)?, number(to)?)),
        None => number(text).map(|seed| (seed, seed + 1)),
    }
    .and_then(
        |(from, to)| if from < to { Ok((from, to)) } else { Err(format!("{text:?} is no seed at all")) },
    )
}

/// Between two lines that say how far it is.
const SAY_EVERY: Duration = Duration::from_secs(10);

fn main() -> anyhow::Result<ExitCode> {
    let args = Args::parse();
    if std::env::var_os("SHOESVZ_LOG").is_some() {
        // Without the time: it is not this world's.
        let log = tracing_subscriber::fmt().without_time().with_ansi(false);
        log.with_env_filter(tracing_subscriber::EnvFilter::from_env("SHOESVZ_LOG")).init();
    }
    let (from, to) = args.seeds;
    let next = AtomicU64::new(from);
    let (done, faults, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let broken: Mutex<Option<anyhow::Error>> = Mutex::new(None);
    let said = Mutex::new(Instant::now());
    std::thread::scope(|scope| {
        for _ in 0..args.threads.max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= to || stop.load(Ordering::Relaxed) {
                        return;
                    }
                    let report =
                        match shoes_vz_simulation::run(seed, Options { sabotage: None, log: args.log }) {
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
                        tell(&report);
                        if !args.keep_going {
                            stop.store(true, Ordering::Relaxed);
                        }
                    }
                    progress(&said, seeds, to - from, total);
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

fn tell(report: &Report) {
    println!("seed {} failed:", report.seed);
    for words in &report.violations {
        println!("  - {words}");
    }
    println!("again, with everything that happens: make simulate SEEDS={} LOG=1", report.seed);
}

fn progress(said: &Mutex<Instant>, done: u64, of: u64, faults: u64) {
    let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
    if said.elapsed() < SAY_EVERY && !std::io::stderr().is_terminal() {
        return;
    }
    let mut err = std::io::stderr();
    // Nobody is there to be told that this cannot be told.
    let _ = if err.is_terminal() {
        write!(err, "\r{done} of {of} seeds, {faults} faults injected")
    } else {
        writeln!(err, "{done} of {of} seeds, {faults} faults injected")
    };
    *said = Instant::now();
}
