//! The end of the guest.

use std::fs;

use nix::{
    mount::{MsFlags, mount},
    sys::reboot::{RebootMode, reboot},
    unistd::sync,
};

use super::log::fault;
use crate::control::Wish;

/// Ends the guest at once; the processes are assumed to be gone or not to matter.
pub(super) fn now(wish: Wish) -> ! {
    if wish == Wish::Panic {
        panic_kernel();
    }
    sync();
    // Fails while something still writes; the sync before has done what can be done then.
    let _ = mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOATIME,
        None::<&str>,
    );
    let mode = match wish {
        Wish::PowerOff => RebootMode::RB_POWER_OFF,
        Wish::Reboot | Wish::Panic => RebootMode::RB_AUTOBOOT,
    };
    let Err(e) = reboot(mode);
    fault(&format!("the guest cannot end itself ({mode:?}): {e}"));
    // The kernel panics when its first process ends, and the host sees that.
    std::process::exit(1)
}

fn panic_kernel() {
    if let Err(e) =
        fs::write("/proc/sys/kernel/sysrq", "1").and_then(|()| fs::write("/proc/sysrq-trigger", "c"))
    {
        fault(&format!("the kernel cannot be made to panic: {e}"));
    }
}
