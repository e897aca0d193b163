//! The boot, in order.

mod boot;
mod children;
mod deferred;
mod event;
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
    event::Event,
    log::{error, step},
};
use crate::control::PowerAction;

/// Boots the guest and runs its services until it ends. Does not return.
pub(crate) fn run() {
    if std::process::id() != 1 {
        eprintln!("shoes-vz-guest-init must be the first process of a guest (pid 1)");
        std::process::exit(2);
    }
    let booted = boot::boot().unwrap_or_else(|e| {
        error(&format!("the guest cannot start: {e}"));
        power::end_now(PowerAction::PowerOff)
    });
    let (events, inbox) = mpsc::channel();
    net::loopback_up().unwrap_or_else(|e| error(&e));
    step("lo is up");
    // Before any signal is blocked here: a process that these threads start inherits their signal mask.
    services::spawn(events.clone(), inbox, booted);
    set_cad_enabled(false)
        .unwrap_or_else(|e| error(&format!("turning ctrl-alt-del into a signal failed: {e}")));
    signals(&events)
}

/// SIGTERM and SIGUSR2 power the guest off, SIGINT (ctrl-alt-del) resets it.
fn signals(events: &mpsc::Sender<Event>) -> ! {
    let set = SigSet::from_iter([Signal::SIGTERM, Signal::SIGUSR2, Signal::SIGINT]);
    set.thread_block().unwrap_or_else(|e| error(&format!("blocking signals failed: {e}")));
    loop {
        let action = match set.wait() {
            Ok(Signal::SIGINT) => PowerAction::Reboot,
            Ok(_) => PowerAction::PowerOff,
            Err(e) => {
                error(&format!("waiting for signals failed; only the control pipe can end this guest: {e}"));
                std::thread::park();
                continue;
            }
        };
        if events.send(Event::End(action)).is_err() {
            power::end_now(action);
        }
    }
}
