//! The setup script's output as a stream that follows the log file by its events.

use std::{io, path::PathBuf, time::Duration};

use bytes::{Bytes, BytesMut};
use futures::Stream;
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use shoes_vz_model::guest::{SetupPhase, Status};
use tokio::{
    fs::File,
    io::{AsyncReadExt, AsyncSeekExt},
    sync::{mpsc, watch},
    time::sleep,
};
use tracing::debug;

const CHUNK: usize = 32 * 1024;
/// In addition to the file system's events, which may be lost.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

struct Follow {
    file: File,
    status: watch::Receiver<Status>,
    grown: mpsc::Receiver<()>,
    _watcher: Option<RecommendedWatcher>,
}

/// The bytes of `log` from `offset` on, until the script has exited and all of them are read.
pub async fn follow(
    log: PathBuf,
    offset: u64,
    status: watch::Receiver<Status>,
) -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send> {
    let (wake, grown) = mpsc::channel(1);
    let watcher = notify::recommended_watcher(move |_: notify::Result<notify::Event>| {
        let _ = wake.try_send(()); // full: an event waits already
    })
    .and_then(|mut watcher| {
        watcher.watch(&log, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    if let Err(error) = &watcher {
        debug!(reason = %error, "watching the setup log failed; polling it every second");
    }
    let mut file = File::open(&log).await?;
    file.seek(io::SeekFrom::Start(offset)).await?;
    let state = Follow { file, status, grown, _watcher: watcher.ok() };
    Ok(futures::stream::try_unfold(state, |mut f| async move {
        loop {
            // Before reading, so that everything written before the exit is read.
            let exited = f.status.borrow_and_update().setup.phase == SetupPhase::Exited;
            let mut chunk = BytesMut::with_capacity(CHUNK);
            if f.file.read_buf(&mut chunk).await? > 0 {
                return Ok(Some((chunk.freeze(), f)));
            }
            if exited {
                return Ok(None);
            }
            tokio::select! {
                Some(()) = f.grown.recv() => {}
                changed = f.status.changed() => if changed.is_err() {
                    return Ok(None); // the guest agent is ending
                },
                () = sleep(POLL_INTERVAL) => {}
            }
        }
    }))
}
