//! Events from Swift's queues into channels. The one function Swift calls.

use std::{
    collections::HashMap,
    io::Write as _,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::{Code, Failure, State};

/// What happens to a machine without being asked for, or while something is.
#[derive(Debug)]
pub enum Event {
    /// It is in this state now.
    State(State),
    /// The guest shut itself down.
    GuestStopped,
    /// The machine ended by itself.
    Stopped(Failure),
    /// The network attachment was lost, in the framework's words; the guest runs on.
    NetworkDisconnected(String),
    /// The guest has connected to a port of the host's (`VmSpec`'s listening ports).
    GuestConnected {
        /// The host's port.
        port: u32,
        /// The connection.
        connection: OwnedFd,
    },
    /// An installation is this far, 0 to 1.
    Progress(f64),
    /// Swift said something this version does not know.
    Unknown(String),
}

static SINKS: LazyLock<Mutex<HashMap<u64, UnboundedSender<Event>>>> = LazyLock::new(Mutex::default);

fn sinks() -> MutexGuard<'static, HashMap<u64, UnboundedSender<Event>>> {
    SINKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Events of `id` arrive at the receiver until [`forget`].
pub(crate) fn listen(id: u64) -> UnboundedReceiver<Event> {
    let (sender, receiver) = unbounded_channel();
    sinks().insert(id, sender);
    receiver
}

pub(crate) fn forget(id: u64) {
    sinks().remove(&id);
}

/// Machines and installations whose events are listened for.
pub(crate) fn listeners() -> usize {
    sinks().len()
}

/// Called by Swift, on a machine's queue. Must not unwind into it.
pub(crate) fn vz_event(machine: u64, kind: i32, value: i64, extra: i64, message: String) {
    let told = catch_unwind(AssertUnwindSafe(|| {
        // Made before anything else: a descriptor belongs to us from here on, and is closed when nobody wants it.
        let event = event(kind, value, extra, message);
        let sink = sinks().get(&machine).cloned();
        if let Some(sink) = sink {
            // Fails only when the owner has gone, who then wants no events.
            drop(sink.send(event));
        }
    }));
    if told.is_err() {
        // `eprintln!` would panic where stderr cannot be written, on a thread that is Swift's.
        let _ = writeln!(
            std::io::stderr(),
            "bridge: an event of machine {machine} was lost: handing it on panicked"
        );
    }
}

fn event(kind: i32, value: i64, extra: i64, message: String) -> Event {
    match kind {
        0 => match i32::try_from(value).ok().and_then(State::from_number) {
            Some(state) => Event::State(state),
            None => Event::Unknown(format!("state {value}")),
        },
        1 => Event::GuestStopped,
        2 => Event::Stopped(Failure { code: Code::from_number(i32::try_from(value).unwrap_or(-1)), message }),
        3 => Event::NetworkDisconnected(message),
        4 => match (u32::try_from(value), RawFd::try_from(extra)) {
            (Ok(port), Ok(fd)) if fd >= 0 => {
                // SAFETY: Swift's half hands over a descriptor of its own with this event, and never uses it again.
                let connection = unsafe { OwnedFd::from_raw_fd(fd) };
                Event::GuestConnected { port, connection }
            }
            _ => Event::Unknown(format!("a connection to port {value} without a descriptor ({extra})")),
        },
        // In millionths.
        #[allow(clippy::cast_precision_loss)]
        5 => Event::Progress(value as f64 / 1e6),
        _ => Event::Unknown(format!("event {kind}: {value}, {extra}, {message:?}")),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn an_event_reaches_its_machines_listener_only() {
        let (a, b) = (u64::MAX - 1, u64::MAX - 2);
        let (mut at_a, mut at_b) = (listen(a), listen(b));
        vz_event(a, 0, 1, 0, String::new());
        vz_event(a, 2, 4, 0, "no room".into());
        assert!(matches!(at_a.try_recv().unwrap(), Event::State(State::Running)));
        let Event::Stopped(failure) = at_a.try_recv().unwrap() else { panic!() };
        assert_eq!((failure.code, failure.message.as_str()), (Code::LimitExceeded, "no room"));
        assert!(at_b.try_recv().is_err());
        forget(a);
        forget(b);
        vz_event(a, 1, 0, 0, String::new());
        assert!(at_a.try_recv().is_err());
    }

    #[test]
    fn a_connection_nobody_wants_is_closed() {
        use std::os::fd::IntoRawFd as _;
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        vz_event(u64::MAX - 3, 4, 5422, i64::from(OwnedFd::from(ours).into_raw_fd()), String::new());
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "the other end is closed");
    }

    #[test]
    fn what_this_version_does_not_know_is_told_and_closes_nothing() {
        for (kind, value, extra) in [(99, 1, 2), (0, 77, 0), (4, 5422, -1), (4, -1, 3)] {
            let Event::Unknown(words) = event(kind, value, extra, "x".into()) else { panic!("{kind}") };
            assert!(!words.is_empty());
        }
        assert!(matches!(event(5, 500_000, 0, String::new()), Event::Progress(p) if (p - 0.5).abs() < 1e-9));
    }
}
