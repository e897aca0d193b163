//! The boot, in order.

mod boot;
mod late;
mod log;
mod net;
mod power;
mod services;
mod uevent;

use std::sync::mpsc;

use nix::sys::{
    reboot::set_cad_enabled,
    signal::{SigSet, Signal},
};

use self::{
    log::{fault, mark},
    services::Event,
};
use crate::control::Wish;

/// Boots the guest and looks after it until it ends; does not return.
pub(crate) fn run() {
    if std::process::id() != 1 {
        eprintln!("shoes-vz-guest-init is a guest's first process (pid 1); it does nothing as any other");
        std::process::exit(2);
    }
    let booted = match boot::boot() {
        Ok(booted) => booted,
        Err(e) => {
            fault(&format!("the guest cannot start: {e}"));
            power::now(Wish::PowerOff)
        }
    };
    let (events, inbox) = mpsc::channel();
    net::loopback_up().unwrap_or_else(|e| fault(&e));
    mark("lo is up");
    // The threads come before any signal is blocked here: what they start inherits their mask.
    services::spawn(events.clone(), inbox, booted);
    if let Err(e) = set_cad_enabled(false) {
        fault(&format!("ctrl-alt-del cannot be turned into a signal: {e}"));
    }
    signals(&events)
}

/// SIGTERM and SIGUSR2 power the guest off, SIGINT (ctrl-alt-del) resets it.
fn signals(events: &mpsc::Sender<Event>) -> ! {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGUSR2, Signal::SIGINT] {
        set.add(signal);
    }
    if let Err(e) = set.thread_block() {
        fault(&format!("signals cannot be waited for: {e}"));
    }
    loop {
        let wish = match set.wait() {
            Ok(Signal::SIGINT) => Wish::Reboot,
            Ok(_) => Wish::PowerOff,
            Err(e) => {
                fault(&format!("waiting for signals failed, only the control pipe ends this guest: {e}"));
                std::thread::park();
                continue;
            }
        };
        if events.send(Event::End(wish)).is_err() {
            power::now(wish);
        }
    }
}
