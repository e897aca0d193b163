//! The arguments and the report of the demo and the benchmarks.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::Context as _;
use serde::Serialize;

/// Arguments of the demo and the benchmarks.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// Guest template (see `make template`)
    #[arg(long)]
    template: PathBuf,
    /// Output file for the report
    #[arg(long)]
    pub report: PathBuf,
}

impl ReportArgs {
    /// The absolute path of the template.
    pub fn template(&self) -> anyhow::Result<PathBuf> {
        self.template
            .canonicalize()
            .with_context(|| format!("opening the template {}", self.template.display()))
    }
}

/// A duration in milliseconds.
pub fn millis(d: Duration) -> f64 {
    d.as_secs_f64() * 1000.0
}

/// Writes a report as JSON, and creates its directory.
pub fn write(path: &Path, report: &impl Serialize) -> anyhow::Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    }
    fs::write(path, serde_json::to_vec_pretty(report)?).with_context(|| format!("writing {}", path.display()))
}
