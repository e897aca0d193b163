//! The setup script, run by the real program, which some tests kill.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::{os::unix::fs::PermissionsExt, time::Duration};

use bytes::Bytes;
use common::{Agent, Guest, LONG, exists};
use futures::{StreamExt, TryStreamExt};
use http::StatusCode;
use shoes_vz_model::guest::SetupPhase;
use tokio::time::timeout;

async fn log(agent: &Agent, offset: u64) -> Vec<u8> {
    let chunks = agent.api().setup_log(offset).try_collect::<Vec<Bytes>>();
    timeout(LONG, chunks).await.expect("the log ends").unwrap().concat()
}

#[tokio::test]
async fn a_script_runs_and_its_exit_code_and_output_are_kept() {
    let guest = Guest::new();
    let agent = guest.agent(&[]).await;
    assert_eq!(agent.api().setup().await.unwrap().phase, SetupPhase::None);
    let script = "echo out; echo err >&2; echo $HOME $USER; pwd; read -r x || echo no stdin; exit 3";
    let status = agent.api().put_setup("r-1", Bytes::from_static(script.as_bytes())).await.unwrap();
    assert_eq!(status.id, "r-1");
    let home = guest.path().join("home").canonicalize().unwrap();
    let home = home.display();
    let text = String::from_utf8(log(&agent, 0).await).unwrap();
    assert_eq!(text, format!("out\nerr\n{home} runner\n{home}\nno stdin\n"));
    let status = agent.api().setup().await.unwrap();
    assert_eq!(
        (status.phase, status.exit_code, status.log_bytes),
        (SetupPhase::Exited, Some(3), text.len() as u64)
    );
    assert_eq!(log(&agent, 4).await, text.as_bytes()[4..]);
    let state = guest.path().join("state");
    assert!(!state.join("script").exists(), "the script, with its token, is removed once it has exited");
    assert_eq!(std::fs::metadata(&state).unwrap().permissions().mode() & 0o777, 0o700);
    for file in std::fs::read_dir(state).unwrap() {
        let file = file.unwrap();
        assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.file_name());
    }
}

#[tokio::test]
async fn the_end_is_pushed_and_the_log_follows_what_is_written() {
    let guest = Guest::new();
    let agent = guest.agent(&[]).await;
    let go = guest.path().join("go");
    let script =
        format!("echo first; until [ -e {} ]; do read -t 0.01 <> <(:); done; echo second", go.display());
    agent.api().put_setup("r", script.into()).await.unwrap();
    let mut chunks = agent.api().setup_log(0);
    assert_eq!(timeout(LONG, chunks.next()).await.unwrap().unwrap().unwrap(), "first\n");
    let seen = agent.until(|s| s.setup.phase == SetupPhase::Running);
    assert_eq!(seen.await.last().unwrap().setup.exit_code, None);
    std::fs::write(go, "").unwrap();
    let before = tokio::time::Instant::now();
    assert_eq!(timeout(LONG, chunks.next()).await.unwrap().unwrap().unwrap(), "second\n");
    assert!(timeout(LONG, chunks.next()).await.unwrap().is_none());
    assert!(
        before.elapsed() < Duration::from_millis(900),
        "an event comes before the next poll: {:?}",
        before.elapsed()
    );
    agent.until(|s| s.setup.exit_code == Some(0)).await;
}

#[tokio::test]
async fn the_same_id_again_changes_nothing_and_another_is_refused() {
    let guest = Guest::new();
    let agent = guest.agent(&[]).await;
    let ran = guest.path().join("ran");
    let script: Bytes = format!("echo x >> {}", ran.display()).into();
    agent.api().put_setup("a", script.clone()).await.unwrap();
    agent.until(|s| s.setup.phase == SetupPhase::Exited).await;
    assert_eq!(agent.api().put_setup("a", script.clone()).await.unwrap().phase, SetupPhase::Exited);
    let error = agent.api().put_setup("b", script.clone()).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::CONFLICT));
    assert!(error.to_string().contains("\"a\""), "{error}");
    assert_eq!(std::fs::read_to_string(ran).unwrap(), "x\n", "it ran once");
    let error = agent.api().put_setup("a%20b", script).await.unwrap_err();
    assert_eq!(error.status(), Some(StatusCode::BAD_REQUEST));
}

#[tokio::test]
async fn a_script_of_two_mebibytes_is_accepted_and_output_that_is_not_text_is_unchanged() {
    let guest = Guest::new();
    let agent = guest.agent(&[]).await;
    let mut script = b"printf '\\377\\376\\000end'\n: ".to_vec();
    script.resize(2 << 20, b'x');
    script.extend_from_slice(b"\nexit 0\n");
    agent.api().put_setup("big", script.into()).await.unwrap();
    assert_eq!(log(&agent, 0).await, b"\xff\xfe\0end");
    assert_eq!(agent.api().setup().await.unwrap().exit_code, Some(0));
}

#[tokio::test]
async fn a_restarted_guest_agent_follows_the_script_of_the_killed_one() {
    let guest = Guest::new();
    let first = guest.agent(&[]).await;
    let (began, go) = (guest.path().join("began"), guest.path().join("go"));
    let script = format!(
        "echo one; : > {}; until [ -e {} ]; do read -t 0.01 <> <(:); done; echo two; exit 7",
        began.display(),
        go.display()
    );
    first.api().put_setup("r", script.into()).await.unwrap();
    exists(began).await;
    first.kill().await;
    let second = guest.agent(&[]).await;
    let status = second.api().setup().await.unwrap();
    assert_eq!((status.id.as_str(), status.phase), ("r", SetupPhase::Running));
    std::fs::write(go, "").unwrap();
    assert_eq!(log(&second, 4).await, b"two\n");
    assert_eq!(second.api().setup().await.unwrap().exit_code, Some(7));
    second.kill().await;
    let third = guest.agent(&[]).await;
    assert_eq!(third.api().setup().await.unwrap().exit_code, Some(7));
    assert_eq!(log(&third, 0).await, b"one\ntwo\n");
}

#[tokio::test]
async fn a_killed_supervisor_ends_its_script_and_is_reported() {
    let guest = Guest::new();
    let agent = guest.agent(&[]).await;
    let began = guest.path().join("began");
    let script = format!("echo $PPID $$ > {0}.new; mv {0}.new {0}; exec sleep 100000", began.display());
    agent.api().put_setup("r", script.into()).await.unwrap();
    exists(began.clone()).await;
    let pids = std::fs::read_to_string(began).unwrap();
    let pids: Vec<i32> = pids.split_whitespace().map(|p| p.parse().unwrap()).collect();
    let kill = |pid, signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal);
    kill(pids[0], nix::sys::signal::Signal::SIGKILL).unwrap();
    agent.until(|s| s.setup.exit_code == Some(137)).await;
    let text = String::from_utf8(log(&agent, 0).await).unwrap();
    assert!(text.contains("supervisor was killed"), "{text}");
    // Its new parent may take a moment to reap it.
    let ended = async {
        while std::fs::read_to_string(format!("/proc/{}/stat", pids[1])).is_ok_and(|s| !s.contains(") Z")) {
            tokio::task::yield_now().await;
        }
    };
    timeout(LONG, ended).await.expect("the script is ended");
}

#[tokio::test]
async fn a_script_stored_but_never_started_is_started_by_the_next_guest_agent() {
    let guest = Guest::new();
    guest.agent(&[]).await.kill().await;
    let state = guest.path().join("state");
    for (file, text) in [("script", "echo late"), ("log", ""), ("id", "r")] {
        std::fs::write(state.join(file), text).unwrap();
    }
    let agent = guest.agent(&[]).await;
    agent.until(|s| s.setup.exit_code == Some(0)).await;
    assert_eq!(log(&agent, 0).await, b"late\n");
}
