//! Percentiles, and their row in the printed table.

use serde::Serialize;

#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Percentiles {
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
    pub(crate) p99_ms: f64,
}

impl Percentiles {
    /// By nearest rank.
    pub(crate) fn of(samples: &mut [f64]) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |p: f64| {
            let rank = (p * samples.len() as f64).ceil() as usize;
            samples.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
        };
        Self { p50_ms: at(0.50), p95_ms: at(0.95), p99_ms: at(0.99) }
    }
}

pub(crate) fn row(name: &str, p: &Percentiles, goal: &str) {
    println!("{name:<34} {:>10.2} {:>10.2} {:>10.2} {goal:>16}", p.p50_ms, p.p95_ms, p.p99_ms);
}
