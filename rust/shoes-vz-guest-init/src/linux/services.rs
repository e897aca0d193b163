//! What runs as long as the guest does: one owner thread for sshd, the guest agent and the end of the guest.
//!
//! ```text
//!  reaper ──Exited, NoChildren─┐
//!  sshd's readiness ──────────┤
//!  guest channel's device ────┼──▶ owner: starts, restarts with back-off, ends
//!  control pipe, signals ─End─┘
//! ```

mod personalize;
mod standby;
mod watchers;

use std::{
    fs::File,
    os::unix::process::CommandExt,
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use self::standby::Standby;
use super::{
    boot::Booted,
    children::{NOTIFY, Spawner, guest_agent, reap, sshd},
    deferred,
    event::{Event, Reply},
    log::{error, step},
    power,
};
use crate::control::PowerAction;

/// After this the guest agent is started even if the guest has no guest channel.
const PORT_DEADLINE: Duration = Duration::from_secs(2);
/// After this the deferred part of the boot runs even if sshd has not reported that it listens.
const SSHD_DEADLINE: Duration = Duration::from_secs(5);
/// Between asking every process to end and killing them.
const GRACE: Duration = Duration::from_secs(3);
const RESTART_FIRST: Duration = Duration::from_millis(50);
const RESTART_LONGEST: Duration = Duration::from_secs(5);
/// After a service has run this long, its back-off starts over.
const STEADY: Duration = Duration::from_secs(10);

/// Starts the owner and its watchers, which inherit the caller's signal mask.
pub(super) fn spawn(events: mpsc::Sender<Event>, inbox: mpsc::Receiver<Event>, booted: Booted) {
    let (spawner, spawned) = Spawner::new();
    watchers::sshd_ready(NOTIFY, events.clone())
        .unwrap_or_else(|e| error(&format!("receiving sshd's readiness failed: {e}")));
    let mut owner = Owner {
        events: events.clone(),
        spawner: spawner.clone(),
        sshd: Service::new("sshd", sshd),
        agent: Service::new("guest agent", guest_agent),
        once: Vec::new(),
        deferred_modules: Some(booted.deferred_modules),
        standby: Standby::default(),
        agent_at: Some(Instant::now() + PORT_DEADLINE),
        deferred_at: Some(Instant::now() + SSHD_DEADLINE),
        ending: None,
    };
    // sshd first: it takes the longest to start.
    owner.start_sshd();
    watchers::ports(booted.uevents, events.clone());
    watchers::control(booted.cmdline.test, events.clone());
    personalize::listen(&spawner, &events);
    thread::spawn(move || reap(&spawner, &spawned, &events));
    thread::spawn(move || owner.run(&inbox));
}

struct Service {
    name: &'static str,
    command: fn() -> Command,
    running: Option<(Pid, Instant)>,
    restart_at: Option<Instant>,
    back_off: Duration,
}

impl Service {
    fn new(name: &'static str, command: fn() -> Command) -> Self {
        Self { name, command, running: None, restart_at: None, back_off: RESTART_FIRST }
    }

    fn pid(&self) -> Option<Pid> {
        self.running.map(|(pid, _)| pid)
    }

    /// To be called with the outcome of each start.
    fn started(&mut self, started: Option<Pid>) {
        let now = Instant::now();
        self.restart_at = None;
        match started {
            Some(pid) => self.running = Some((pid, now)),
            None => self.exited(now),
        }
    }

    /// Sets when to start it again.
    fn exited(&mut self, now: Instant) {
        let ran = self.running.take().map_or(Duration::ZERO, |(_, since)| now - since);
        if ran >= STEADY {
            self.back_off = RESTART_FIRST;
        }
        self.restart_at = Some(now + self.back_off);
        self.back_off = (self.back_off * 2).min(RESTART_LONGEST);
    }
}

struct Owner {
    events: mpsc::Sender<Event>,
    spawner: Spawner,
    sshd: Service,
    agent: Service,
    once: Vec<(Pid, &'static str)>,
    deferred_modules: Option<Vec<(String, File)>>,
    standby: Standby,
    agent_at: Option<Instant>,
    deferred_at: Option<Instant>,
    ending: Option<(PowerAction, Signal, Instant)>,
}

impl Owner {
    fn run(mut self, inbox: &mpsc::Receiver<Event>) {
        loop {
            let received = match self.next_deadline() {
                Some(at) => inbox.recv_timeout(at.saturating_duration_since(Instant::now())),
                None => inbox.recv().map_err(|_| mpsc::RecvTimeoutError::Disconnected),
            };
            match received {
                Ok(event) => self.handle(event),
                Err(mpsc::RecvTimeoutError::Timeout) => self.handle_deadlines(Instant::now()),
                // Cannot happen: the owner holds a sender.
                Err(mpsc::RecvTimeoutError::Disconnected) => power::end_now(PowerAction::PowerOff),
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        if let Some((_, _, at)) = self.ending {
            return Some(at);
        }
        [self.sshd.restart_at, self.agent.restart_at, self.agent_at, self.deferred_at]
            .into_iter()
            .flatten()
            .min()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Exited(pid, how) => self.exited(pid, &how),
            Event::NoChildren => {
                if let Some((action, ..)) = self.ending {
                    power::end_now(action);
                }
            }
            Event::PortReady => self.start_agent_first(),
            Event::SshdListens => {
                step("sshd listens");
                self.standby.sshd_listens();
                self.start_deferred();
            }
            Event::RunOnce(name, command) => {
                if let Some(pid) = self.start(name, command) {
                    self.once.push((pid, name));
                }
            }
            Event::PrepareSshd(reply) => self.prepare_sshd(reply),
            Event::SshdAtGate(gate) => self.standby.at_gate(gate),
            Event::ReplaceSshd(reply) => {
                if self.standby.replace(self.sshd.pid(), reply) {
                    self.start_next_sshd();
                }
            }
            Event::End(action) => self.end(action),
        }
    }

    fn handle_deadlines(&mut self, now: Instant) {
        if let Some((action, signal, _)) = self.ending {
            if signal == Signal::SIGKILL {
                power::end_now(action);
            }
            self.signal_all(action, Signal::SIGKILL);
            return;
        }
        let past = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if past(self.sshd.restart_at) {
            self.start_sshd();
        }
        if past(self.agent.restart_at) {
            self.start_agent();
        }
        if past(self.agent_at) {
            error(
                "this guest has no guest channel (virtio-serial port); starting the guest agent without one",
            );
            self.start_agent_first();
        }
        if past(self.deferred_at) {
            self.start_deferred();
        }
    }

    fn exited(&mut self, pid: Pid, how: &str) {
        if let Some(at) = self.once.iter().position(|(once, _)| *once == pid) {
            let (_, name) = self.once.swap_remove(at);
            step(&format!("{name} exited ({how})"));
            return;
        }
        if self.standby.is_replacing() && self.sshd.pid() == Some(pid) {
            return self.start_next_sshd();
        }
        if self.standby.exited(pid, how) {
            return;
        }
        let now = Instant::now();
        for service in [&mut self.sshd, &mut self.agent] {
            if service.pid() == Some(pid) {
                service.exited(now);
                if self.ending.is_none() {
                    error(&format!("{} ended ({how}); restarting it", service.name));
                }
            }
        }
    }

    fn start_sshd(&mut self) {
        let started = self.start(self.sshd.name, (self.sshd.command)());
        self.sshd.started(started);
    }

    fn prepare_sshd(&mut self, reply: Reply) {
        if let Some(reply) = self.standby.prepare(reply) {
            let started = self.start("standby sshd", standby::command());
            self.standby.started(started, reply, &self.events);
        }
    }

    /// The place of the old sshd is free.
    fn start_next_sshd(&mut self) {
        self.sshd.running = None;
        match self.standby.open_gate() {
            Some(pid) => self.sshd.started(Some(pid)),
            None => self.start_sshd(),
        }
    }

    fn start_agent_first(&mut self) {
        if self.agent_at.take().is_some() {
            self.start_agent();
        }
    }

    fn start_agent(&mut self) {
        let started = self.start(self.agent.name, (self.agent.command)());
        self.agent.started(started);
    }

    fn start(&self, name: &str, mut command: Command) -> Option<Pid> {
        command.stdin(Stdio::null());
        if let Ok(console) = File::options().write(true).open("/dev/console") {
            if let Ok(twin) = console.try_clone() {
                command.stdout(twin);
            }
            command.stderr(console);
        }
        match self.spawner.spawn(command.process_group(0)) {
            Ok(child) => {
                step(&format!("{name} started"));
                i32::try_from(child.id()).ok().map(Pid::from_raw)
            }
            Err(e) => {
                error(&format!("starting {name} ({}) failed: {e}", command.get_program().display()));
                None
            }
        }
    }

    fn start_deferred(&mut self) {
        self.deferred_at = None;
        if let Some(modules) = self.deferred_modules.take() {
            let events = self.events.clone();
            thread::spawn(move || deferred::run(&modules, &events));
        }
    }

    fn end(&mut self, action: PowerAction) {
        if action == PowerAction::Panic {
            power::end_now(action);
        }
        if self.ending.is_none() {
            step(&format!("ending the guest: {action:?}"));
            self.signal_all(action, Signal::SIGTERM);
        }
    }

    fn signal_all(&mut self, action: PowerAction, signal: Signal) {
        self.ending = Some((action, signal, Instant::now() + GRACE));
        match kill(Pid::from_raw(-1), signal) {
            // ESRCH: no process is left.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => error(&format!("sending {signal} to all processes failed: {e}")),
        }
        self.spawner.wake_reaper();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_keeps_failing_is_started_less_and_less_often() {
        let mut service = Service::new("x", sshd);
        let t0 = Instant::now();
        let mut waits = Vec::new();
        for _ in 0..12 {
            service.running = Some((Pid::from_raw(7), t0));
            service.exited(t0);
            waits.push(service.restart_at.unwrap() - t0);
        }
        assert_eq!(waits[0], RESTART_FIRST);
        assert!(waits.is_sorted());
        assert_eq!(*waits.last().unwrap(), RESTART_LONGEST);
    }

    #[test]
    fn a_service_that_ran_for_a_while_is_started_again_soon() {
        let mut service = Service::new("x", sshd);
        service.back_off = RESTART_LONGEST;
        let t0 = Instant::now();
        service.running = Some((Pid::from_raw(7), t0));
        service.exited(t0 + STEADY);
        assert_eq!(service.restart_at, Some(t0 + STEADY + RESTART_FIRST));
    }
}
