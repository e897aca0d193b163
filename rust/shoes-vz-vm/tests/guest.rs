//! With a whole guest: the template in `SHOESVZ_TEST_TEMPLATE` (`make template` builds one).
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "a test's helper may panic as the test may")]

use std::{path::Path, time::Duration};

use shoes_vz_channel::{api::GuestApi, socket};
use shoes_vz_model::guest::{ExecRequest, port};
use shoes_vz_proto::vm::VmEndKind;
use shoes_vz_vm::{
    accel,
    client::{Stop, Vm},
    clone::make_bundle,
    spec::VmSpec,
    template::TemplateDir,
};
use tokio::io::{AsyncBufReadExt as _, BufReader};

const EXE: &str = env!("CARGO_BIN_EXE_shoes-vz-vm-test");
/// Emulated guests on a shared machine.
const BOOT_DEADLINE: Duration = Duration::from_secs(120);

/// A VM of the template, with `arguments` added to its kernel's command line.
async fn started(arguments: &str) -> (tempfile::TempDir, Vm) {
    let template = std::env::var_os("SHOESVZ_TEST_TEMPLATE")
        .expect("SHOESVZ_TEST_TEMPLATE must name a Linux template's directory (`make template` builds target/template)");
    let template = TemplateDir::open(Path::new(&template)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    // A VM outlives the process that started it; one of a failed test must not do so for long.
    let max_lifetime = Some(jiff::Timestamp::now() + 2 * BOOT_DEADLINE);
    let spec = VmSpec {
        max_lifetime,
        kernel_cmdline: format!("{} {arguments}", template.meta.kernel_cmdline),
        accelerator: accel::detect(dir.path()).await,
        ..VmSpec::of_template(&template)
    };
    let bundle = dir.path().join("1.bundle");
    make_bundle(&template, &bundle, &spec).unwrap();
    let vm = Vm::spawn(Path::new(EXE), &bundle).await.unwrap();
    vm.start().await.unwrap();
    (dir, vm)
}

async fn up(vm: &Vm) {
    let mut status = vm.status();
    let up = status.wait_for(|s| s.guest_up || s.end.is_some());
    let status = tokio::time::timeout(BOOT_DEADLINE, up).await.unwrap().unwrap();
    assert!(status.guest_up, "{:?}", status.end);
}

#[tokio::test]
async fn a_guest_announces_itself_answers_ssh_and_powers_off_when_asked() {
    let (_dir, vm) = started("").await;
    // Asked for before the guest is up: it waits.
    let stream = tokio::time::timeout(BOOT_DEADLINE, socket::dial(&vm.guest_socket(), port::SSH))
        .await
        .unwrap()
        .unwrap();
    let mut banner = String::new();
    BufReader::new(stream).read_line(&mut banner).await.unwrap();
    assert!(banner.starts_with("SSH-2.0-"), "{banner:?}");
    up(&vm).await;
    let status = vm.status().borrow().clone();
    eprintln!(
        "started after {} ms, guest up after {} ms ({})",
        status.started_ms, status.guest_up_ms, status.accelerator
    );
    assert!(status.started_ms > 0 && status.guest_up_ms > status.started_ms);

    vm.stop(Stop::Grace(Duration::from_secs(60))).await.unwrap();
    let end = vm.ended().await;
    assert_eq!(
        (end.kind, end.reason.as_str()),
        (VmEndKind::Requested as i32, "the guest powered off, as asked")
    );
}

#[tokio::test]
async fn a_guest_kernels_panic_is_the_vms_end() {
    // In the guest only root may make the kernel panic, except by asking for more memory than there is.
    let (_dir, vm) = started("sysctl.vm.panic_on_oom=2").await;
    up(&vm).await;
    let crash = ExecRequest { command: "tail".into(), args: vec!["/dev/zero".into()], timeout_seconds: 0 };
    // No answer comes, unless the request failed.
    let api = GuestApi::new(vm.guest_socket());
    let answer = api.exec(crash);
    let end = tokio::select! {
        end = vm.ended() => end,
        answer = answer => match answer {
            Ok(answer) => panic!("the guest did not panic: {answer:?}"),
            Err(_) => vm.ended().await,
        },
    };
    assert_eq!(end.kind, VmEndKind::GuestPanic as i32, "{}", end.reason);
}
