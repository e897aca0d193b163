//! Runner detection with real processes that have the names of the runner's.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::path::Path;

use common::{Agent, Guest, script};
use shoes_vz_model::guest::RunnerActivity::{self, Finished, Idle, Offline, Preparing, Running};

/// A minimal runner. Each step waits for a file, so that the test controls it.
fn lay_out(runner: &Path) {
    let wait = "until [ -e $1 ]; do read -t 0.01 <> <(:); done";
    script(
        &runner.join("config.sh"),
        "#!/bin/bash\nmkdir -p _diag\nprintf '\\357\\273\\277{\"agentName\":\"r-1\",\"gitHubUrl\":\"https://github.com/o/r\"}' > .runner\n",
    );
    script(
        &runner.join("bin/Runner.Listener"),
        &format!(
            "#!/bin/bash\nw() {{ {wait}; }}\nlog=_diag/Runner_1-utc.log\necho '[2026-01-02 03:04:05Z INFO Terminal] WRITE LINE: Listening for Jobs' > $log\n\
             w job\n./bin/Runner.Worker\necho done >> $log\nw leave\nrm .runner\n"
        ),
    );
    script(
        &runner.join("bin/Runner.Worker"),
        &format!(
            "#!/bin/bash\nw() {{ {wait}; }}\nlog=_diag/Worker_1-utc.log\n\
             echo '[2026-01-02 03:04:05Z INFO Worker] Job message:' > $log\n\
             echo ' {{\"jobId\":\"j-1\",\"jobDisplayName\":\"build\"}}' >> $log\n\
             echo '[2026-01-02 03:04:06Z INFO JobRunner] Job ID j-1' >> $log\nw finish\n"
        ),
    );
}

fn setup_script(runner: &Path) -> bytes::Bytes {
    format!("cd {}; w() {{ until [ -e $1 ]; do read -t 0.01 <> <(:); done; }}; ./config.sh; w listen; ./bin/Runner.Listener run", runner.display())
        .into()
}

async fn becomes(agent: &Agent, wanted: RunnerActivity) -> shoes_vz_model::guest::Status {
    agent.until(|s| s.state == wanted).await.pop().unwrap()
}

#[tokio::test]
async fn fault_23_a_runner_is_followed_from_its_configuration_to_its_end() {
    let guest = Guest::new();
    let agent = guest.agent(&[]).await;
    let status = becomes(&agent, Offline).await;
    assert_eq!((status.runner_name.as_str(), status.job), ("", None));
    let runner = guest.runner();
    lay_out(&runner);
    let go = |file: &str| std::fs::write(runner.join(file), "").unwrap();
    agent.api().put_setup("r", setup_script(&runner)).await.unwrap();
    let status = becomes(&agent, Preparing).await;
    assert_eq!((status.runner_name.as_str(), status.repository.as_str()), ("r-1", "o/r"));
    go("listen");
    becomes(&agent, Idle).await;
    go("job");
    becomes(&agent, Running).await;
    let seen = agent
        .until(|s| s.job.as_ref().is_some_and(|j| !j.job_name.is_empty() && j.started_at.is_some()))
        .await;
    let job = seen.last().unwrap().job.clone().unwrap();
    assert_eq!((job.job_id.as_str(), job.job_name.as_str()), ("j-1", "build"));
    assert_eq!(job.started_at.unwrap().to_string(), "2026-01-02T03:04:06Z");
    go("finish");
    becomes(&agent, Idle).await;
    go("leave");
    let status = becomes(&agent, Finished).await;
    assert_eq!(status.runner_name, "r-1", "an ephemeral runner removes .runner; its name is kept");
    let status = agent.until(|s| s.setup.exit_code == Some(0)).await.pop().unwrap();
    assert_eq!(status.state, Finished);
}

#[tokio::test]
async fn each_change_is_pushed_at_once() {
    let guest = Guest::new();
    let agent = guest.agent(&[]).await;
    let runner = guest.runner();
    lay_out(&runner);
    for file in ["listen", "job", "finish", "leave"] {
        std::fs::write(runner.join(file), "").unwrap();
    }
    let before = tokio::time::Instant::now();
    agent.api().put_setup("r", setup_script(&runner)).await.unwrap();
    becomes(&agent, Finished).await;
    // Polling alone would take a second.
    assert!(before.elapsed() < std::time::Duration::from_millis(900), "{:?}", before.elapsed());
}

#[tokio::test]
async fn a_guest_agent_started_after_the_runners_end_reports_it_as_finished() {
    let guest = Guest::new();
    let first = guest.agent(&[]).await;
    let runner = guest.runner();
    lay_out(&runner);
    for file in ["listen", "job", "finish", "leave"] {
        std::fs::write(runner.join(file), "").unwrap();
    }
    first.api().put_setup("r", setup_script(&runner)).await.unwrap();
    becomes(&first, Finished).await;
    first.kill().await;
    let second = guest.agent(&[]).await;
    becomes(&second, Finished).await;
}

#[tokio::test]
async fn logs_in_the_image_do_not_count_as_a_runner() {
    let guest = Guest::new();
    let runner = guest.runner();
    lay_out(&runner);
    std::fs::create_dir(runner.join("_diag")).unwrap();
    let log = runner.join("_diag/Worker_0-utc.log");
    std::fs::write(&log, "[2020-01-01 00:00:00Z INFO JobRunner] Job ID old\n").unwrap();
    let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_577_836_800);
    std::fs::File::open(&log).unwrap().set_modified(old).unwrap();
    let agent = guest.agent(&[]).await;
    let fresh = runner.join(".runner");
    std::fs::write(fresh, "{\"agentName\":\"n\"}").unwrap();
    // Preparing because of .runner, and not Finished because of the old log.
    let seen = agent.until(|s| s.state == Preparing).await;
    assert!(seen.iter().all(|s| s.state != Finished && s.job.is_none()), "{seen:?}");
}
