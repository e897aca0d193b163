//! First process of the Linux guest, in the initial RAM disk and afterwards.
//!
//! ```text
//!  initrd:  /dev ─▶ early modules ─▶ root disk ─▶ move root           (boot)
//!  disk:    /proc /sys … ─▶ lo up ─┬▶ sshd ──────────┐                (services)
//!                                  └▶ guest agent ───┤
//!                                                    ▼ sshd listens
//!                                      other modules, eth0, disk growth (deferred)
//!  then:    reaps children, restarts services, ends the guest when asked (services, control)
//! ```
//! When any step before that fails, the error is printed on the console, which the host keeps as `console.log`, and the
//! guest powers off.
#[cfg(any(target_os = "linux", test))]
mod cmdline;
#[cfg(any(target_os = "linux", test))]
mod control;
#[cfg(target_os = "linux")]
mod linux;
#[cfg(any(target_os = "linux", test))]
mod rtnetlink;

#[cfg(target_os = "linux")]
fn main() {
    linux::run();
}

#[cfg(not(target_os = "linux"))]
fn main() -> std::process::ExitCode {
    eprintln!("shoes-vz-guest-init is the first process of a Linux guest; it does nothing on this system");
    std::process::ExitCode::FAILURE
}
