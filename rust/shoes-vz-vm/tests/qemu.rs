//! The VM process with real QEMU and guests of a few instructions: every way a VM can end, in milliseconds.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(clippy::unwrap_used, reason = "a test's helper may panic as the test may")]

use std::{
    fs,
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use shoes_vz_model::bundle::file;
use shoes_vz_proto::vm::{VmEndKind, VmState};
use shoes_vz_vm::{
    client::{Stop, Vm, VmError},
    clone::{OVERLAY, make_bundle, remove_bundle},
    spec::{Accelerator, HypervisorKind, StateUse, VmSpec},
    template::TemplateDir,
};

mod program {
    //! 32-bit code, assembled by hand; each begins by writing "hi" to the serial port.

    pub(super) const HANG: &[u8] = &[0xf4, 0xeb, 0xfd]; // hlt; jmp to it
    /// outw $0x2000, $0x604: ACPI's soft-off.
    pub(super) const POWER_OFF: &[u8] =
        &[0x66, 0xba, 0x04, 0x06, 0x66, 0xb8, 0x00, 0x20, 0x66, 0xef, 0xf4, 0xeb, 0xfd];
    /// outb $0xfe, $0x64: the keyboard controller's reset line.
    pub(super) const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64, 0xf4, 0xeb, 0xfd];
    /// Finds the PCI device 1b36:0011 (pvpanic), and writes "panicked" to its register.
    #[rustfmt::skip]
    pub(super) const PANIC: &[u8] = &[
        0xbb, 0x00, 0x00, 0x00, 0x80, 0x89, 0xd8, 0x66, 0xba, 0xf8, 0x0c, 0xef, 0x66, 0xba, 0xfc, 0x0c, 0xed, 0x3d,
        0x36, 0x1b, 0x11, 0x00, 0x74, 0x08, 0x81, 0xc3, 0x00, 0x08, 0x00, 0x00, 0xeb, 0xe5, 0x8d, 0x43, 0x10, 0x66,
        0xba, 0xf8, 0x0c, 0xef, 0x66, 0xba, 0xfc, 0x0c, 0xed, 0x83, 0xe0, 0xf0, 0xc6, 0x00, 0x01, 0xf4, 0xeb, 0xfd,
    ];
    const SAY_HI: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, 0x68, 0xee, 0xb0, 0x69, 0xee, 0xb0, 0x0a, 0xee];

    /// A Multiboot image QEMU loads as a kernel.
    pub(super) fn image(code: &[u8]) -> Vec<u8> {
        const AT: u32 = 0x10_0000;
        let (magic, flags) = (0x1BAD_B002u32, 0x1_0000u32);
        let entry = AT + 32;
        let end = entry + (SAY_HI.len() + code.len()) as u32;
        let checksum = 0u32.wrapping_sub(magic).wrapping_sub(flags);
        let header = [magic, flags, checksum, AT, AT, end, end, entry];
        let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
        image.extend(SAY_HI);
        image.extend(code);
        image
    }
}

const EXE: &str = env!("CARGO_BIN_EXE_shoes-vz-vm-test");

struct Host {
    dir: tempfile::TempDir,
    bundle: PathBuf,
}

impl Host {
    fn new(kernel: &[u8]) -> Self {
        Self::with(kernel, |_| ())
    }

    fn with(kernel: &[u8], change: impl FnOnce(&mut VmSpec)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let template = dir.path().join("template");
        fs::create_dir(&template).unwrap();
        fs::write(template.join("Template.json"), r#"{"os":"linux","guest_agent":"channel"}"#).unwrap();
        fs::write(template.join("kernel"), kernel).unwrap();
        fs::write(template.join("initrd"), "none").unwrap();
        fs::File::create(template.join("Disk.img")).unwrap().set_len(1 << 20).unwrap();
        let template = TemplateDir::open(&template).unwrap();
        let mut spec = VmSpec {
            // A VM outlives the process that started it; one of a failed test must not do so for long.
            max_lifetime: Some(jiff::Timestamp::now() + Duration::from_secs(120)),
            accelerator: Accelerator::Tcg,
            memory_bytes: 64 << 20,
            ..VmSpec::of_template(&template)
        };
        change(&mut spec);
        let bundle = dir.path().join("1.bundle");
        make_bundle(&template, &bundle, &spec).unwrap();
        Self { dir, bundle }
    }

    async fn spawn(&self) -> Vm {
        Vm::spawn(Path::new(EXE), &self.bundle).await.unwrap()
    }

    async fn started(&self) -> Vm {
        let vm = self.spawn().await;
        vm.start().await.unwrap();
        vm
    }

    /// What the VM leaves: its end on disk; no socket, no process.
    async fn assert_ended(&self, vm: &Vm, kind: VmEndKind) -> String {
        let end = vm.ended().await;
        assert_eq!(end.kind, kind as i32, "{}", end.reason);
        let status = vm.status().borrow().clone();
        assert!(!alive(status.pid), "the VM process has exited");
        until_exited(status.hypervisor_pid).await;
        assert!(Vm::adopt(&self.bundle).await.unwrap().is_none());
        end.reason
    }

    fn left(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.bundle)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }
}

fn alive(pid: u32) -> bool {
    // A zombie is dead.
    pid != 0
        && fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| {
            !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
        })
}

/// For a process that was sent SIGKILL already.
async fn until_exited(pid: u32) {
    let exited = async {
        while alive(pid) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), exited).await.unwrap();
}

fn signal(pid: u32, signal: Signal) {
    assert!(pid > 1, "0 and 1 are not ours to signal");
    kill(Pid::from_raw(i32::try_from(pid).unwrap()), signal).unwrap();
}

#[tokio::test]
async fn a_guest_that_powers_off_leaves_the_reason_and_no_process() {
    let host = Host::new(&program::image(program::POWER_OFF));
    let vm = host.started().await;
    let reason = host.assert_ended(&vm, VmEndKind::GuestPoweroff).await;
    assert_eq!(reason, "the guest powered itself off");
    assert_eq!(vm.status().borrow().state, VmState::Stopped as i32);
    assert_eq!(host.left(), ["Disk.qcow2", file::VM_SPEC, file::VM_END, file::CONSOLE_LOG, file::VM_LOG]);
    let console = host.bundle.join(file::CONSOLE_LOG);
    assert_eq!(fs::read_to_string(&console).unwrap(), "hi\n");
    for name in host.left() {
        let mode = fs::metadata(host.bundle.join(&name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name} is closed to others");
    }
    remove_bundle(&host.bundle).unwrap();
}

#[tokio::test]
async fn a_guest_that_reboots_has_ended() {
    let host = Host::new(&program::image(program::RESET));
    let vm = host.started().await;
    host.assert_ended(&vm, VmEndKind::GuestReset).await;
}

#[tokio::test]
async fn a_guest_that_panics_is_distinguished_from_one_that_reboots() {
    let host = Host::new(&program::image(program::PANIC));
    let vm = host.started().await;
    let reason = host.assert_ended(&vm, VmEndKind::GuestPanic).await;
    assert!(reason.contains("panicked"), "{reason}");
    assert_eq!(vm.status().borrow().state, VmState::Failed as i32);
}

#[tokio::test]
async fn a_killed_qemu_is_reported_with_its_signal() {
    let host = Host::new(&program::image(program::HANG));
    let vm = host.started().await;
    signal(vm.status().borrow().hypervisor_pid, Signal::SIGKILL);
    let reason = host.assert_ended(&vm, VmEndKind::HypervisorKilled).await;
    assert!(reason.contains("signal 9 (SIGKILL)"), "{reason}");
}

#[tokio::test]
async fn a_politely_terminated_qemu_did_not_power_off() {
    let host = Host::new(&program::image(program::HANG));
    let vm = host.started().await;
    signal(vm.status().borrow().hypervisor_pid, Signal::SIGTERM);
    let reason = host.assert_ended(&vm, VmEndKind::HypervisorKilled).await;
    assert!(reason.contains("SIGTERM"), "{reason}");
}

#[tokio::test]
async fn qemus_reason_for_a_kernel_that_it_cannot_load_reaches_the_client() {
    let host = Host::new(b"this is not a kernel");
    let vm = host.spawn().await;
    let error = vm.start().await.unwrap_err().to_string();
    assert!(error.contains("QEMU did not start") && error.contains("kernel"), "{error}");
    host.assert_ended(&vm, VmEndKind::HypervisorFailed).await;
}

#[tokio::test]
async fn a_template_that_was_removed_is_named() {
    let host = Host::new(&program::image(program::HANG));
    fs::remove_file(host.dir.path().join("template/Disk.img")).unwrap();
    let vm = host.spawn().await;
    let error = vm.start().await.unwrap_err().to_string();
    assert!(error.contains("template/Disk.img"), "{error}");
    host.assert_ended(&vm, VmEndKind::HypervisorFailed).await;
}

#[tokio::test]
async fn a_killed_vm_process_takes_its_qemu_along_and_its_end_has_a_reason() {
    let host = Host::new(&program::image(program::HANG));
    let vm = host.started().await;
    signal(vm.status().borrow().pid, Signal::SIGKILL);
    let reason = host.assert_ended(&vm, VmEndKind::HypervisorFailed).await;
    assert!(reason.contains("the VM process died of signal 9 (SIGKILL)"), "{reason}");
}

#[tokio::test]
async fn a_terminated_vm_process_ends_its_vm_in_order() {
    let host = Host::new(&program::image(program::HANG));
    let vm = host.started().await;
    signal(vm.status().borrow().pid, Signal::SIGTERM);
    let reason = host.assert_ended(&vm, VmEndKind::Requested).await;
    assert!(reason.contains("SIGTERM"), "{reason}");
    assert!(host.left().contains(&file::VM_END.to_owned()));
}

#[tokio::test]
async fn a_vm_process_that_hangs_is_killed_by_a_forced_stop() {
    let host = Host::new(&program::image(program::HANG));
    let vm = host.started().await;
    signal(vm.status().borrow().pid, Signal::SIGSTOP);
    vm.stop(Stop::Force).await.unwrap();
    host.assert_ended(&vm, VmEndKind::HypervisorFailed).await;
}

#[tokio::test]
async fn a_forced_stop_ends_a_qemu_that_does_not_answer() {
    let host = Host::new(&program::image(program::HANG));
    let vm = host.started().await;
    signal(vm.status().borrow().hypervisor_pid, Signal::SIGSTOP);
    vm.stop(Stop::Force).await.unwrap();
    host.assert_ended(&vm, VmEndKind::Requested).await;
}

#[tokio::test]
async fn a_vm_outlives_the_process_that_started_it_and_is_adopted() {
    let host = Host::new(&program::image(program::HANG));
    let pid = {
        // The runtime, and with it every task and child handle of this "agent", ends with this thread.
        let bundle = host.bundle.clone();
        std::thread::spawn(move || {
            tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                let vm = Vm::spawn(Path::new(EXE), &bundle).await.unwrap();
                vm.start().await.unwrap();
                vm.status().borrow().pid
            })
        })
        .join()
        .unwrap()
    };
    let vm = Vm::adopt(&host.bundle).await.unwrap().unwrap();
    let status = vm.status().borrow().clone();
    assert_eq!(
        (status.pid, status.state, status.accelerator.as_str()),
        (pid, VmState::Running as i32, "tcg")
    );
    let session = nix::unistd::getsid(Some(Pid::from_raw(i32::try_from(pid).unwrap()))).unwrap();
    assert_eq!(session.as_raw(), i32::try_from(pid).unwrap(), "it leads a separate session");
    vm.stop(Stop::Force).await.unwrap();
    assert_eq!(vm.ended().await.kind, VmEndKind::Requested as i32);
}

/// Whether this QEMU cannot save VMs (older than 8.2); then a line that is not captured says what is not tested.
#[allow(clippy::explicit_write, reason = "the test harness captures what eprintln writes")]
fn cannot_save(test: &str) -> bool {
    let possible = shoes_vz_vm::saved::possible(HypervisorKind::Qemu, &std::env::temp_dir());
    if let Err(reason) = &possible {
        writeln!(std::io::stderr(), "SKIPPED: {test}: {reason}").unwrap();
    }
    possible.is_err()
}

/// A tiny VM saved into `state`, which has ended.
async fn saved(state: &Path) -> Host {
    fs::create_dir(state).unwrap();
    let host =
        Host::with(&program::image(program::HANG), |spec| spec.state = StateUse::Save(state.to_owned()));
    let vm = host.started().await;
    let to = state.join("machine-state");
    let error = vm.save(&to).await.unwrap_err().to_string();
    assert!(error.contains("must be paused"), "{error}");
    vm.pause().await.unwrap();
    vm.save(&to).await.unwrap();
    let error = vm.resume().await.unwrap_err().to_string();
    assert!(error.contains("its memory is part of that"), "{error}");
    vm.stop(Stop::Force).await.unwrap();
    host.assert_ended(&vm, VmEndKind::Requested).await;
    fs::rename(host.bundle.join(OVERLAY), state.join(OVERLAY)).unwrap();
    host
}

/// Another VM of the same template, which is to go on from `state`.
fn restoring(host: &Host, n: u32, state: &Path, change: impl FnOnce(&mut VmSpec)) -> PathBuf {
    let template = TemplateDir::open(&host.dir.path().join("template")).unwrap();
    let mut spec = VmSpec::read(&host.bundle).unwrap();
    spec.state = StateUse::Restore(state.to_owned());
    change(&mut spec);
    let bundle = host.dir.path().join(format!("r{n}.bundle"));
    make_bundle(&template, &bundle, &spec).unwrap();
    bundle
}

#[tokio::test]
async fn a_saved_state_is_restored_as_often_as_wanted_and_stays_as_it_was() {
    if cannot_save("a saved state is restored as often as wanted") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("s");
    let host = saved(&state).await;
    let marks = || {
        let mark =
            |name: &str| fs::metadata(state.join(name)).map(|m| (m.len(), m.modified().unwrap())).unwrap();
        ["memory", "machine-state", OVERLAY].map(mark)
    };
    let before = marks();
    let mut vms = Vec::new();
    for n in 0..2 {
        let bundle = restoring(&host, n, &state, |_| ());
        let vm = Vm::spawn(Path::new(EXE), &bundle).await.unwrap();
        vm.start().await.unwrap();
        let status = vm.status().borrow().clone();
        assert!(status.restored && status.state == VmState::Running as i32, "{status:?}");
        // It went on where it was: it does not say "hi" again, as a boot would.
        assert_eq!(fs::read_to_string(bundle.join(file::CONSOLE_LOG)).unwrap(), "");
        vms.push(vm);
    }
    for vm in vms {
        vm.stop(Stop::Force).await.unwrap();
        assert_eq!(vm.ended().await.kind, VmEndKind::Requested as i32);
    }
    assert_eq!(marks(), before);
}

#[tokio::test]
async fn a_state_that_cannot_be_restored_is_refused_with_the_reason_and_nothing_runs() {
    if cannot_save("a state that cannot be restored is refused") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("s");
    let host = saved(&good).await;
    type Damage<'a> = &'a dyn Fn(&Path);
    let cases: [(&str, u64, Damage); 5] = [
        ("is 67108864 bytes, the VM's is 134217728", 128, &|_| ()),
        ("memory", 64, &|s| fs::remove_file(s.join("memory")).unwrap()),
        ("memory", 64, &|s| {
            fs::File::options().write(true).open(s.join("memory")).unwrap().set_len(4096).unwrap()
        }),
        ("machine-state", 64, &|s| fs::remove_file(s.join("machine-state")).unwrap()),
        ("cannot be restored", 64, &|s| {
            let path = s.join("machine-state");
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        }),
    ];
    for (n, (reason, mib, damage)) in cases.into_iter().enumerate() {
        let state = dir.path().join(format!("s{n}"));
        fs::create_dir(&state).unwrap();
        for entry in fs::read_dir(&good).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), state.join(entry.file_name())).unwrap();
        }
        damage(&state);
        let bundle = restoring(&host, n as u32, &state, |spec| spec.memory_bytes = mib << 20);
        let vm = Vm::spawn(Path::new(EXE), &bundle).await.unwrap();
        vm.start().await.unwrap_err();
        let end = vm.ended().await;
        assert_eq!(end.kind, VmEndKind::RestoreRefused as i32, "{n}: {end:?}");
        assert!(end.reason.contains(reason), "{n}: {}", end.reason);
        let status = vm.status().borrow().clone();
        assert!(!alive(status.pid), "the VM process has exited");
    }
}

#[tokio::test]
async fn a_bundle_is_renamed_under_its_running_vm() {
    let host = Host::new(&program::image(program::HANG));
    let vm = host.started().await;
    let renamed = host.dir.path().join("2.bundle");
    fs::rename(&host.bundle, &renamed).unwrap();
    vm.moved(&renamed);
    assert_eq!(vm.guest_socket(), renamed.join(file::GUEST_SOCKET));
    vm.pause().await.unwrap();
    vm.resume().await.unwrap();
    let found = Vm::adopt(&renamed).await.unwrap().expect("a later agent finds it");
    found.stop(Stop::Force).await.unwrap();
    assert_eq!(vm.ended().await.kind, VmEndKind::Requested as i32);
    assert!(renamed.join(file::VM_END).exists() && !renamed.join(file::VM_SOCKET).exists());
}

#[tokio::test]
async fn a_vm_that_was_not_made_for_it_is_not_saved() {
    let host = Host::new(&program::image(program::HANG));
    let vm = host.started().await;
    vm.pause().await.unwrap();
    let error = vm.save(Path::new("vm.state")).await.unwrap_err().to_string();
    assert!(error.contains("was not created for saving its state"), "{error}");
    vm.resume().await.unwrap();
    vm.stop(Stop::Force).await.unwrap();
    host.assert_ended(&vm, VmEndKind::Requested).await;
}

#[tokio::test]
async fn a_vm_process_enforces_the_maximum_lifetime_itself() {
    let soon = jiff::Timestamp::now() + Duration::from_secs(2);
    let host = Host::with(&program::image(program::HANG), |spec| spec.max_lifetime = Some(soon));
    let vm = host.started().await;
    host.assert_ended(&vm, VmEndKind::MaxLifetime).await;
    assert!(jiff::Timestamp::now() >= soon);
}

#[tokio::test]
async fn a_bundle_without_settings_is_an_error_and_no_process() {
    let host = Host::new(&program::image(program::HANG));
    fs::remove_file(host.bundle.join(file::VM_SPEC)).unwrap();
    let error = Vm::spawn(Path::new(EXE), &host.bundle).await.unwrap_err();
    assert!(matches!(error, VmError::NotReady { .. }));
    assert!(error.to_string().contains("Vm.json"), "{error}");
}

#[tokio::test]
async fn an_agent_that_is_not_a_program_is_named() {
    let host = Host::new(&program::image(program::HANG));
    let error = Vm::spawn(Path::new("/nowhere/agent"), &host.bundle).await.unwrap_err();
    assert!(matches!(error, VmError::Spawn { .. }), "{error}");
    // A program that dies at once: its output is in the log, and in the error.
    let error = Vm::spawn(Path::new("/bin/false"), &host.bundle).await.unwrap_err().to_string();
    assert!(error.contains("exited without a message (exit status: 1)"), "{error}");
}

#[tokio::test]
async fn a_path_too_long_for_a_socket_is_an_error_before_anything_starts() {
    let error = Vm::adopt(&PathBuf::from(format!("/{}", "x".repeat(120)))).await.unwrap_err().to_string();
    assert!(error.contains("--runners-path"), "{error}");
}

#[tokio::test]
async fn ignored_signals_cost_no_vm() {
    let host = Host::new(&program::image(program::HANG));
    let vm = host.started().await;
    let pid = Pid::from_raw(i32::try_from(vm.status().borrow().pid).unwrap());
    for signal in [Signal::SIGHUP, Signal::SIGUSR1, Signal::SIGUSR2] {
        kill(pid, signal).unwrap();
        // Each is on record before the next question.
        until_logged(&host.bundle, signal.as_str()).await;
    }
    vm.pause().await.expect("the VM process answers, and its VM runs");
    vm.stop(Stop::Force).await.unwrap();
    assert_eq!(vm.ended().await.kind(), VmEndKind::Requested);
}

async fn until_logged(bundle: &Path, word: &str) {
    let logged = async {
        while !fs::read_to_string(bundle.join(file::VM_LOG)).unwrap_or_default().contains(word) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), logged).await.expect("it is logged");
}

#[tokio::test]
async fn a_log_that_cannot_be_written_costs_no_vm() {
    let host = Host::new(&program::image(program::HANG));
    std::os::unix::fs::symlink("/dev/full", host.bundle.join(file::VM_LOG)).unwrap();
    let vm = host.spawn().await;
    vm.start().await.unwrap();
    vm.pause().await.unwrap();
    vm.stop(Stop::Force).await.unwrap();
    assert_eq!(vm.ended().await.kind(), VmEndKind::Requested);
}
