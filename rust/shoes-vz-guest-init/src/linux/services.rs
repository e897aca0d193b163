//! What runs for as long as the guest does: one owner thread for sshd, the guest agent and the guest's end.
//!
//! ```text
//!  reaper ──Exited, NoChildren─┐
//!  sshd's readiness ──────────┤
//!  guest channel's device ────┼──▶ owner: starts, restarts with back-off, ends
//!  control pipe, signals ─End─┘
//! ```

mod ears;
mod personalize;
mod standby;

use std::{
    fs::File,
    os::unix::process::CommandExt,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    thread,
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    sys::{
        signal::{Signal, kill},
        wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid},
    },
    unistd::Pid,
};

use super::{
    boot::Booted,
    late,
    log::{fault, mark},
    power,
};
use crate::control::Wish;

const RUNNER: u32 = 1000;
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const NOTIFY: &str = "/run/guest-init.notify";
/// A guest without a guest channel gets its guest agent all the same.
const PORT_DEADLINE: Duration = Duration::from_secs(2);
/// An sshd that does not tell when it listens holds the late part of the boot up no longer than this.
const SSHD_DEADLINE: Duration = Duration::from_secs(5);
/// Between asking every process to end and ending them.
const GRACE: Duration = Duration::from_secs(3);
const RESTART_FIRST: Duration = Duration::from_millis(50);
const RESTART_LONGEST: Duration = Duration::from_secs(5);
/// A service that ran this long is restarted at once.
const STEADY: Duration = Duration::from_secs(10);

/// What the owner acts on.
pub(super) enum Event {
    /// A child is gone.
    Exited(Pid, String),
    /// The last child is gone.
    NoChildren,
    /// The guest channel's device can be opened by the guest agent.
    PortReady,
    /// sshd accepts connections.
    SshdListens,
    /// A program to be run once, by name.
    RunOnce(&'static str, Command),
    /// An sshd is to be got ready, to the point where it would read its host key.
    Prepare(Answer),
    /// It waits there; whoever writes to this lets it go on.
    Gate(File),
    /// There is a new host key: sshd is to be another one, with that key.
    NewHostKey(Answer),
    /// The guest is to end.
    End(Wish),
}

/// For whoever asked: nothing, or why it was not done.
pub(super) type Answer = mpsc::Sender<Result<(), String>>;

/// Starts the owner and its ears; they inherit the caller's signal mask.
pub(super) fn spawn(events: mpsc::Sender<Event>, inbox: mpsc::Receiver<Event>, booted: Booted) {
    let fork = Arc::new(Mutex::new(()));
    let (children, spawned) = mpsc::channel();
    let ready = ears::sshd_ready(NOTIFY, events.clone());
    let mut owner = Owner {
        events: events.clone(),
        fork: Arc::clone(&fork),
        children,
        sshd: Service::new("sshd", sshd),
        agent: Service::new("guest agent", guest_agent),
        once: Vec::new(),
        late_modules: Some(booted.late_modules),
        standby: None,
        prepared: None,
        changing: None,
        agent_at: Some(Instant::now() + PORT_DEADLINE),
        late_at: Some(Instant::now() + SSHD_DEADLINE),
        ending: None,
    };
    if let Err(e) = ready {
        fault(&format!("sshd's readiness cannot be heard: {e}"));
    }
    // sshd first: it has the longest way to go.
    owner.start_sshd();
    ears::ports(booted.uevents, events.clone());
    ears::control(booted.cmdline.test, events.clone());
    personalize::listen(&owner.spawner(), &events);
    thread::spawn(move || reap(&fork, &spawned, &events));
    thread::spawn(move || owner.run(&inbox));
}

fn sshd() -> Command {
    let mut command = Command::new("/usr/sbin/sshd");
    // -e: complaints go to the console. -r: no second loading of the program for each connection.
    command.args(["-D", "-e", "-r"]).env_clear().env("PATH", PATH).env("NOTIFY_SOCKET", NOTIFY);
    command
}

fn guest_agent() -> Command {
    let mut command = Command::new("/usr/local/bin/shoes-vz-runner-agent");
    command
        .env_clear()
        .envs([
            ("PATH", PATH),
            ("HOME", "/home/runner"),
            ("USER", "runner"),
            ("LOGNAME", "runner"),
            ("SHELL", "/bin/bash"),
            ("LANG", "C.UTF-8"),
        ])
        .current_dir("/home/runner")
        .uid(RUNNER)
        .gid(RUNNER);
    command
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

    /// The child is gone: when to start it again.
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
    /// Held while a child is made, so that the reaper cannot take one `Command` still waits for.
    fork: Arc<Mutex<()>>,
    /// Tells the reaper that there are children again.
    children: mpsc::Sender<()>,
    sshd: Service,
    agent: Service,
    once: Vec<(Pid, &'static str)>,
    late_modules: Option<Vec<(String, File)>>,
    /// An sshd that waits for its host key, and how to let it go on.
    standby: Option<(Pid, Option<File>)>,
    /// Who asked for it.
    prepared: Option<Answer>,
    /// Who waits for sshd to be another one.
    changing: Option<Answer>,
    agent_at: Option<Instant>,
    late_at: Option<Instant>,
    ending: Option<(Wish, Signal, Instant)>,
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
                Err(mpsc::RecvTimeoutError::Timeout) => self.due(Instant::now()),
                // Cannot be: the owner holds a sender itself.
                Err(mpsc::RecvTimeoutError::Disconnected) => power::now(Wish::PowerOff),
            }
        }
    }

    fn next_deadline(&self) -> Option<Instant> {
        if let Some((_, _, at)) = self.ending {
            return Some(at);
        }
        [self.sshd.restart_at, self.agent.restart_at, self.agent_at, self.late_at].into_iter().flatten().min()
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Exited(pid, how) => self.exited(pid, &how),
            Event::NoChildren => {
                if let Some((wish, ..)) = self.ending {
                    power::now(wish);
                }
            }
            Event::PortReady => self.start_agent_first(),
            Event::SshdListens => {
                mark("sshd listens");
                self.changed();
                self.start_late();
            }
            Event::RunOnce(name, command) => {
                if let Some(pid) = self.start(name, command) {
                    self.once.push((pid, name));
                }
            }
            Event::Prepare(answer) => self.prepare(answer),
            Event::Gate(gate) => self.at_the_gate(gate),
            Event::NewHostKey(answer) => self.change_sshd(answer),
            Event::End(wish) => self.end(wish),
        }
    }

    fn due(&mut self, now: Instant) {
        if let Some((wish, signal, _)) = self.ending {
            if signal == Signal::SIGKILL {
                power::now(wish);
            }
            self.signal_all(wish, Signal::SIGKILL);
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
            fault("there is no guest channel (virtio-serial port); the guest agent starts without one");
            self.start_agent_first();
        }
        if past(self.late_at) {
            self.start_late();
        }
    }

    fn exited(&mut self, pid: Pid, how: &str) {
        if let Some(at) = self.once.iter().position(|(once, _)| *once == pid) {
            let (_, name) = self.once.swap_remove(at);
            mark(&format!("{name} is done: {how}"));
            return;
        }
        if self.is_changing(pid) {
            return self.let_the_next_one_go_on();
        }
        if self.standby_is_gone(pid, how) {
            return;
        }
        let now = Instant::now();
        for service in [&mut self.sshd, &mut self.agent] {
            if service.running.is_some_and(|(running, _)| running == pid) {
                service.exited(now);
                if self.ending.is_none() {
                    fault(&format!("{} ended ({how}) and is started again", service.name));
                }
            }
        }
    }

    fn start_sshd(&mut self) {
        let started = self.start(self.sshd.name, (self.sshd.command)());
        Self::note(&mut self.sshd, started);
    }

    fn start_agent_first(&mut self) {
        if self.agent_at.take().is_some() {
            self.start_agent();
        }
    }

    fn start_agent(&mut self) {
        let started = self.start(self.agent.name, (self.agent.command)());
        Self::note(&mut self.agent, started);
    }

    fn note(service: &mut Service, started: Option<Pid>) {
        let now = Instant::now();
        service.restart_at = None;
        match started {
            Some(pid) => service.running = Some((pid, now)),
            None => service.exited(now),
        }
    }

    fn start(&self, name: &str, mut command: Command) -> Option<Pid> {
        command.stdin(Stdio::null());
        if let Ok(console) = File::options().write(true).open("/dev/console") {
            if let Ok(twin) = console.try_clone() {
                command.stdout(twin);
            }
            command.stderr(console);
        }
        match self.spawner().spawn(command.process_group(0)) {
            Ok(child) => {
                mark(&format!("{name} started"));
                i32::try_from(child.id()).ok().map(Pid::from_raw)
            }
            Err(e) => {
                fault(&format!("{name} cannot be started ({}): {e}", command.get_program().display()));
                None
            }
        }
    }

    fn spawner(&self) -> Spawner {
        Spawner { fork: Arc::clone(&self.fork), children: self.children.clone() }
    }

    fn start_late(&mut self) {
        self.late_at = None;
        if let Some(modules) = self.late_modules.take() {
            let events = self.events.clone();
            thread::spawn(move || late::run(&modules, &events));
        }
    }

    fn end(&mut self, wish: Wish) {
        if wish == Wish::Panic {
            power::now(wish);
        }
        if self.ending.is_none() {
            mark(&format!("the guest ends: {wish:?}"));
            self.signal_all(wish, Signal::SIGTERM);
        }
    }

    fn signal_all(&mut self, wish: Wish, signal: Signal) {
        self.ending = Some((wish, signal, Instant::now() + GRACE));
        match kill(Pid::from_raw(-1), signal) {
            // ESRCH: nobody is left to be told.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(e) => fault(&format!("processes cannot be sent {signal}: {e}")),
        }
        // Makes the reaper look again and say so when there is no child.
        let _ = self.children.send(());
    }
}

/// Makes children that are the reaper's to collect.
#[derive(Clone)]
struct Spawner {
    fork: Arc<Mutex<()>>,
    children: mpsc::Sender<()>,
}

impl Spawner {
    fn spawn(&self, command: &mut Command) -> std::io::Result<Child> {
        let making = lock(&self.fork);
        let made = command.spawn();
        drop(making);
        // The reaper is gone only when this process is.
        let _ = self.children.send(());
        made
    }
}

fn reap(fork: &Mutex<()>, spawned: &mpsc::Receiver<()>, events: &mpsc::Sender<Event>) {
    loop {
        match waitid(Id::All, WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT) {
            Ok(_) => {
                let _no_child_is_being_made = lock(fork);
                while let Ok(status) = waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG)) {
                    let (pid, how) = match status {
                        WaitStatus::Exited(pid, code) => (pid, format!("exit code {code}")),
                        WaitStatus::Signaled(pid, signal, _) => (pid, format!("ended by {signal}")),
                        _ => break,
                    };
                    let _ = events.send(Event::Exited(pid, how));
                }
            }
            Err(Errno::ECHILD) => {
                let _ = events.send(Event::NoChildren);
                if spawned.recv().is_err() {
                    return;
                }
            }
            Err(Errno::EINTR) => {}
            Err(e) => return fault(&format!("children cannot be waited for: {e}")),
        }
    }
}

fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
