//! Threads that each wait for one thing and send its events to the owner.

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

use crate::{
    cmdline::TestMode,
    control,
    linux::{
        children::RUNNER,
        event::Event,
        log::{error, step},
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

/// Gives every virtio-serial port, those that appear later included, to the unprivileged guest agent.
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
                Err(e) => return error(&format!("receiving device events failed: {e}")),
            }
        }
    });
}

/// Whether there is any port.
fn hand_over_ports() -> bool {
    let Ok(entries) = fs::read_dir(PORTS) else { return false };
    let mut any = false;
    for entry in entries.flatten() {
        let device = Path::new("/dev").join(entry.file_name());
        match chown(&device, Some(Uid::from_raw(RUNNER)), Some(Gid::from_raw(RUNNER))) {
            Ok(()) => any = true,
            Err(e) => error(&format!("giving {} to the guest agent failed: {e}", device.display())),
        }
    }
    any
}

/// Takes commands from root and from the runner's group: `echo poweroff > /run/guest-init`.
pub(super) fn control(test: TestMode, events: mpsc::Sender<Event>) {
    let made = mkfifo(CONTROL, Mode::S_IRUSR | Mode::S_IWUSR)
        .and_then(|()| chown(CONTROL, None, Some(Gid::from_raw(RUNNER))))
        .map_err(io::Error::from)
        .and_then(|()| fs::set_permissions(CONTROL, Permissions::from_mode(0o620)))
        // Open for writing too, so that reading never reaches an end of file.
        .and_then(|()| File::options().read(true).write(true).open(CONTROL));
    let pipe = match made {
        Ok(pipe) => pipe,
        Err(e) => return error(&format!("creating {CONTROL} failed; only signals can end this guest: {e}")),
    };
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n') {
            let action = match line {
                Ok(line) => control::parse(&String::from_utf8_lossy(&line), test),
                Err(e) => return error(&format!("reading {CONTROL} failed: {e}")),
            };
            match action {
                Ok(action) => {
                    step(&format!("received on {CONTROL}: {action:?}"));
                    if events.send(Event::End(action)).is_err() {
                        return;
                    }
                }
                Err(reason) => error(&format!("{CONTROL}: {reason}")),
            }
        }
    });
}
