//! The standby sshd: started ahead, it waits where it would read its host key.
//!
//! In a restored guest, whose processor is emulated, starting sshd takes longer than everything else. So before a state is
//! saved a second sshd is started, whose configuration begins by including a pipe: it is loaded and linked, and waits for
//! the pipe's end (the gate). Once the new host key is written, the old sshd is killed (its sessions are separate
//! processes and go on), the pipe is closed, and the standby sshd continues.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    process::Command,
    sync::mpsc,
    thread,
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        stat::Mode,
    },
    unistd::{Pid, mkfifo},
};

use crate::linux::{
    children::sshd,
    event::{Event, Reply},
    log::{error, step},
};

const GATE: &str = "/run/sshd-gate";
const CONFIG: &str = "/run/sshd_config";
const REAL_CONFIG: &str = "/etc/ssh/sshd_config";

#[derive(Default)]
pub(super) struct Standby {
    /// The standby sshd, and its gate once it waits there.
    waiting: Option<(Pid, Option<File>)>,
    /// Answered once it does.
    preparing: Option<Reply>,
    /// Answered once another sshd listens.
    replacing: Option<Reply>,
}

pub(super) fn command() -> Command {
    let mut command = sshd();
    command.args(["-f", CONFIG]);
    command
}

impl Standby {
    /// Gives `reply` back when a standby sshd is to be started.
    pub(super) fn prepare(&mut self, reply: Reply) -> Option<Reply> {
        if self.waiting.is_some() || self.replacing.is_some() {
            answer(reply, Ok(()));
            return None;
        }
        match write_config() {
            Ok(()) => Some(reply),
            Err(e) => {
                answer(reply, Err(format!("writing {CONFIG} failed: {e}")));
                None
            }
        }
    }

    /// To be called with the outcome of the start of [`command`].
    pub(super) fn started(&mut self, started: Option<Pid>, reply: Reply, events: &mpsc::Sender<Event>) {
        match started {
            Some(pid) => {
                (self.waiting, self.preparing) = (Some((pid, None)), Some(reply));
                await_gate(events.clone());
            }
            None => answer(reply, Err("starting the standby sshd failed; see the console".into())),
        }
    }

    /// The standby sshd waits at its gate.
    pub(super) fn at_gate(&mut self, opened: File) {
        if let Some((_, gate)) = &mut self.waiting {
            *gate = Some(opened);
        }
        if let Some(reply) = self.preparing.take() {
            answer(reply, Ok(()));
        }
    }

    /// Whether the process that exited was the standby sshd.
    pub(super) fn exited(&mut self, pid: Pid, how: &str) -> bool {
        if self.waiting.as_ref().is_none_or(|(waiting, _)| *waiting != pid) {
            return false;
        }
        self.waiting = None;
        if let Some(reply) = self.preparing.take() {
            answer(reply, Err(format!("the standby sshd ended ({how}); see the console")));
        }
        true
    }

    /// Kills the running sshd, so that another one can take its place. Whether that place is free already.
    pub(super) fn replace(&mut self, running: Option<Pid>, reply: Reply) -> bool {
        let killed = running.map_or(Err(Errno::ESRCH), |pid| kill(pid, Signal::SIGKILL));
        match killed {
            Ok(()) | Err(Errno::ESRCH) => self.replacing = Some(reply),
            Err(e) => answer(reply, Err(format!("killing the old sshd failed: {e}"))),
        }
        killed == Err(Errno::ESRCH)
    }

    /// Whether the running sshd was killed to be replaced.
    pub(super) fn is_replacing(&self) -> bool {
        self.replacing.is_some()
    }

    /// Lets the standby sshd continue; `None` when there is none that is ready.
    pub(super) fn open_gate(&mut self) -> Option<Pid> {
        match self.waiting.take()? {
            (pid, Some(mut gate)) => match gate.write_all(b"\n") {
                Ok(()) => Some(pid),
                Err(e) => {
                    error(&format!("the standby sshd has ended ({e}); starting another one"));
                    None
                }
            },
            (pid, None) => {
                let _ = kill(pid, Signal::SIGKILL);
                None
            }
        }
    }

    /// An sshd listens: if the running one was to be replaced, this is the new one.
    pub(super) fn sshd_listens(&mut self) {
        if let Some(reply) = self.replacing.take() {
            step("sshd uses its new host key");
            answer(reply, Ok(()));
        }
    }
}

fn answer(reply: Reply, outcome: Result<(), String>) {
    // A caller that has stopped waiting does not need the answer.
    let _ = reply.send(outcome);
}

fn write_config() -> io::Result<()> {
    match mkfifo(GATE, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let real = fs::read_to_string(REAL_CONFIG)?;
    fs::write(CONFIG, format!("Include {GATE}\n{real}"))
}

/// In a thread, because opening a pipe for writing waits for its reader.
fn await_gate(events: mpsc::Sender<Event>) {
    thread::spawn(move || match File::options().write(true).open(GATE) {
        Ok(gate) => drop(events.send(Event::SshdAtGate(gate))),
        Err(e) => error(&format!("opening {GATE} failed: {e}")),
    });
}
