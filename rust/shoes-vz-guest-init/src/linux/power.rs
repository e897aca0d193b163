//! The end of the guest.

use std::fs;

use nix::{
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
    unistd::sync,
};

use super::log::error;
use crate::control::PowerAction;

/// Ends the guest at once, whatever processes it still has.
pub(super) fn end_now(action: PowerAction) -> ! {
    if action == PowerAction::Panic {
        panic_kernel();
    }
    sync();
    // Fails while a process still writes; then the sync above is all that can be done.
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOATIME;
    let _ = mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>);
    let mode = match action {
        PowerAction::PowerOff => RebootMode::RB_POWER_OFF,
        PowerAction::Reboot | PowerAction::Panic => RebootMode::RB_AUTOBOOT,
    };
    let Err(e) = reboot(mode);
    error(&format!("ending the guest failed ({mode:?}): {e}"));
    // The kernel panics when its first process exits, and the host sees that.
    std::process::exit(1)
}

fn panic_kernel() {
    fs::write("/proc/sys/kernel/sysrq", "1")
        .and_then(|()| fs::write("/proc/sysrq-trigger", "c"))
        .unwrap_or_else(|e| error(&format!("making the kernel panic failed: {e}")));
}
