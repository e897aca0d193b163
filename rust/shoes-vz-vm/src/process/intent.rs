//! Who wanted the VM to end, and what that makes of how it ended: pure.

use std::time::Duration;

use crate::end::{End, EndKind};

/// Who wanted the VM to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Intent {
    /// Stop, at once.
    StopNow,
    /// Stop, the guest asked first.
    StopWithin(Duration),
    /// SIGTERM to the VM process: the host shuts down, or an operator.
    Terminated,
    /// The VM's time is up.
    MaxLifetime,
    /// Start never came.
    NeverStarted,
}

impl Intent {
    /// Whether a later intent takes this one's place: a stop may become more urgent, never less.
    pub(super) fn yields_to(self, later: Self) -> bool {
        matches!((self, later), (Self::StopWithin(_), Self::StopNow | Self::Terminated | Self::MaxLifetime))
    }
}

/// The VM's end, from who wanted it and how the machine ended.
pub(super) fn end(intent: Option<Intent>, machine: End) -> End {
    let Some(intent) = intent else { return machine };
    // A panic or a dead disk while stopping is still worth telling.
    if matches!(machine.kind, EndKind::GuestPanic | EndKind::DiskError) {
        return machine;
    }
    match (intent, machine.kind) {
        (Intent::MaxLifetime, _) => {
            End::new(EndKind::MaxLifetime, "the VM reached its maximum lifetime and was ended")
        }
        (Intent::NeverStarted, _) => End::new(
            EndKind::Requested,
            "nobody started the VM in time (its agent is gone), so its process ended itself",
        ),
        (Intent::Terminated, _) => {
            End::new(EndKind::Requested, "the VM process was told to end (SIGTERM) and ended the VM")
        }
        (Intent::StopNow, _) => End::new(EndKind::Requested, "the VM was ended as asked"),
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
    fn an_end_nobody_wanted_stays_as_it_is() {
        let machine = End::new(EndKind::GuestPoweroff, "x");
        assert_eq!(end(None, machine.clone()), machine);
    }

    #[test]
    fn who_wanted_the_end_decides_its_kind() {
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
