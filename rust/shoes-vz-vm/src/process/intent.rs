//! Who asked for the VM's end, and the end that follows from that and from how the machine ended: pure.

use std::time::Duration;

use crate::end::{End, EndKind};

/// Why the VM is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intent {
    StopNow,
    /// The guest is asked first.
    StopWithin(Duration),
    /// By SIGTERM to the VM process: the host shuts down, or an operator wants it.
    Terminated,
    MaxLifetime,
    NeverStarted,
}

impl Intent {
    /// Whether a later intent replaces this one: a stop may become more urgent, never less.
    pub(super) fn yields_to(self, later: Self) -> bool {
        matches!((self, later), (Self::StopWithin(_), Self::StopNow | Self::Terminated | Self::MaxLifetime))
    }
}

pub(super) fn end(intent: Option<Intent>, machine: End) -> End {
    let Some(intent) = intent else { return machine };
    // A panic or a disk error while stopping says more than that the VM was stopped.
    if matches!(machine.kind, EndKind::GuestPanic | EndKind::DiskError) {
        return machine;
    }
    match (intent, machine.kind) {
        (Intent::MaxLifetime, _) => {
            End::new(EndKind::MaxLifetime, "the VM reached its maximum lifetime and was ended")
        }
        (Intent::NeverStarted, _) => End::new(
            EndKind::Requested,
            "no agent started the VM in time (the agent that made it has ended), so its process ended itself",
        ),
        (Intent::Terminated, _) => {
            End::new(EndKind::Requested, "the VM process received SIGTERM and ended the VM")
        }
        (Intent::StopNow, _) => End::as_asked(),
        (Intent::StopWithin(_), EndKind::Requested) => End::new(
            EndKind::Requested,
            "the VM was ended as asked; the guest did not power off within its grace",
        ),
        (Intent::StopWithin(_), EndKind::GuestPoweroff | EndKind::GuestReset) => {
            End::new(EndKind::Requested, "the guest powered off, as asked")
        }
        (Intent::StopWithin(_), _) => machine,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Intent = Intent::StopWithin(Duration::from_secs(9));

    #[test]
    fn an_end_without_an_intent_stays_as_it_is() {
        let machine = End::new(EndKind::GuestPoweroff, "x");
        assert_eq!(end(None, machine.clone()), machine);
    }

    #[test]
    fn the_intent_decides_the_kind_of_the_end() {
        for (intent, machine, kind) in [
            (Intent::StopNow, EndKind::Requested, EndKind::Requested),
            (Intent::StopNow, EndKind::HypervisorKilled, EndKind::Requested),
            (GRACE, EndKind::GuestPoweroff, EndKind::Requested),
            (GRACE, EndKind::Requested, EndKind::Requested),
            (GRACE, EndKind::HypervisorKilled, EndKind::HypervisorKilled),
            (GRACE, EndKind::GuestPanic, EndKind::GuestPanic),
            (Intent::MaxLifetime, EndKind::Requested, EndKind::MaxLifetime),
            (Intent::MaxLifetime, EndKind::DiskError, EndKind::DiskError),
            (Intent::Terminated, EndKind::Requested, EndKind::Requested),
            (Intent::NeverStarted, EndKind::Requested, EndKind::Requested),
        ] {
            assert_eq!(end(Some(intent), End::new(machine, "x")).kind, kind, "{intent:?} {machine:?}");
        }
    }

    #[test]
    fn a_stop_becomes_more_urgent_never_less() {
        assert!(GRACE.yields_to(Intent::StopNow));
        assert!(GRACE.yields_to(Intent::MaxLifetime));
        assert!(!Intent::StopNow.yields_to(GRACE));
        assert!(!Intent::MaxLifetime.yields_to(Intent::StopNow));
    }
}
