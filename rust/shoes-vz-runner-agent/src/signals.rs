//! Signals that the guest agent ignores, and that would end it by default. SIGTERM and SIGINT keep their default: a guest
//! that shuts down ends all its processes at once, and a guest agent that ran a moment longer would report the setup
//! script's end as a failure of the script.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

/// Ignores them as long as the guest agent runs. Its children have the default handlers again.
pub(crate) async fn ignore() -> anyhow::Result<()> {
    let caught = || {
        let hup = signal(SignalKind::hangup())?;
        Ok::<_, io::Error>((hup, signal(SignalKind::user_defined1())?, signal(SignalKind::user_defined2())?))
    };
    let (mut hup, mut usr1, mut usr2) = caught()?;
    loop {
        let ignored = tokio::select! {
            _ = hup.recv() => "SIGHUP",
            _ = usr1.recv() => "SIGUSR1",
            _ = usr2.recv() => "SIGUSR2",
        };
        info!(signal = ignored, "signal ignored; SIGTERM stops this program");
    }
}
