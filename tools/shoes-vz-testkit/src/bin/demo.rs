//! `make demo`: one job on a real VM, from AddInstance to an empty host; prints every stage as it happens.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::Stdio,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use nix::sys::signal::Signal;
use serde::Serialize;
use shoes_vz_proto::convert::stage_from_wire;
use shoes_vz_proto::{agent::EndKind, fleet::RunnerView};
use shoes_vz_testkit::{
    fleet::{Fleet, Options, end_of},
    leftover::{self, LeftOver},
    report::{self, ReportArgs, millis},
    script::Job,
    stages::{follow, stages_ms},
};
use tokio::process::Command;

/// Create a VM, run one job in it, and show that nothing is left
#[derive(Debug, Parser)]
struct Args {
    #[command(flatten)]
    report: ReportArgs,
}

/// `target/demo/report.json`.
#[derive(Debug, Serialize)]
struct Report {
    /// From the start of the client to its answer.
    add_instance_ms: f64,
    stages_ms: BTreeMap<&'static str, f64>,
    ssh_ready: bool,
    job_output: String,
    /// From the start of the client to its answer, after the job has ended.
    delete_instance_ms: f64,
    left_over: LeftOver,
}

const RUNNER: &str = "demo";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let Args { report: args } = Args::parse();
    let template = args.template()?;
    let begun = Instant::now();
    let log = move |what: &str| println!("[{:7.3} s] {what}", begun.elapsed().as_secs_f64());

    let mut fleet = Fleet::start_with(Options { template, ..Options::default() }).await;
    log(&format!("server on {} and agent are up", fleet.grpc_addr()));

    let script = fleet.path().join("setup.sh");
    let job = Job::new("echo \"hello from $(hostname), $(uname -sr), as $(id -un)\"");
    std::fs::write(&script, job.setup_script(RUNNER)).context("writing the setup script")?;

    let shown = Arc::new(Mutex::new(Shown::default()));
    let setup_log = Arc::new(Mutex::new(SetupLog::new(fleet.runners_path())));
    let following = tokio::spawn(follow(&fleet, RUNNER, {
        let (shown, setup_log) = (Arc::clone(&shown), Arc::clone(&setup_log));
        move |view| {
            if let Ok(mut shown) = shown.lock() {
                shown.show(view, &log);
            }
            if let Ok(mut setup_log) = setup_log.lock() {
                setup_log.open_once(view);
            }
        }
    }));

    log("AddInstance, as myshoes calls it for a queued job");
    let called = Instant::now();
    let script = script.to_str().context("the script's path is UTF-8")?;
    let added = client(
        &fleet,
        &["add", "--runner-name", RUNNER, "--resource-type", "nano", "--setup-script", script],
    )
    .await?;
    let add_instance_ms = millis(called.elapsed());
    let cloud_id = added["cloud_id"].as_str().context("AddInstance returned no cloud_id")?.to_owned();
    log(&format!("AddInstance answered {cloud_id} after {add_instance_ms:.0} ms: SSH is ready"));

    let last = tokio::time::timeout(Duration::from_secs(300), following)
        .await
        .context("the job did not end within 300 s")?
        .context("following the runner")??;
    let end = end_of(&last);
    ensure!(end.kind() == EndKind::Finished, "the runner did not finish its job: {}", end.reason);
    let job_output = setup_log.lock().map_err(|_| anyhow::anyhow!("reading the log failed"))?.job_output()?;
    for line in job_output.lines() {
        log(&format!("the job printed: {line}"));
    }

    let called = Instant::now();
    client(&fleet, &["delete", &cloud_id]).await?;
    let delete_instance_ms = millis(called.elapsed());
    log(&format!("DeleteInstance answered after {delete_instance_ms:.0} ms"));

    fleet.end_agent(Signal::SIGTERM).await;
    fleet.end_server(Signal::SIGTERM).await;
    let left_over = leftover::of(&fleet.runners_path());
    let report = Report {
        add_instance_ms,
        stages_ms: stages_ms(&last),
        ssh_ready: stages_ms(&last).contains_key("ssh"),
        job_output,
        delete_instance_ms,
        left_over: left_over.clone(),
    };
    report::write(&args.report, &report)?;
    log(&format!("left over: {} bundles, {} processes", left_over.bundles, left_over.processes));
    println!("report: {}", args.report.display());
    ensure!(left_over == LeftOver::NONE, "something was left over");
    Ok(())
}

/// Runs the real client; returns its JSON answer.
async fn client(fleet: &Fleet, args: &[&str]) -> anyhow::Result<serde_json::Value> {
    let output = Command::new(fleet.bins().path("shoes-vz-client"))
        .args(["--server", fleet.grpc_addr(), "--json"])
        .args(args)
        .stdin(Stdio::null())
        .output()
        .await
        .context("starting shoes-vz-client")?;
    if !output.status.success() {
        bail!("shoes-vz-client {}: {}", args[0], String::from_utf8_lossy(&output.stderr).trim());
    }
    if output.stdout.is_empty() {
        return Ok(serde_json::Value::Null);
    }
    serde_json::from_slice(&output.stdout).context("shoes-vz-client --json prints JSON")
}

/// The stages that have been printed.
#[derive(Debug, Default)]
struct Shown {
    stages: Vec<i32>,
    ended: bool,
}

impl Shown {
    fn show(&mut self, view: &RunnerView, log: &impl Fn(&str)) {
        let Some(runner) = &view.runner else { return };
        for timing in &runner.stages {
            if self.stages.contains(&timing.stage) {
                continue;
            }
            self.stages.push(timing.stage);
            if let Some(stage) = stage_from_wire(timing.stage) {
                log(&format!("  {:<10} {:>9.1} ms", stage.as_str(), timing.duration_us as f64 / 1000.0));
            }
        }
        if let (false, Some(end)) = (self.ended, &runner.end) {
            self.ended = true;
            log(&format!("  {:<10} {}", "deleted", end.reason));
        }
    }
}

/// The setup script's log, kept open so that it can be read after its bundle was removed.
#[derive(Debug)]
struct SetupLog {
    runners: PathBuf,
    file: Option<std::fs::File>,
}

impl SetupLog {
    fn new(runners: PathBuf) -> Self {
        Self { runners, file: None }
    }

    fn open_once(&mut self, view: &RunnerView) {
        if let (None, Some(runner)) = (&self.file, &view.runner) {
            let path = self.runners.join(format!("{}.bundle/setup.log", runner.runner_id));
            self.file = std::fs::File::open(path).ok();
        }
    }

    /// The lines that the job printed.
    fn job_output(&mut self) -> anyhow::Result<String> {
        let file = self.file.as_mut().context("the log of the setup script was never opened")?;
        let text = std::io::read_to_string(file).context("reading the log of the setup script")?;
        let lines: Vec<_> = text.lines().filter(|l| l.contains("hello from")).collect();
        ensure!(!lines.is_empty(), "the output of the job is not in the log of the setup script:\n{text}");
        Ok(lines.join("\n"))
    }
}
