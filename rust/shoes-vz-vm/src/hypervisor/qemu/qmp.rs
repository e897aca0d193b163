//! The QMP connection: QEMU connects to us, so its readiness is an event.

use std::{io, path::Path, time::Duration};

use qapi::{
    Command, Execute, ExecuteError,
    futures::{QapiService, QmpStreamTokio},
    qmp::{
        BlockErrorAction, Event, GuestPanicInformation, IoOperationType, MigrationStatus, QmpCommand,
        ShutdownCause,
    },
};
use shoes_vz_process::files::if_any;
use tokio::{
    io::{ReadHalf, WriteHalf},
    net::{UnixListener, UnixStream},
    sync::watch,
    time::timeout,
};

use super::reason::{DiskError, Observations, Shutdown};
use crate::{
    hypervisor::{HypervisorError, MachineState},
    temporary::Temporary,
};

pub(super) type Events = qapi::futures::QapiEvents<QmpStreamTokio<ReadHalf<UnixStream>>>;
type Service = QapiService<QmpStreamTokio<WriteHalf<UnixStream>>>;

/// A socket that QEMU connects to; it is removed once QEMU has, or when this is dropped.
pub(super) struct Callback {
    listener: UnixListener,
    socket: Temporary,
}

impl Callback {
    pub(super) fn bind(dir: &Path, name: &str) -> Result<Self, HypervisorError> {
        let path = dir.join(name);
        let listener = if_any(std::fs::remove_file(&path))
            .and_then(|_| UnixListener::bind(&path))
            .map_err(HypervisorError::io(format!("creating the socket {path:?}")))?;
        Ok(Self { listener, socket: Temporary { path, failure: "removing a socket failed" } })
    }

    pub(super) async fn accept(self) -> Result<UnixStream, HypervisorError> {
        let what = format!("waiting for QEMU to connect to {:?}", self.socket.path);
        self.listener.accept().await.map(|(stream, _)| stream).map_err(HypervisorError::io(what))
    }
}

/// Commands to one QEMU.
pub(super) struct Qmp {
    service: Service,
}

impl Qmp {
    pub(super) async fn open(stream: UnixStream) -> io::Result<(Self, Events)> {
        let (service, events) = QmpStreamTokio::open(stream).await?.negotiate().await?.into_parts();
        Ok((Self { service }, events))
    }

    /// `what` describes the command in errors. QEMU answers in microseconds unless it is stopped or the host overloaded.
    pub(super) async fn run<C>(
        &self,
        what: &'static str,
        command: C,
        deadline: Duration,
    ) -> Result<C::Ok, HypervisorError>
    where
        C: QmpCommand + Command,
        QmpStreamTokio<WriteHalf<UnixStream>>: futures::Sink<Execute<C, u32>, Error = io::Error>,
    {
        let timed_out = HypervisorError::TimedOut { what, seconds: deadline.as_secs() };
        match timeout(deadline, self.service.execute(command)).await.map_err(|_| timed_out)? {
            Ok(answer) => Ok(answer),
            Err(ExecuteError::Qapi(e)) => Err(HypervisorError::Refused { what, reason: e.desc }),
            Err(ExecuteError::Io(e)) => Err(HypervisorError::Refused { what, reason: e.to_string() }),
        }
    }
}

/// What the machine's owner does after an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QmpAction {
    None,
    /// The VM cannot go on.
    Kill,
}

pub(super) fn note(
    event: Event,
    seen: &mut Observations,
    state: &watch::Sender<MachineState>,
    migration: &watch::Sender<Option<MigrationStatus>>,
) -> QmpAction {
    match event {
        Event::RESUME { .. } => {
            state.send_replace(MachineState::Running);
        }
        Event::STOP { .. } => {
            state.send_if_modified(|now| {
                let runs = *now == MachineState::Running;
                if runs {
                    *now = MachineState::Paused;
                }
                runs
            });
        }
        Event::SHUTDOWN { data, .. } => {
            seen.shutdown = Some(match data.reason {
                ShutdownCause::guest_shutdown => Shutdown::Guest,
                ShutdownCause::guest_reset => Shutdown::GuestReset,
                ShutdownCause::guest_panic => Shutdown::GuestPanic,
                ShutdownCause::host_signal => Shutdown::HostSignal,
                _ => Shutdown::Host,
            });
        }
        Event::GUEST_PANICKED { data, .. } => {
            seen.panic = Some(data.info.as_ref().map_or_else(String::new, panic_info));
        }
        Event::BLOCK_IO_ERROR { data, .. } if data.action == BlockErrorAction::stop => {
            let full = data.nospace.unwrap_or(false);
            let operation = match data.operation {
                IoOperationType::read => "reading",
                IoOperationType::write => "writing",
            };
            let node = data.node_name.as_deref().filter(|n| !n.is_empty()).unwrap_or(&data.device);
            let reason = format!("{operation} on {node}: {}", data.reason);
            seen.disk.get_or_insert(DiskError { full, reason });
            return QmpAction::Kill;
        }
        Event::MIGRATION { data, .. } => {
            migration.send_replace(Some(data.status));
        }
        other => tracing::debug!(event = ?other, "QMP event"),
    }
    QmpAction::None
}

fn panic_info(info: &GuestPanicInformation) -> String {
    format!("{info:?}").chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(json: serde_json::Value) -> Event {
        let mut whole = serde_json::json!({"timestamp": {"seconds": 1, "microseconds": 2}});
        whole.as_object_mut().unwrap().extend(json.as_object().unwrap().clone());
        serde_json::from_value(whole).unwrap()
    }

    fn noted(events: Vec<serde_json::Value>) -> (Observations, MachineState, QmpAction) {
        let (state, migration) = (watch::Sender::new(MachineState::Created), watch::Sender::new(None));
        let mut seen = Observations::default();
        let mut last = QmpAction::None;
        for json in events {
            last = note(event(json), &mut seen, &state, &migration);
        }
        (seen, state.borrow().clone(), last)
    }

    #[test]
    fn the_guests_time_is_followed() {
        let resume = serde_json::json!({"event": "RESUME"});
        let stop = serde_json::json!({"event": "STOP"});
        assert_eq!(noted(vec![resume.clone()]).1, MachineState::Running);
        assert_eq!(noted(vec![resume, stop.clone()]).1, MachineState::Paused);
        assert_eq!(noted(vec![stop]).1, MachineState::Created);
    }

    #[test]
    fn a_disk_error_that_stops_the_vm_ends_it_and_one_reported_to_the_guest_does_not() {
        let error = |action| {
            serde_json::json!({"event": "BLOCK_IO_ERROR", "data": {"device": "", "node-name": "disk", "nospace": true,
                "operation": "write", "action": action, "reason": "No space left on device", "qom-path": "/x"}})
        };
        let (seen, _, action) = noted(vec![error("stop")]);
        assert_eq!(action, QmpAction::Kill);
        assert_eq!(
            seen.disk.unwrap(),
            DiskError { full: true, reason: "writing on disk: No space left on device".into() }
        );
        let (seen, _, action) = noted(vec![error("report")]);
        assert_eq!((seen.disk, action), (None, QmpAction::None));
    }

    #[test]
    fn a_panic_and_a_shutdown_are_noted() {
        let (seen, ..) = noted(vec![
            serde_json::json!({"event": "GUEST_PANICKED", "data": {"action": "poweroff"}}),
            serde_json::json!({"event": "SHUTDOWN", "data": {"guest": true, "reason": "guest-panic"}}),
        ]);
        assert_eq!((seen.panic.as_deref(), seen.shutdown), (Some(""), Some(Shutdown::GuestPanic)));
    }
}
