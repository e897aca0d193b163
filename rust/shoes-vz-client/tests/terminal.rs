//! The command line on a terminal: a live line that fits, and a terminal that is restored.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{io::Read as _, os::unix::process::ExitStatusExt as _, process::ExitStatus};

use common::{Behavior, CLOUD_ID, FakeServer, TIMEOUT, host::command};
use nix::{
    pty::{Winsize, openpty},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use shoes_vz_proto::{
    agent::{Agent, Runner, RunnerStage, RunnerState},
    fleet::{AgentView, RunnerView},
};
use tokio::{process::Child, sync::watch};

const COLUMNS: u16 = 50;

/// A client whose stdout and stderr are a terminal, and everything it has printed there.
struct Session {
    child: Child,
    printed: watch::Receiver<String>,
}

impl Session {
    fn start(fake: &FakeServer, term: &str, args: &[&str]) -> Self {
        let size = Winsize { ws_row: 24, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(Some(&size), None).unwrap();
        let addr = fake.addr.to_string();
        let mut command = command(&[("SHOESVZ_SERVER_ADDR", &addr), ("TERM", term)]);
        command.args(args).stdout(pty.slave.try_clone().unwrap()).stderr(pty.slave);
        let child = command.spawn().unwrap();
        // It holds the other end of the terminal.
        drop(command);
        let (printing, printed) = watch::channel(String::new());
        let mut master = std::fs::File::from(pty.master);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            // Linux returns EIO once no process has the terminal open.
            while let Ok(n @ 1..) = master.read(&mut bytes) {
                printing.send_modify(|text| text.push_str(&String::from_utf8_lossy(&bytes[..n])));
            }
        });
        Self { child, printed }
    }

    async fn until(&mut self, text: &str) {
        let seen = tokio::time::timeout(TIMEOUT, self.printed.wait_for(|all| all.contains(text))).await;
        let seen = seen.is_ok_and(|seen| seen.is_ok());
        assert!(seen, "{text:?} is not in {:?}", *self.printed.borrow());
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id().expect("it runs")).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// Returns its exit status and everything it printed.
    async fn ended(mut self) -> (ExitStatus, String) {
        let status = tokio::time::timeout(TIMEOUT, self.child.wait()).await.expect("it ends").unwrap();
        // The reading thread ends with the terminal.
        while tokio::time::timeout(TIMEOUT, self.printed.changed()).await.expect("it closes").is_ok() {}
        let all = self.printed.borrow().clone();
        (status, all)
    }
}

/// All lines sent to the terminal, including those rewritten in place, without control sequences.
fn rows(printed: &str) -> Vec<String> {
    printed
        .split(['\r', '\n'])
        .map(shoes_vz_terminal::text::line)
        .filter(|row| !row.trim().is_empty())
        .collect()
}

fn queued(reason: &str) -> RunnerView {
    let runner = Runner {
        runner_name: "one".into(),
        state: RunnerState::Creating.into(),
        stage: RunnerStage::Queue.into(),
        ..Runner::default()
    };
    RunnerView {
        cloud_id: CLOUD_ID.into(),
        runner: Some(runner),
        pending_reason: reason.into(),
        ..RunnerView::default()
    }
}

/// The reasons of twenty agents: far wider than a terminal.
fn long_reason() -> String {
    (1..=20).map(|n| format!("東京-{n}: its 2 slots are taken")).collect::<Vec<_>>().join("; ")
}

/// Wide characters take two cells.
fn cells(row: &str) -> usize {
    row.chars().map(|c| if "東京".contains(c) { 2 } else { 1 }).sum()
}

fn assert_fits(printed: &str) {
    for row in rows(printed) {
        assert!(cells(&row) <= usize::from(COLUMNS), "{row:?} is wider than the terminal; {printed:?}");
    }
}

fn assert_terminal_restored(printed: &str) {
    assert_eq!(printed.matches("\u{1b}[?25l").count(), printed.matches("\u{1b}[?25h").count(), "{printed:?}");
    assert!(!printed.contains("\u{1b}[?1049"), "{printed:?}");
}

#[tokio::test]
async fn the_live_line_is_cut_to_the_terminals_width_and_shows_elapsed_time() {
    let fake = FakeServer::start(Behavior::Hang).await;
    fake.set_runners(vec![queued(&long_reason())]);
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), "true").unwrap();
    let args =
        ["add", "--runner-name", "one", "--timeout", "1h", "--setup-script", script.path().to_str().unwrap()];
    let mut session = Session::start(&fake, "xterm", &args);
    session.until("東京-1").await;
    session.until("0.5 s").await;
    session.signal(Signal::SIGINT);
    let (status, printed) = session.ended().await;
    assert!(status.signal() == Some(2) || status.code() == Some(130), "{status:?}");
    assert_fits(&printed);
    assert!(!printed.contains("東京-20"), "{printed:?}");
    assert_terminal_restored(&printed);
}

#[tokio::test]
async fn ctrl_c_ends_a_drain_and_a_watch_and_restores_the_terminal() {
    let fake = FakeServer::start(Behavior::Answer("")).await;
    let agent = Agent { agent_id: "id-1".into(), hostname: "東京".into(), ..Agent::default() };
    fake.set_agents(vec![AgentView { agent: Some(agent), runners: 2, ..AgentView::default() }]);
    fake.set_runners(vec![queued("no slot")]);
    for (args, expected) in [(&["drain", "id-1"][..], "2 runners left"), (&["watch"], "no slot")] {
        let mut session = Session::start(&fake, "xterm", args);
        session.until(expected).await;
        session.signal(Signal::SIGINT);
        let (status, printed) = session.ended().await;
        assert!(status.signal() == Some(2) || status.code() == Some(130), "{args:?}: {status:?}");
        assert_terminal_restored(&printed);
    }
}

#[tokio::test]
async fn a_slow_call_shows_that_it_waits() {
    let fake = FakeServer::start(Behavior::Hang).await;
    for args in [&["delete", CLOUD_ID][..], &["drain", "mac-1"], &["cordon", "mac-1"]] {
        let mut session = Session::start(&fake, "xterm", args);
        session.until("waiting   … ").await;
        session.signal(Signal::SIGINT);
        session.ended().await;
    }
}

#[tokio::test]
async fn a_dumb_terminal_gets_plain_lines() {
    let fake = FakeServer::start(Behavior::Answer("nano")).await;
    fake.set_runners(vec![queued("no slot")]);
    let script = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(script.path(), "true").unwrap();
    let args = ["add", "--runner-name", "one", "--setup-script", script.path().to_str().unwrap()];
    let (status, printed) = Session::start(&fake, "dumb", &args).ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(!printed.contains('\u{1b}'), "{printed:?}");
}

#[tokio::test]
async fn a_table_on_a_terminal_does_not_cut_ids() {
    let fake = FakeServer::start(Behavior::Answer("")).await;
    fake.set_runners(vec![queued(&long_reason())]);
    let (status, printed) = Session::start(&fake, "xterm", &["list"]).ended().await;
    assert_eq!(status.code(), Some(0));
    assert!(printed.contains(CLOUD_ID) && printed.lines().count() > 3, "{printed:?}");
}
