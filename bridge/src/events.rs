//! Events from Swift's queues into channels, by the one function that Swift calls.

use std::{
    collections::HashMap,
    io::Write as _,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{LazyLock, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::codes::{Code, Failure, State};

/// An event of a machine or an installation.
#[derive(Debug)]
pub enum Event {
    State(State),
    /// The guest powered itself off.
    GuestStopped,
    /// The machine ended by itself.
    Stopped(Failure),
    /// A network device lost its network, with the framework's reason; the guest keeps running.
    NetworkDisconnected(String),
    /// The guest connected to a port on which the host listens (`vsock_listen` in the machine's settings).
    GuestConnected {
        port: u32,
        connection: OwnedFd,
    },
    /// Progress of an installation, 0 to 1.
    Progress(f64),
    /// An event that this version does not know.
    Unknown(String),
}

/// Number of machines on both sides of the seam, for leak tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    /// In Swift.
    pub machines: i64,
    /// Receivers of events in Rust.
    pub listeners: usize,
}

static SINKS: LazyLock<Mutex<HashMap<u64, UnboundedSender<Event>>>> = LazyLock::new(Mutex::default);

fn sinks() -> MutexGuard<'static, HashMap<u64, UnboundedSender<Event>>> {
    SINKS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Sends the events of `id` to the receiver until [`forget`].
pub(crate) fn listen(id: u64) -> UnboundedReceiver<Event> {
    let (sender, receiver) = unbounded_channel();
    sinks().insert(id, sender);
    receiver
}

pub(crate) fn forget(id: u64) {
    sinks().remove(&id);
}

/// Number of machines and installations with a receiver.
pub(crate) fn listeners() -> usize {
    sinks().len()
}

/// Swift calls this on a machine's queue. It must not unwind into Swift.
pub(crate) fn vz_event(machine: u64, kind: i32, value: i64, extra: i64, text: String) {
    let handled = catch_unwind(AssertUnwindSafe(|| {
        // First, because it takes ownership of a descriptor, which is then closed even if there is no receiver.
        let event = event(kind, value, extra, text);
        let sink = sinks().get(&machine).cloned();
        if let Some(sink) = sink {
            // Fails only when the receiver was dropped.
            drop(sink.send(event));
        }
    }));
    if handled.is_err() {
        // `eprintln!` would panic if stderr cannot be written to, on a Swift thread.
        let _ = writeln!(
            std::io::stderr(),
            "bridge: an event of machine {machine} was lost: its handler panicked"
        );
    }
}

fn event(kind: i32, value: i64, extra: i64, text: String) -> Event {
    match kind {
        0 => match i32::try_from(value).ok().and_then(State::known) {
            Some(state) => Event::State(state),
            None => Event::Unknown(format!("state {value}")),
        },
        1 => Event::GuestStopped,
        2 => Event::Stopped(Failure {
            code: Code::from_number(i32::try_from(value).unwrap_or(-1)),
            reason: text,
        }),
        3 => Event::NetworkDisconnected(text),
        4 => match (u32::try_from(value), RawFd::try_from(extra)) {
            (Ok(port), Ok(fd)) if fd >= 0 => {
                // SAFETY: this event transfers ownership of the descriptor: Swift does not use it again.
                let connection = unsafe { OwnedFd::from_raw_fd(fd) };
                Event::GuestConnected { port, connection }
            }
            _ => Event::Unknown(format!("a connection to port {value} without a descriptor ({extra})")),
        },
        // In millionths.
        #[allow(clippy::cast_precision_loss)]
        5 => Event::Progress(value as f64 / 1e6),
        _ => Event::Unknown(format!("event {kind}: {value}, {extra}, {text:?}")),
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
        assert_eq!((failure.code, failure.reason.as_str()), (Code::LimitExceeded, "no room"));
        assert!(at_b.try_recv().is_err());
        forget(a);
        forget(b);
        vz_event(a, 1, 0, 0, String::new());
        assert!(at_a.try_recv().is_err());
    }

    #[test]
    fn a_connection_without_a_receiver_is_closed() {
        use std::os::fd::IntoRawFd as _;
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        vz_event(u64::MAX - 3, 4, 5422, i64::from(OwnedFd::from(ours).into_raw_fd()), String::new());
        assert_eq!(theirs.read(&mut [0]).unwrap(), 0, "the other end is closed");
    }

    #[test]
    fn an_unknown_event_is_reported_and_closes_nothing() {
        for (kind, value, extra) in [(99, 1, 2), (0, 77, 0), (4, 5422, -1), (4, -1, 3)] {
            let Event::Unknown(text) = event(kind, value, extra, "x".into()) else { panic!("{kind}") };
            assert!(!text.is_empty());
        }
        assert!(matches!(event(5, 500_000, 0, String::new()), Event::Progress(p) if (p - 0.5).abs() < 1e-9));
    }
}
