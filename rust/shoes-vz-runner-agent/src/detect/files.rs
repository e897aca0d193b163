//! The files that the runner writes: `.runner`, `_diag`.
//!
//! Their formats are those of actions/runner: `.runner` is `RunnerSettings` as JSON (src/Runner.Common/ConfigurationStore.cs), with a
//! byte order mark; the worker's log has `Job message:` and the message as indented JSON (src/Runner.Worker/Worker.cs),
//! then `Job ID <id>` (JobRunner.cs); every entry begins with `[<UTC time> <LEVEL> <source>]`.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde::Deserialize;
use serde_json::Value;
use shoes_vz_model::guest::JobInfo;
use shoes_vz_process::files;

/// The part of a log that is read, in bytes: job messages contain steps and variables.
const MAX_LOG: u64 = 4 << 20;

/// The fields of `.runner` that are used.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DotRunner {
    /// `agentName`
    pub name: String,
    /// `owner/repo` or `owner`, from `gitHubUrl`.
    pub repository: String,
}

pub fn parse_dot_runner(text: &str) -> Option<DotRunner> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Settings {
        agent_name: String,
        #[serde(default, rename = "gitHubUrl")]
        github_url: String,
    }
    let settings: Settings = serde_json::from_str(text.trim_start_matches('\u{feff}')).ok()?;
    let url = settings.github_url.split_once("://").map_or("", |(_, rest)| rest);
    let repository = url.split_once('/').map_or("", |(_, path)| path).trim_matches('/').to_owned();
    Some(DotRunner { name: settings.agent_name, repository })
}

/// Parses a worker's log, which may still be growing. `None` until it names a job.
pub fn parse_worker_log(text: &str) -> Option<JobInfo> {
    let mut job = JobInfo::default();
    if let Some((_, after)) = text.split_once("Job message:")
        && let Some(Ok(message)) = serde_json::Deserializer::from_str(after).into_iter::<Value>().next()
    {
        let text = |key: &str| message[key].as_str().unwrap_or_default().to_owned();
        job.job_id = text("jobId");
        job.job_name = text("jobDisplayName");
        let github = message["contextData"]["github"]["d"].as_array();
        let of_github = |key: &str| {
            let entry = github.into_iter().flatten().find(|entry| entry["k"] == key);
            entry.and_then(|entry| entry["v"].as_str()).unwrap_or_default().to_owned()
        };
        job.run_id = of_github("run_id");
        job.run_number = of_github("run_number");
        job.workflow_name = of_github("workflow");
    }
    if let Some((before, id)) = text.split_once(" INFO JobRunner] Job ID ") {
        job.started_at = before.rsplit('[').next().and_then(|time| time.parse().ok());
        if job.job_id.is_empty() {
            job.job_id = id.lines().next().unwrap_or_default().trim().to_owned();
        }
    }
    (!job.job_id.is_empty()).then_some(job)
}

#[derive(Debug, Default)]
pub(super) struct Files {
    /// The worker's log and its job, once that is complete.
    job: Option<(PathBuf, JobInfo)>,
    has_run: bool,
}

pub(super) struct Found {
    pub(super) runner: Option<DotRunner>,
    pub(super) job: Option<JobInfo>,
    pub(super) has_run: bool,
}

impl Files {
    pub(super) fn scan(&mut self, paths: &[PathBuf], setup_since: Option<SystemTime>, worker: bool) -> Found {
        let runner = paths.iter().find_map(|path| {
            parse_dot_runner(&files::read_text(&path.join(".runner"), MAX_DOT_RUNNER).ok()?)
        });
        // Older logs are part of the image.
        let since = setup_since.or_else(booted);
        let logs = |prefix: &str| {
            let mut logs: Vec<(SystemTime, PathBuf)> =
                paths.iter().flat_map(|path| logs(&path.join("_diag"), prefix, since)).collect();
            logs.sort();
            logs.pop().map(|(_, path)| path)
        };
        let worker_log = logs("Worker_");
        let job = worker_log.as_deref().and_then(|log| self.job(log));
        if !self.has_run {
            // Stays true: an ephemeral runner removes its files.
            let listened = || logs("Runner_").is_some_and(|log| read(&log).contains("Listening for Jobs"));
            self.has_run = worker || worker_log.is_some() || listened();
        }
        Found { runner, job, has_run: self.has_run }
    }

    fn job(&mut self, log: &Path) -> Option<JobInfo> {
        match &self.job {
            Some((known, job)) if known == log => Some(job.clone()),
            _ => {
                let job = parse_worker_log(&read(log))?;
                // Without its start time the log is not complete yet.
                if job.started_at.is_some() {
                    self.job = Some((log.to_owned(), job.clone()));
                }
                Some(job)
            }
        }
    }
}

/// Longest `.runner` that is read, in bytes. It has a few lines, but the runner's jobs may write to it.
const MAX_DOT_RUNNER: u64 = 256 << 10;

fn logs(diag: &Path, prefix: &str, since: Option<SystemTime>) -> Vec<(SystemTime, PathBuf)> {
    let Ok(entries) = fs::read_dir(diag) else { return Vec::new() };
    entries
        .flatten()
        .filter(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            name.starts_with(prefix) && name.ends_with(".log")
        })
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .filter(|(modified, _)| since.is_none_or(|since| *modified >= since))
        .collect()
}

fn read(log: &Path) -> String {
    let mut bytes = Vec::new();
    // A log that was removed or cannot be read counts as empty.
    let _ = fs::File::open(log).and_then(|file| file.take(MAX_LOG).read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(target_os = "linux")]
fn booted() -> Option<SystemTime> {
    let uptime = fs::read_to_string("/proc/uptime").ok()?;
    let seconds: f64 = uptime.split(' ').next()?.parse().ok()?;
    SystemTime::now().checked_sub(std::time::Duration::try_from_secs_f64(seconds).ok()?)
}

#[cfg(not(target_os = "linux"))]
fn booted() -> Option<SystemTime> {
    SystemTime::UNIX_EPOCH.checked_add(std::time::Duration::from_secs(sysinfo::System::boot_time().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LOG: &str = r#"[2026-01-02 03:04:04Z INFO Worker] Waiting to receive the job message from the channel.
[2026-01-02 03:04:05Z INFO Worker] Job message:
 {
  "jobDisplayName": "build (macos)",
  "jobId": "ca395085-040a-526b-2ce8-bdc85f692774",
  "contextData": { "github": { "t": 2, "d": [
    { "k": "run_id", "v": "42" }, { "k": "run_number", "v": "7" }, { "k": "workflow", "v": "CI" } ] } }
}
[2026-01-02 03:04:06Z INFO JobRunner] Job ID ca395085-040a-526b-2ce8-bdc85f692774
[2026-01-02 03:04:06Z INFO JobRunner] Run all job steps.
"#;

    #[test]
    fn a_job_is_read_from_the_workers_log() {
        let job = parse_worker_log(LOG).unwrap();
        assert_eq!(job.job_id, "ca395085-040a-526b-2ce8-bdc85f692774");
        assert_eq!((job.job_name.as_str(), job.workflow_name.as_str()), ("build (macos)", "CI"));
        assert_eq!((job.run_id.as_str(), job.run_number.as_str()), ("42", "7"));
        assert_eq!(job.started_at.unwrap().to_string(), "2026-01-02T03:04:06Z");
    }

    #[test]
    fn a_log_without_a_message_still_names_the_job() {
        let job = parse_worker_log("[2026-01-02 03:04:06Z INFO JobRunner] Job ID abc\n").unwrap();
        assert_eq!((job.job_id.as_str(), job.job_name.as_str()), ("abc", ""));
    }

    #[test]
    fn dot_runner_is_read_with_and_without_a_byte_order_mark() {
        let text = r#"{"agentId":1,"agentName":"r-1","serverUrl":"https://pipelines.x/a","gitHubUrl":"https://github.com/o/r"}"#;
        let expected = DotRunner { name: "r-1".into(), repository: "o/r".into() };
        assert_eq!(parse_dot_runner(text).as_ref(), Some(&expected));
        assert_eq!(parse_dot_runner(&format!("\u{feff}{text}")), Some(expected));
        assert_eq!(parse_dot_runner("{"), None);
    }

    proptest! {
        #[test]
        fn a_log_cut_anywhere_gives_no_wrong_job(at in 0..LOG.len()) {
            let full = parse_worker_log(LOG).unwrap();
            if let Some(cut) = parse_worker_log(&LOG[..at]) {
                prop_assert!(full.job_id.starts_with(&cut.job_id));
                prop_assert!(cut.job_name == full.job_name || cut.job_name.is_empty());
            }
        }

        #[test]
        fn no_log_makes_the_parsers_panic(text: String) {
            let _ = parse_worker_log(&format!("Job message:{text}"));
            let _ = parse_dot_runner(&text);
        }
    }
}
