//! virtio-serial ports (drivers/char/virtio_console.c).
//!
//! A port is opened non-blocking. While the host's side is not connected, poll reports `POLLHUP`, reads return 0 and
//! writes `EAGAIN`. Unlike a pipe's, such a hang-up may end, but tokio never forgets it; so a port on which one was seen is
//! closed and opened again.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll, ready},
};

use nix::fcntl::OFlag;
use shoes_vz_model::guest::SERIAL_PORT_NAME;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, unix::AsyncFd};
use tracing::warn;

use crate::settings;

pub(crate) fn find(wanted: &settings::SerialPort) -> Option<PathBuf> {
    match wanted {
        settings::SerialPort::None => None,
        settings::SerialPort::Path(path) => Some(path.clone()),
        settings::SerialPort::Auto => find_in(Path::new("/sys/class/virtio-ports"), SERIAL_PORT_NAME),
    }
}

fn find_in(class: &Path, wanted: &str) -> Option<PathBuf> {
    let ports = fs::read_dir(class).ok()?; // no virtio-serial at all
    for port in ports.flatten() {
        match fs::read_to_string(port.path().join("name")) {
            Ok(name) if name.trim_end() == wanted => return Some(Path::new("/dev").join(port.file_name())),
            Ok(_) => {}
            Err(error) => {
                warn!(reason = %error, port = %port.path().display(), "reading the name of a virtio port failed")
            }
        }
    }
    None
}

pub(crate) struct SerialPort(AsyncFd<File>);

impl SerialPort {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = fs::OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags((OFlag::O_NONBLOCK | OFlag::O_NOCTTY).bits())
            .open(path)?;
        Ok(Self(crate::fd::register(file)?))
    }
}

impl AsyncRead for SerialPort {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            let mut ready = ready!(self.0.poll_read_ready(cx))?;
            // Zeroed once per ReadBuf by its owner.
            match ready.try_io(|fd| fd.get_ref().read(buf.initialize_unfilled())) {
                Ok(Ok(n)) => {
                    buf.advance(n);
                    return Poll::Ready(Ok(()));
                }
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(e)) => return Poll::Ready(Err(e)),
                Err(_would_block) if ready.ready().is_read_closed() => return Poll::Ready(Err(hung_up())),
                Err(_would_block) => {}
            }
        }
    }
}

fn hung_up() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, "the host closed its end of the virtio-serial port")
}

impl AsyncWrite for SerialPort {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut ready = ready!(self.0.poll_write_ready(cx))?;
            match ready.try_io(|fd| fd.get_ref().write(bytes)) {
                Ok(Err(e)) if e.kind() == io::ErrorKind::Interrupted => {}
                Ok(done) => return Poll::Ready(done),
                Err(_would_block) if ready.ready().is_write_closed() => return Poll::Ready(Err(hung_up())),
                Err(_would_block) => {}
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_by_its_name() {
        let class = tempfile::tempdir().unwrap();
        for (port, name) in [("vport1p1", "org.qemu.guest_agent.0\n"), ("vport1p2", "shoes-vz.guest.0\n")] {
            fs::create_dir(class.path().join(port)).unwrap();
            fs::write(class.path().join(port).join("name"), name).unwrap();
        }
        fs::create_dir(class.path().join("vport1p0")).unwrap();
        assert_eq!(find_in(class.path(), SERIAL_PORT_NAME), Some("/dev/vport1p2".into()));
        assert_eq!(find_in(class.path(), "other"), None);
        assert_eq!(find_in(Path::new("/nonexistent"), SERIAL_PORT_NAME), None);
    }
}
