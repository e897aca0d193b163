//! Values, failures, events and descriptors across the seam, against VZCore and the stand-in.
#![cfg(all(vz, target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    time::{Duration, Instant},
};

use common::{Fixture, spec, spec_with};
use shoes_vz_bridge::{
    Code, Event, Machine, State, cancel_install, clone_bundle, host, install, restore_image,
};
use tokio::sync::mpsc::UnboundedReceiver;

const LONG: Duration = Duration::from_secs(20);

/// The next event that `wanted` recognises.
fn until<T>(events: &mut UnboundedReceiver<Event>, wanted: impl Fn(Event) -> Option<T>) -> T {
    let end = Instant::now() + LONG;
    loop {
        match events.try_recv() {
            Ok(event) => {
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
            Err(_) if Instant::now() < end => std::thread::yield_now(),
            Err(error) => panic!("the event did not come: {error}"),
        }
    }
}

fn reaches(events: &mut UnboundedReceiver<Event>, state: State) {
    until(events, |event| matches!(event, Event::State(s) if s == state).then_some(()));
}

#[test]
fn a_machine_starts_pauses_resumes_and_stops_and_reports_each_state() {
    let fixture = Fixture::new("", "");
    let (vm, mut events) = Machine::open(&spec(&fixture.bundle("a"))).unwrap();
    vm.start(LONG).unwrap();
    reaches(&mut events, State::Running);
    vm.pause(LONG).unwrap();
    reaches(&mut events, State::Paused);
    assert_eq!(vm.pause(LONG).unwrap_err().code, Code::InvalidState);
    vm.resume(LONG).unwrap();
    reaches(&mut events, State::Running);
    vm.stop(LONG).unwrap();
    reaches(&mut events, State::Stopped);
    vm.close(LONG).unwrap();
    vm.close(LONG).unwrap();
    assert_eq!(vm.start(LONG).unwrap_err().code, Code::NoSuchMachine);
}

#[test]
fn a_state_is_saved_and_restored_by_another_machine_of_the_same_bundle() {
    let fixture = Fixture::new("", "");
    let bundle = fixture.bundle("a");
    let state = fixture.dir.path().join("state");
    let spec = spec_with(&bundle, r#","mac_address":"02:00:00:00:00:01""#);
    let (first, _events) = Machine::open(&spec).unwrap();
    first.save_support().unwrap();
    assert_eq!(first.save(&state, LONG).unwrap_err().code, Code::InvalidState, "it is not running yet");
    first.start(LONG).unwrap();
    first.pause(LONG).unwrap();
    first.save(&state, LONG).unwrap();
    first.close(LONG).unwrap();
    let (second, mut events) = Machine::open(&spec).unwrap();
    second.restore(&state, LONG).unwrap();
    reaches(&mut events, State::Paused);
    second.resume(LONG).unwrap();
    second.close(LONG).unwrap();

    fs::write(&state, "damaged").unwrap();
    let (third, _events) = Machine::open(&spec).unwrap();
    let refused = third.restore(&state, LONG).unwrap_err();
    assert_eq!(refused.code, Code::RestoreFailed);
    assert!(refused.reason.contains("VZErrorDomain 12"), "{refused}");
}

#[test]
fn wrong_settings_are_refused_by_their_key() {
    for (from, to, expected) in [
        ("\"macos\"", "\"beos\"", "os: "),
        ("\"cpus\"", "\"cpu\"", "the key cpu is unknown"),
        ("\"cpus\":2,", "", "cpus: the key is missing"),
        ("\"/b\"", "\"b\"", "bundle must be an absolute path"),
    ] {
        let failure = Machine::open(&spec(Path::new("/b")).replace(from, to)).unwrap_err();
        assert_eq!(failure.code, Code::BadSpec);
        assert!(failure.reason.contains(expected), "{expected}: {failure}");
    }
    assert_eq!(Machine::open("not JSON").unwrap_err().code, Code::BadSpec);
    assert_eq!(Machine::open("").unwrap_err().code, Code::BadSpec);
}

#[test]
fn texts_of_any_kind_cross_unharmed() {
    let fixture = Fixture::new("", "");
    for name in ["Ünïcödé 🍎", "quo\"te\\back", "two\nlines"] {
        let bundle = fixture.bundle(name);
        let (vm, _events) = Machine::open(&spec(&bundle)).unwrap();
        let failure = vm.pause(LONG).unwrap_err();
        assert!(failure.reason.contains(name), "{failure}");
        vm.close(LONG).unwrap();
    }
    let long = "x".repeat(1 << 20);
    assert!(Machine::open(&format!("{{\"bundle\":\"/{long}\"}}")).unwrap_err().reason.len() < 1 << 16);
}

#[test]
fn a_guests_power_off_and_its_crash_are_reported_with_their_reason() {
    let off = Fixture::new("exit 0", "");
    let (vm, mut events) = Machine::open(&spec(&off.bundle("a"))).unwrap();
    vm.start(LONG).unwrap();
    until(&mut events, |event| matches!(event, Event::GuestStopped).then_some(()));
    drop(vm);

    let crash = Fixture::new("exit 3", "");
    let (vm, mut events) = Machine::open(&spec(&crash.bundle("a"))).unwrap();
    vm.start(LONG).unwrap();
    let failure = until(&mut events, |event| match event {
        Event::Stopped(failure) => Some(failure),
        _ => None,
    });
    assert_eq!(failure.code, Code::Internal);
    assert!(failure.reason.contains("VZErrorDomain 1"), "{failure}");
    drop(vm);
}

#[test]
fn both_sides_open_connections_and_each_carries_its_own_bytes() {
    // The guest answers on port 7 and announces itself on the host's port 5422.
    let guest = r#"exec python3 - <<'PY'
import os, socket, threading
d = os.environ["VZ_GUEST_VSOCK"]
s = socket.socket(socket.AF_UNIX); s.bind(d + "/guest-7"); s.listen()
k = socket.socket(socket.AF_UNIX); k.connect(d + "/host-5422"); k.sendall(b"hello")
while True:
    c, _ = s.accept()
    def echo(c):
        while b := c.recv(100): c.sendall(b.upper())
        c.close()
    threading.Thread(target=echo, args=(c,)).start()
PY"#;
    let fixture = Fixture::new(guest, "");
    let (vm, mut events) = Machine::open(&spec(&fixture.bundle("a"))).unwrap();
    assert_eq!(vm.connect(7, LONG).unwrap_err().code, Code::InvalidState, "it is not running yet");
    vm.start(LONG).unwrap();
    let (port, announcement) = until(&mut events, |event| match event {
        Event::GuestConnected { port, connection } => Some((port, connection)),
        _ => None,
    });
    assert_eq!(port, 5422);
    let mut received = [0; 5];
    UnixStream::from(announcement).read_exact(&mut received).unwrap();
    assert_eq!(&received, b"hello");
    let mut streams: Vec<_> = (0..3).map(|_| UnixStream::from(vm.connect(7, LONG).unwrap())).collect();
    for (i, stream) in streams.iter_mut().enumerate() {
        stream.write_all(format!("stream {i}").as_bytes()).unwrap();
    }
    for (i, stream) in streams.iter_mut().enumerate() {
        let mut back = [0; 8];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(String::from_utf8_lossy(&back), format!("STREAM {i}"));
    }
    assert_eq!(vm.connect(8, LONG).unwrap_err().code, Code::ConnectFailed);
    vm.close(LONG).unwrap();
    assert_eq!(
        streams[0].read(&mut [0]).unwrap(),
        0,
        "the guest has ended, and its end of the connection is closed"
    );
}

#[test]
fn a_call_keeps_its_deadline_and_a_late_one_harms_nothing() {
    let fixture = Fixture::new("", r#"{"standin":{"hang":["start"]}}"#);
    let (vm, _events) = Machine::open(&spec(&fixture.bundle("a"))).unwrap();
    let began = Instant::now();
    let failure = vm.start(Duration::from_millis(50)).unwrap_err();
    assert_eq!(failure.code, Code::TimedOut);
    assert!(failure.reason.contains("50 ms") && began.elapsed() < LONG, "{failure}");
    vm.close(LONG).unwrap();

    let slow = Fixture::new("", r#"{"standin":{"start_delay_ms":100}}"#);
    let (vm, mut events) = Machine::open(&spec(&slow.bundle("a"))).unwrap();
    assert_eq!(vm.start(Duration::from_millis(1)).unwrap_err().code, Code::TimedOut);
    reaches(&mut events, State::Running);
    vm.stop(LONG).unwrap();
}

#[test]
fn what_the_framework_refuses_keeps_its_code_and_reason() {
    for (firmware, code, word) in [
        (r#"{"standin":{"fail":{"start":6}}}"#, Code::LimitExceeded, "VZErrorDomain 6"),
        (r#"{"standin":{"fail":{"start":8}}}"#, Code::DiskFull, "VZErrorDomain 8"),
        (r#"{"standin":{"fail":{"start":5}}}"#, Code::DiskImage, "VZErrorDomain 5"),
        (r#"{"standin":{"fail":{"start":1}}}"#, Code::Internal, "VZErrorDomain 1"),
    ] {
        let fixture = Fixture::new("", firmware);
        let (vm, _events) = Machine::open(&spec(&fixture.bundle("a"))).unwrap();
        let failure = vm.start(LONG).unwrap_err();
        assert_eq!(failure.code, code);
        assert!(failure.reason.contains(word), "{failure}");
    }
}

#[test]
fn a_clone_is_whole_independent_and_never_over_another() {
    let fixture = Fixture::new("exit 0", "");
    let bundle = fixture.bundle("a");
    let original = fs::read(fixture.template().join("Disk.img")).unwrap();
    assert_eq!(fs::read(bundle.join("Disk.img")).unwrap(), original);
    assert_ne!(
        fs::read(bundle.join("MachineIdentifier")).unwrap(),
        fs::read(fixture.bundle("b").join("MachineIdentifier")).unwrap()
    );
    let again = clone_bundle(&fixture.template(), &bundle, "macos", 0).unwrap_err();
    assert_eq!(again.code, Code::Exists);
    let larger = fixture.dir.path().join("large");
    clone_bundle(&fixture.template(), &larger, "macos", 1 << 20).unwrap();
    assert_eq!(fs::metadata(larger.join("Disk.img")).unwrap().len(), 1 << 20);
    assert_eq!(clone_bundle(&fixture.template(), &larger, "dos", 0).unwrap_err().code, Code::BadSpec);
    let other_volume = tempfile::tempdir_in("/dev/shm").unwrap();
    let far = clone_bundle(&fixture.template(), &other_volume.path().join("x"), "macos", 0).unwrap_err();
    assert_eq!(far.code, Code::DifferentVolume);
}

#[test]
fn the_hosts_limits_are_json() {
    let limits = host().unwrap();
    for key in ["supported", "min_cpus", "max_cpus", "min_memory_bytes", "max_memory_bytes"] {
        assert!(limits.contains(&format!("\"{key}\":")), "{limits}");
    }
}

/// A restore image as the stand-in's are.
fn image(dir: &Path) -> std::path::PathBuf {
    let path = dir.join("image.ipsw");
    fs::write(
        &path,
        r#"{"build":"25F71","version":"26.5.0","minimumOS":[13,0,0],"minimumCPUs":2,"minimumMemory":4294967296}"#,
    )
    .unwrap();
    path
}

#[test]
fn a_damaged_restore_image_is_refused_and_an_unknown_installation_cannot_be_cancelled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.ipsw");
    fs::write(&path, "PK").unwrap();
    let failure = restore_image(path.to_str().unwrap(), LONG).unwrap_err();
    assert_eq!(failure.code, Code::InstallFailed);
    assert_eq!(cancel_install(u64::MAX).unwrap_err().code, Code::NoSuchMachine);
}

#[test]
fn an_installation_reports_its_progress_and_makes_a_template() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path());
    let info = restore_image(image.to_str().unwrap(), LONG).unwrap();
    assert!(info.contains("26.5"), "{info}");
    let template = dir.path().join("template");
    let request = format!(
        r#"{{"ipsw":{image:?},"template":{template:?},"disk_bytes":1048576,"cpus":2,"memory_bytes":4294967296}}"#
    );
    let (sender, reported) = std::sync::mpsc::channel();
    install(&request, |_| {}, move |done| sender.send(done).unwrap()).unwrap();
    let reported: Vec<f64> = reported.iter().collect();
    assert!(reported.windows(2).all(|w| w[0] <= w[1]) && reported.last() == Some(&1.0), "{reported:?}");
    for name in ["Disk.img", "AuxiliaryStorage", "HardwareModel.json"] {
        assert!(template.join(name).is_file(), "{name}");
    }
}
