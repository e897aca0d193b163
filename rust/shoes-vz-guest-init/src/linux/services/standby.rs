//! An sshd that is started ahead, and waits where it would read its host key.
//!
//! Starting sshd takes a restored guest, whose processor is emulated, longer than everything else it has to do. So before
//! a state is saved a second sshd is started whose configuration begins by including a pipe: it has been loaded and
//! linked, and waits for the pipe's end. Once the new host key is there the old sshd is killed (its sessions are
//! processes of their own), the pipe is closed, and the second one goes on.

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

use super::{Answer, Event, Owner, sshd};
use crate::linux::log::{fault, mark};

const GATE: &str = "/run/sshd-gate";
const CONFIG: &str = "/run/sshd_config";
const REAL_CONFIG: &str = "/etc/ssh/sshd_config";

impl Owner {
    pub(super) fn prepare(&mut self, answer: Answer) {
        if self.standby.is_some() || self.changing.is_some() {
            // Whoever is not there to hear it has no need to know.
            let _ = answer.send(Ok(()));
            return;
        }
        if let Err(e) = write_config() {
            let _ = answer.send(Err(format!("{CONFIG} cannot be written: {e}")));
            return;
        }
        match self.start("sshd to come", waiting_sshd()) {
            Some(pid) => {
                (self.standby, self.prepared) = (Some((pid, None)), Some(answer));
                open_gate(self.events.clone());
            }
            None => drop(answer.send(Err("a second sshd cannot be started".into()))),
        }
    }

    /// The standby has got as far as it may.
    pub(super) fn at_the_gate(&mut self, gate: File) {
        if let Some((_, waits)) = &mut self.standby {
            *waits = Some(gate);
        }
        if let Some(answer) = self.prepared.take() {
            let _ = answer.send(Ok(()));
        }
    }

    /// Whether this process was the sshd that waited.
    pub(super) fn standby_is_gone(&mut self, pid: Pid, how: &str) -> bool {
        if self.standby.as_ref().is_none_or(|(waits, _)| *waits != pid) {
            return false;
        }
        self.standby = None;
        if let Some(answer) = self.prepared.take() {
            let _ = answer.send(Err(format!("the second sshd ended ({how}); see the console")));
        }
        true
    }

    pub(super) fn change_sshd(&mut self, answer: Answer) {
        self.changing = Some(answer);
        match self.sshd.running {
            Some((pid, _)) => match kill(pid, Signal::SIGKILL) {
                Ok(()) => {}
                Err(Errno::ESRCH) => self.let_the_next_one_go_on(),
                Err(e) => self.not_changed(&format!("the old sshd cannot be ended: {e}")),
            },
            None => self.let_the_next_one_go_on(),
        }
    }

    /// Whether this process was the sshd that another one takes the place of.
    pub(super) fn is_changing(&self, pid: Pid) -> bool {
        self.changing.is_some() && self.sshd.running.is_some_and(|(running, _)| running == pid)
    }

    pub(super) fn let_the_next_one_go_on(&mut self) {
        self.sshd.running = None;
        match self.standby.take() {
            Some((pid, Some(mut gate))) => match gate.write_all(b"\n") {
                Ok(()) => Self::note(&mut self.sshd, Some(pid)),
                Err(e) => {
                    fault(&format!("the sshd that was ready is gone ({e}); another is started"));
                    self.start_sshd();
                }
            },
            // There was none, or it is not ready: the usual way.
            other => {
                if let Some((pid, _)) = other {
                    let _ = kill(pid, Signal::SIGKILL);
                }
                self.start_sshd();
            }
        }
    }

    /// sshd listens: is it the one that was waited for?
    pub(super) fn changed(&mut self) {
        if let Some(answer) = self.changing.take() {
            mark("sshd has its new key");
            let _ = answer.send(Ok(()));
        }
    }

    fn not_changed(&mut self, words: &str) {
        if let Some(answer) = self.changing.take() {
            let _ = answer.send(Err(words.to_owned()));
        }
    }
}

fn write_config() -> io::Result<()> {
    match mkfifo(GATE, Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(e) => return Err(e.into()),
    }
    let real = fs::read_to_string(REAL_CONFIG)?;
    fs::write(CONFIG, format!("Include {GATE}\n{real}"))
}

fn waiting_sshd() -> Command {
    let mut command = sshd();
    command.args(["-f", CONFIG]);
    command
}

/// Opening a pipe for writing waits for its reader.
fn open_gate(events: mpsc::Sender<Event>) {
    thread::spawn(move || match File::options().write(true).open(GATE) {
        Ok(gate) => drop(events.send(Event::Gate(gate))),
        Err(e) => fault(&format!("{GATE} cannot be opened: {e}")),
    });
}
