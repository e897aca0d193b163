//! Whether KVM works here, shown by using it: `/dev/kvm` may open, and VMs may be created, on hosts where no
//! stock kernel runs (nested "pagetable" VMs run every instruction through the kernel's emulator).
//!
//! The probe is a VM without firmware whose few instructions count down from fifty million and then end it:
//! 20 ms on real KVM, minutes where KVM emulates. It runs once for each boot of the host and version of QEMU.

use std::{
    fs, io,
    os::unix::{fs::OpenOptionsExt as _, process::ExitStatusExt as _},
    path::Path,
    process::Stdio,
    time::Duration,
};

use serde::{Deserialize, Serialize};
use shoes_vz_model::text;
use shoes_vz_process::files::{self, Readers};
use tokio::process::Command;

use crate::{arch::Arch, spec::Accelerator, temporary::Temporary};

/// More than enough for real KVM on a busy host.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);
const CACHE: &str = "accelerator.json";
/// Of that file, which is a few lines; in bytes.
const MAX_CACHED: u64 = 64 << 10;
const ROM: &str = "accelerator-probe.rom";

/// The result of a probe, and the host and QEMU that it is valid for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Detection {
    boot_id: String,
    kernel: String,
    qemu: String,
    accelerator: Accelerator,
    reason: String,
}

/// KVM if the probe shows that it works, else TCG; never `Auto`. The answer is kept in `cache_dir`, and logged.
pub async fn detect(cache_dir: &Path) -> Accelerator {
    let cached = cache_dir.join(CACHE);
    let host = host().await;
    if let Ok(bytes) = files::read_bounded(&cached, MAX_CACHED)
        && let Ok(found) = serde_json::from_slice::<Detection>(&bytes)
        && (&found.boot_id, &found.kernel, &found.qemu) == (&host.boot_id, &host.kernel, &host.qemu)
        && found.accelerator != Accelerator::Auto
    {
        tracing::info!(accelerator = %found.accelerator, reason = found.reason, "accelerator known from an earlier probe");
        return found.accelerator;
    }
    let found = match probe(cache_dir, Accelerator::Kvm).await {
        Ok(()) => Detection {
            accelerator: Accelerator::Kvm,
            reason: "KVM ran the probe VM at full speed".into(),
            ..host
        },
        Err(reason) => Detection { accelerator: Accelerator::Tcg, reason, ..host },
    };
    match found.accelerator {
        Accelerator::Kvm => {
            tracing::info!(accelerator = "kvm", reason = found.reason, "accelerator selected")
        }
        _ => tracing::warn!(
            accelerator = "tcg",
            reason = found.reason,
            "accelerator selected; emulated guests are 5 to 15 times slower"
        ),
    }
    let kept = serde_json::to_vec(&found)
        .map_err(io::Error::from)
        .and_then(|json| files::replace(&cached, &json, Readers::Owner));
    if let Err(error) = kept {
        tracing::warn!(path = ?cached, reason = %error, "keeping the accelerator's name failed; the next start probes it again");
    }
    found.accelerator
}

async fn host() -> Detection {
    let line = |path: &str| fs::read_to_string(path).unwrap_or_default().trim().to_owned();
    let qemu = match Arch::of_this_host() {
        Some(arch) => Command::new(arch.program()).arg("--version").stdin(Stdio::null()).output().await,
        None => Err(io::ErrorKind::Unsupported.into()),
    };
    Detection {
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        kernel: line("/proc/sys/kernel/osrelease"),
        qemu: qemu.map(|out| text::tail(&out.stdout, 2, 200)).unwrap_or_default(),
        accelerator: Accelerator::Auto,
        reason: String::new(),
    }
}

/// Runs the probe; the error is the reason why the accelerator cannot be used.
async fn probe(dir: &Path, accelerator: Accelerator) -> Result<(), String> {
    let arch = Arch::of_this_host().ok_or("QEMU guests are not supported on this architecture")?;
    if accelerator == Accelerator::Kvm {
        fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .map_err(|e| format!("/dev/kvm cannot be opened ({e}); is this user in the group kvm?"))?;
    }
    let rom =
        write_rom(dir, arch).map_err(|e| format!("the probe VM's ROM cannot be written to {dir:?} ({e})"))?;
    // coreutils' timeout ends the probe even if this process is killed meanwhile.
    let mut command = Command::new("timeout");
    command.args(["-s", "KILL", &PROBE_DEADLINE.as_secs().to_string(), arch.program()]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-m", "16"]);
    command.args(["-accel", accelerator.as_str(), "-bios"]).arg(&rom.path);
    match arch {
        Arch::X86_64 => command.args(["-machine", "pc", "-device", "isa-debug-exit,iobase=0xf4,iosize=4"]),
        Arch::Aarch64 => command.args(["-machine", "virt,gic-version=max"]),
    };
    command.args(["-cpu", if accelerator == Accelerator::Kvm { "host" } else { "max" }]);
    let running = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).output();
    let out = running.await.map_err(|e| format!("timeout(1) cannot be started ({e})"))?;
    let stderr = text::tail(&out.stderr, 3, 500);
    match (out.status.code(), out.status.signal()) {
        (Some(code), _) if code == rom_exit_code(arch) => Ok(()),
        (Some(137), _) | (None, Some(9)) => Err(format!(
            "a probe VM that needs milliseconds did not end within {} s: this KVM emulates instructions, as in some \
             nested VMs",
            PROBE_DEADLINE.as_secs()
        )),
        (Some(127), _) => Err(format!("{} is not installed: {stderr}", arch.program())),
        _ => Err(format!("the probe VM ended with {}: {stderr}", out.status)),
    }
}

/// Writes the probe's code, which takes the place of firmware.
fn write_rom(dir: &Path, arch: Arch) -> io::Result<Temporary> {
    let path = dir.join(format!("{ROM}.{}", std::process::id()));
    let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
    let written = Temporary { path, failure: "removing the probe VM's ROM failed" };
    io::Write::write_all(&mut file, &rom(arch))?;
    Ok(written)
}

fn rom_exit_code(arch: Arch) -> i32 {
    match arch {
        // isa-debug-exit: the byte written, doubled, and one.
        Arch::X86_64 => (0x31 << 1) | 1,
        // PSCI SYSTEM_OFF.
        Arch::Aarch64 => 0,
    }
}

#[rustfmt::skip]
fn rom(arch: Arch) -> Vec<u8> {
    match arch {
        Arch::X86_64 => {
            let mut rom = vec![0u8; 64 << 10];
            let code: [u8; 62] = [
                0xfa,                                           // cli
                0x2e, 0x66, 0x0f, 0x01, 0x16, 0x38, 0x00,       // lgdtl %cs:0x38
                0x0f, 0x20, 0xc0, 0x0c, 0x01, 0x0f, 0x22, 0xc0, // protected mode on
                0x66, 0xea, 0x18, 0x00, 0xff, 0xff, 0x08, 0x00, // ljmpl $8, $0xffff0018
                0xb9, 0x80, 0xf0, 0xfa, 0x02,                   // 0x18: mov $50000000, %ecx
                0x49, 0x75, 0xfd,                               // 0x1d: dec %ecx; jnz 0x1d
                0xb0, 0x31, 0xe6, 0xf4,                         // mov $0x31, %al; out %al, $0xf4
                0xf4, 0xeb, 0xfd, 0x90,                         // hlt; jmp back to it
                0, 0, 0, 0, 0, 0, 0, 0,                         // 0x28: GDT: null,
                0xff, 0xff, 0, 0, 0, 0x9b, 0xcf, 0,             // flat code
                0x0f, 0x00, 0x28, 0x00, 0xff, 0xff,             // 0x38: GDT's limit and address
            ];
            rom[..code.len()].copy_from_slice(&code);
            rom[0xfff0..0xfff3].copy_from_slice(&[0xe9, 0x0d, 0x00]); // reset vector: jmp 0
            rom
        }
        Arch::Aarch64 => [
            0xd2a0_5f41u32, // movz x1, #0x2fa, lsl #16 (about fifty million)
            0xf100_0421,    // subs x1, x1, #1
            0x54ff_ffe1,    // b.ne to it
            0x5280_0100,    // movz w0, #8
            0x72b0_8000,    // movk w0, #0x8400, lsl #16: PSCI SYSTEM_OFF
            0xd400_0002,    // hvc #0
            0x1400_0000,    // b to itself
        ].iter().flat_map(|word| word.to_le_bytes()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_probe_itself_runs_to_its_end() {
        let dir = tempfile::tempdir().unwrap();
        probe(dir.path(), Accelerator::Tcg).await.unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the ROM is removed");
    }

    #[tokio::test]
    async fn the_detected_accelerator_is_kept_for_this_boot_only() {
        let dir = tempfile::tempdir().unwrap();
        let first = detect(dir.path()).await;
        assert_ne!(first, Accelerator::Auto);
        let cache = dir.path().join(CACHE);
        let mut found: Detection = serde_json::from_slice(&fs::read(&cache).unwrap()).unwrap();
        assert_eq!(found.accelerator, first);
        assert!(!found.reason.is_empty());

        // A cached answer is believed …
        let other = if first == Accelerator::Tcg { Accelerator::Kvm } else { Accelerator::Tcg };
        found.accelerator = other;
        fs::write(&cache, serde_json::to_vec(&found).unwrap()).unwrap();
        assert_eq!(detect(dir.path()).await, other);
        // … unless the host was booted again since.
        found.boot_id = "another".into();
        fs::write(&cache, serde_json::to_vec(&found).unwrap()).unwrap();
        assert_eq!(detect(dir.path()).await, first);
    }
}
