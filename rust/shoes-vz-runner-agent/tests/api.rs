//! The API: exec, the token, the channel, the forward to sshd.

#![allow(clippy::unwrap_used)] // helpers of tests

mod common;

use std::time::Duration;

use base64::{Engine, prelude::BASE64_STANDARD};
use common::{Agent, Guest, LONG};
use shoes_vz_model::guest::{ExecRequest, ExecResponse};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

async fn exec(agent: &Agent, command: &str, args: &[&str], timeout_seconds: u64) -> ExecResponse {
    let args = args.iter().map(|a| (*a).to_owned()).collect();
    let request = ExecRequest { command: command.into(), args, timeout_seconds };
    timeout(LONG, agent.api().exec(request)).await.expect("exec answers").unwrap()
}

async fn raw(agent: &Agent, request: &str) -> String {
    let mut stream = TcpStream::connect(agent.addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    timeout(LONG, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test]
async fn exec_runs_a_program_without_a_shell() {
    let guest = Guest::new();
    let agent = guest.agent(&[]).await;
    let r = exec(&agent, "echo", &["$HOME; exit 1", "b"], 0).await;
    assert_eq!((r.output.as_str(), r.exit_code, r.error.as_str()), ("$HOME; exit 1 b\n", 0, ""));
    let r = exec(&agent, "/bin/sh", &["-c", "echo out; echo err >&2; echo out2; exit 5"], 0).await;
    assert_eq!((r.output.as_str(), r.exit_code), ("out\nerr\nout2\n", 5));
    let r = exec(&agent, "/bin/sh", &["-c", "kill -TERM $$"], 0).await;
    assert_eq!(r.exit_code, 143);
    let r = exec(&agent, "/nonexistent/program", &[], 0).await;
    assert_eq!(r.exit_code, -1);
    assert!(r.error.contains("/nonexistent/program"), "{}", r.error);
    // The guest agent's environment is not inherited.
    let r = exec(&agent, "env", &[], 0).await;
    assert!(!r.output.contains("GITHUB_JOB") && r.output.contains("USER=runner"), "{}", r.output);
}

#[tokio::test]
async fn exec_output_that_is_not_text_also_comes_in_base64() {
    let guest = Guest::new();
    let agent = guest.agent(&[]).await;
    let r = exec(&agent, "printf", &["\\377a"], 0).await;
    assert_eq!(r.output, "\u{fffd}a");
    assert_eq!(BASE64_STANDARD.decode(r.output_base64).unwrap(), b"\xffa");
}

#[tokio::test]
async fn exec_output_is_capped_and_says_so() {
    let guest = Guest::new();
    let agent = guest.agent(&[]).await;
    let r = exec(&agent, "head", &["-c", "17000000", "/dev/zero"], 0).await;
    assert_eq!((r.output.len(), r.exit_code), (16 << 20, 0));
    assert!(r.error.contains("cut after 16777216 bytes; 222784 more"), "{}", r.error);
}

#[tokio::test]
async fn exec_over_its_timeout_is_killed_with_everything_it_started() {
    let guest = Guest::new();
    let agent = guest.agent(&[]).await;
    let r = exec(&agent, "/bin/sh", &["-c", "echo $$; sleep 100000 & sleep 100000"], 1).await;
    assert_eq!(r.exit_code, 137);
    assert!(r.error.contains("killed after 1 s"), "{}", r.error);
    let group: i32 = r.output.trim().parse().unwrap();
    group_ends(group).await;
}

async fn group_ends(group: i32) {
    let ended = async {
        // The null signal to the group fails with ESRCH when no process is left; zombies wait for their new parent.
        while nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), None).is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(LONG, ended).await.expect("the group is killed");
}

#[tokio::test]
async fn exec_ends_with_its_program_even_if_a_child_holds_the_output_open() {
    let guest = Guest::new();
    let agent = guest.agent(&[]).await;
    let r = exec(&agent, "/bin/sh", &["-c", "sleep 100000 & echo $$"], 20).await;
    assert_eq!((r.exit_code, r.error.as_str()), (0, ""));
    let group: i32 = r.output.trim().parse().unwrap();
    nix::sys::signal::killpg(nix::unistd::Pid::from_raw(group), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_caller_that_hangs_up_ends_its_program() {
    let guest = Guest::new();
    let agent = guest.agent(&[]).await;
    let pid_file = guest.path().join("pid");
    let command = format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 100000", pid_file.display());
    let api = agent.api();
    let request =
        ExecRequest { command: "/bin/sh".into(), args: vec!["-c".into(), command], timeout_seconds: 60 };
    let call = tokio::spawn(async move { api.exec(request).await });
    common::exists(pid_file.clone()).await;
    call.abort();
    group_ends(std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap()).await;
}

#[tokio::test]
async fn fault_19_with_a_token_only_health_is_open() {
    let guest = Guest::new();
    let token = guest.path().join("token");
    std::fs::write(&token, "s3cret\n").unwrap();
    let agent = guest.agent(&["--token-file", token.to_str().unwrap()]).await;
    let get = |path: &str, header: &str| format!("GET {path} HTTP/1.0\r\n{header}\r\n");
    assert!(raw(&agent, &get("/health", "")).await.contains("\"status\":\"ok\""));
    for header in ["", "Authorization: Bearer wrong!\r\n", "Authorization: s3cret\r\n"] {
        let answer = raw(&agent, &get("/status", header)).await;
        assert!(answer.starts_with("HTTP/1.0 401") && !answer.contains("s3cret"), "{answer}");
    }
    let answer = raw(&agent, &get("/status", "Authorization: Bearer s3cret\r\n")).await;
    assert!(answer.starts_with("HTTP/1.0 200") && answer.contains("\"state\":1"), "{answer}");
    let answer = raw(&agent, "POST /exec HTTP/1.0\r\nContent-Length: 2\r\n\r\n{}").await;
    assert!(answer.starts_with("HTTP/1.0 401"), "{answer}");
}

#[tokio::test]
async fn fault_19_without_a_token_an_open_address_is_refused_with_the_reason() {
    let output =
        tokio::process::Command::new(common::EXE).args(["-listen", "0.0.0.0:0"]).output().await.unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("--listen") && stderr.contains("without authentication"), "{stderr}");
}

#[tokio::test]
async fn a_bad_request_is_answered_with_the_reason() {
    let guest = Guest::new();
    let agent = guest.agent(&[]).await;
    for body in ["", "{", "{}", "{\"command\":\"\"}"] {
        let request = format!("POST /exec HTTP/1.0\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let answer = raw(&agent, &request).await;
        assert!(answer.starts_with("HTTP/1.0 400"), "{body:?}: {answer}");
    }
    assert!(raw(&agent, "GET /setup/log HTTP/1.0\r\n\r\n").await.contains("no setup script"));
}

#[tokio::test]
async fn signals_without_a_meaning_do_not_end_the_guest_agent() {
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };
    let guest = Guest::new();
    let mut agent = guest.agent(&[]).await;
    // It answers only once each of its tasks has begun.
    exec(&agent, "true", &[], 0).await;
    let pid = Pid::from_raw(agent.child.id().unwrap().cast_signed());
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2] {
        kill(pid, signal).unwrap();
        let named = |log: &String| log.contains(signal.as_str());
        timeout(LONG, agent.logged.wait_for(named)).await.expect("it is logged").unwrap();
    }
    assert_eq!(exec(&agent, "true", &[], 0).await.exit_code, 0);
    // Its children have the signal's default again.
    let r = exec(&agent, "/bin/sh", &["-c", "kill -HUP $$"], 0).await;
    assert_eq!(r.exit_code, 129);
}
