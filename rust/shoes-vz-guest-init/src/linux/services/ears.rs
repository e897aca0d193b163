//! Threads that only wait for something and tell the owner.

use std::{
    fs::{self, File, Permissions},
    io::{self, BufRead, BufReader},
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::Path,
    sync::mpsc,
    thread,
};

use nix::{
    sys::stat::Mode,
    unistd::{Gid, Uid, chown, mkfifo},
};

use super::{Event, RUNNER};
use crate::{
    cmdline::Test,
    control,
    linux::{
        log::{fault, mark},
        uevent::Uevents,
    },
};

const CONTROL: &str = "/run/guest-init";
const PORTS: &str = "/sys/class/virtio-ports";

/// sd_notify(3)'s `READY=1`, which Debian's and Ubuntu's sshd sends once it listens.
pub(super) fn sshd_ready(path: &str, events: mpsc::Sender<Event>) -> io::Result<()> {
    let socket = UnixDatagram::bind(path)?;
    fs::set_permissions(path, Permissions::from_mode(0o600))?;
    thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok(n) = socket.recv(&mut buffer) {
            let ready = buffer[..n].split(|b| *b == b'\n').any(|line| line == b"READY=1");
            if ready && events.send(Event::SshdListens).is_err() {
                return;
            }
        }
    });
    Ok(())
}

/// Hands every virtio-serial port, now and later, to the unprivileged guest agent.
pub(super) fn ports(uevents: Uevents, events: mpsc::Sender<Event>) {
    if hand_over_ports() {
        let _ = events.send(Event::PortReady);
    }
    thread::spawn(move || {
        loop {
            match uevents.next() {
                Ok(event) if event.is_empty() || event.contains("/virtio-ports/") => {
                    if hand_over_ports() && events.send(Event::PortReady).is_err() {
                        return;
                    }
                }
                Ok(_) => {}
                Err(e) => return fault(&format!("device events are no longer heard: {e}")),
            }
        }
    });
}

/// Whether there is any.
fn hand_over_ports() -> bool {
    let Ok(entries) = fs::read_dir(PORTS) else { return false };
    let mut any = false;
    for entry in entries.flatten() {
        let device = Path::new("/dev").join(entry.file_name());
        match chown(&device, Some(Uid::from_raw(RUNNER)), Some(Gid::from_raw(RUNNER))) {
            Ok(()) => any = true,
            Err(e) => fault(&format!("{} cannot be given to the guest agent: {e}", device.display())),
        }
    }
    any
}

/// Takes orders from root and from the runner's group: `echo poweroff > /run/guest-init`.
pub(super) fn control(test: Test, events: mpsc::Sender<Event>) {
    let made = mkfifo(CONTROL, Mode::S_IRUSR | Mode::S_IWUSR)
        .and_then(|()| chown(CONTROL, None, Some(Gid::from_raw(RUNNER))))
        .map_err(io::Error::from)
        .and_then(|()| fs::set_permissions(CONTROL, Permissions::from_mode(0o620)))
        // Open for writing too, so that it never comes to its end.
        .and_then(|()| File::options().read(true).write(true).open(CONTROL));
    let pipe = match made {
        Ok(pipe) => pipe,
        Err(e) => return fault(&format!("{CONTROL} cannot be made, only signals end this guest: {e}")),
    };
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n') {
            let wish = match line {
                Ok(line) => control::parse(&String::from_utf8_lossy(&line), test),
                Err(e) => return fault(&format!("{CONTROL} can no longer be read: {e}")),
            };
            match wish {
                Ok(wish) => {
                    mark(&format!("asked on {CONTROL}: {wish:?}"));
                    if events.send(Event::End(wish)).is_err() {
                        return;
                    }
                }
                Err(words) => fault(&format!("{CONTROL}: {words}")),
            }
        }
    });
}
