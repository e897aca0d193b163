//! The setup script's output as a stream, followed by event.

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
/// Back-stop behind the file system's events, which may overflow.
const BACK_STOP: Duration = Duration::from_secs(1);

struct Follow {
    file: File,
    status: watch::Receiver<Status>,
    grown: mpsc::Receiver<()>,
    _watcher: Option<RecommendedWatcher>,
}

/// `log`'s bytes from `offset` on, until the script has exited and all is read.
pub async fn follow(
    log: PathBuf,
    offset: u64,
    status: watch::Receiver<Status>,
) -> io::Result<impl Stream<Item = io::Result<Bytes>> + Send> {
    let (tell, grown) = mpsc::channel(1);
    let watcher = notify::recommended_watcher(move |_: notify::Result<notify::Event>| {
        let _ = tell.try_send(()); // full: told already
    })
    .and_then(|mut watcher| {
        watcher.watch(&log, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    });
    if let Err(error) = &watcher {
        debug!(%error, "no events of the setup log; looking every second");
    }
    let mut file = File::open(&log).await?;
    file.seek(io::SeekFrom::Start(offset)).await?;
    let state = Follow { file, status, grown, _watcher: watcher.ok() };
    Ok(futures::stream::try_unfold(state, |mut f| async move {
        loop {
            // Looked at before reading: what is written before the exit is then surely read.
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
                () = sleep(BACK_STOP) => {}
            }
        }
    }))
}
