//! QEMU's command line: pure. Everything that differs between architectures is in the methods of [`Arch`].

use std::ffi::OsString;

use serde_json::json;
use shoes_vz_model::{bundle, guest, template::file};

use crate::{
    arch::Arch,
    clone::OVERLAY,
    saved::file as saved,
    spec::{Accelerator, Display, StateUse, VmSpec},
};

/// QEMU connects to our two sockets in its working directory, so that its start is an event.
pub(super) const QMP_SOCKET: &str = "qmp.sock";
/// Of the guest channel.
pub(super) const CHANNEL_SOCKET: &str = "serial.sock";

/// What differs between architectures.
impl Arch {
    /// `pc` starts faster than `q35`; USB, the VMware port and the HPET only cost boot time.
    fn machine(self) -> &'static str {
        match self {
            Self::X86_64 => "pc,usb=off,vmport=off,hpet=off",
            Self::Aarch64 => "virt,gic-version=max",
        }
    }

    /// Every feature that the emulator has. Without five-level paging (`la57`) its page walks are a level shorter; `rdrand`
    /// must stay, because sshd waits for the random pool.
    fn emulated_cpu(self) -> &'static str {
        match self {
            Self::X86_64 => "max,-la57",
            Self::Aarch64 => "max",
        }
    }

    fn console(self) -> &'static str {
        match self {
            Self::X86_64 => "ttyS0",
            Self::Aarch64 => "ttyAMA0",
        }
    }

    /// A device that tells the guest's kernel that it is a clone, so that it reseeds its random numbers. PC only.
    fn has_vmgenid(self) -> bool {
        matches!(self, Self::X86_64)
    }
}

/// The arguments for a VM of `spec`, to be run with the bundle as working directory. `accelerator` is not `Auto`.
pub fn arguments(arch: Arch, accelerator: Accelerator, spec: &VmSpec) -> Vec<OsString> {
    let mut args: Vec<OsString> = Vec::with_capacity(64);
    let mut add = |list: &[&str]| args.extend(list.iter().map(OsString::from));

    add(&["-nodefaults", "-no-user-config", "-no-reboot", "-S"]);
    add(&["-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"]);
    // Memory in a file: shared, so that a save leaves it behind; private, for a clone of that.
    let backing = match &spec.state {
        StateUse::None => None,
        StateUse::Save(dir) => Some((dir, "on")),
        StateUse::Restore(dir) => Some((dir, "off")),
    };
    let backend = if backing.is_some() { ",memory-backend=ram" } else { "" };
    add(&["-machine", &format!("{}{backend}", arch.machine())]);
    match accelerator {
        Accelerator::Kvm => add(&["-accel", "kvm", "-cpu", "host"]),
        Accelerator::Tcg | Accelerator::Auto => {
            add(&["-accel", "tcg,thread=multi", "-cpu", arch.emulated_cpu()])
        }
    }
    add(&["-smp", &spec.cpus.to_string()]);
    let mebibytes = memory_mib(spec);
    add(&["-m", &format!("{mebibytes}M")]);
    if let Some((dir, share)) = backing {
        // As JSON, so that no comma in a path means anything.
        let ram = json!({
            "qom-type": "memory-backend-file", "id": "ram", "size": mebibytes << 20,
            "mem-path": dir.join(saved::MEMORY), "share": share == "on",
        });
        add(&["-object", &ram.to_string()]);
    }
    if matches!(spec.state, StateUse::Restore(_)) {
        add(&["-incoming", "defer"]);
    }
    match spec.display {
        Display::Headless => add(&["-display", "none"]),
        Display::Window => add(&["-display", "gtk", "-device", "virtio-gpu-pci"]),
    }

    let path = |name: &str| spec.template.join(name);
    add(&["-append", &command_line(arch, &spec.kernel_cmdline)]);
    for (option, name) in [("-kernel", file::KERNEL), ("-initrd", file::INITRD)] {
        args.extend([option.into(), path(name).into_os_string()]);
    }
    let mut add = |list: &[&str]| args.extend(list.iter().map(OsString::from));

    // The disk lives as long as the VM: nothing on it must survive a crash of the host, so nothing is ever flushed.
    // An error of the host's disk stops the VM, which is then ended for that reason, rather than corrupting a job.
    let disk = json!({
        "driver": "qcow2", "node-name": "disk", "discard": "unmap",
        "cache": {"direct": false, "no-flush": true},
        "file": {"driver": "file", "filename": OVERLAY, "discard": "unmap",
                 "cache": {"direct": false, "no-flush": true}},
    });
    add(&["-blockdev", &disk.to_string()]);
    add(&["-device", "virtio-blk-pci,drive=disk,werror=stop,rerror=stop"]);
    // `restrict`: the guest reaches neither the host nor anything beyond it. SSH goes over the guest channel.
    let mac = spec.mac_address.as_deref().map(|mac| format!(",mac={mac}")).unwrap_or_default();
    add(&["-netdev", "user,id=net,restrict=on,ipv6=off"]);
    add(&["-device", &format!("virtio-net-pci,netdev=net,romfile={mac}")]);

    add(&["-chardev", &format!("socket,id=channel,path={CHANNEL_SOCKET},server=off")]);
    add(&["-device", "virtio-serial-pci"]);
    add(&["-device", &format!("virtserialport,chardev=channel,name={}", guest::SERIAL_PORT_NAME)]);
    add(&["-chardev", &format!("file,id=console,path={},append=on", bundle::file::CONSOLE_LOG)]);
    add(&["-serial", "chardev:console"]);
    add(&[
        "-chardev",
        &format!("socket,id=qmp,path={QMP_SOCKET},server=off"),
        "-mon",
        "chardev=qmp,mode=control",
    ]);

    // A panic shows as an event. `exit-failure`, which shows it in the exit code too, came with QEMU 7.1.
    add(&["-device", "pvpanic-pci", "-action", "panic=shutdown"]);
    if arch.has_vmgenid() {
        add(&["-device", "vmgenid,guid=auto"]);
    }
    args
}

/// QEMU takes memory in whole mebibytes.
pub(crate) fn memory_mib(spec: &VmSpec) -> u64 {
    spec.memory_bytes.div_ceil(1 << 20)
}

/// The template's `console=` has precedence; without one the kernel would not write to our console.
fn command_line(arch: Arch, template: &str) -> String {
    if template.split_whitespace().any(|argument| argument.starts_with("console=")) {
        return template.to_owned();
    }
    format!("console={} {template}", arch.console()).trim_end().to_owned()
}

/// The arguments of `shoes-vz-agent` that run `program` so that it dies with process `parent`.
pub(super) fn with_parent(parent: u32, program: &str, args: Vec<OsString>) -> Vec<OsString> {
    let mut all: Vec<OsString> = vec!["exec-with-parent".into(), parent.to_string().into(), "--".into()];
    all.push(program.into());
    all.extend(args);
    all
}

#[cfg(test)]
mod tests {
    use shoes_vz_model::template::{Os, Transport};

    use super::*;
    use crate::spec::{HypervisorKind, Network, StateUse};

    fn spec() -> VmSpec {
        VmSpec {
            hypervisor: HypervisorKind::Qemu,
            accelerator: Accelerator::Tcg,
            cpus: 3,
            memory_bytes: (512 << 20) + 1,
            disk_bytes: 0,
            template: "/srv/a,b c".into(),
            kernel_cmdline: "quiet".into(),
            display: Display::Headless,
            mac_address: None,
            network: Network::Nat,
            max_lifetime: None,
            os: Os::Linux,
            transport: Transport::Channel,
            state: StateUse::None,
        }
    }

    fn line(arch: Arch, accelerator: Accelerator, spec: &VmSpec) -> Vec<String> {
        arguments(arch, accelerator, spec).into_iter().map(|a| a.into_string().unwrap()).collect()
    }

    fn value<'a>(line: &'a [String], option: &str) -> &'a str {
        &line[line.iter().position(|a| a == option).unwrap() + 1]
    }

    #[test]
    fn resources_kernel_and_initrd_come_from_the_spec_for_any_path_of_the_template() {
        let line = line(Arch::X86_64, Accelerator::Tcg, &spec());
        assert_eq!(value(&line, "-smp"), "3");
        assert_eq!(value(&line, "-m"), "513M");
        assert_eq!(value(&line, "-kernel"), "/srv/a,b c/kernel");
        assert_eq!(value(&line, "-initrd"), "/srv/a,b c/initrd");
    }

    #[test]
    fn each_architecture_and_accelerator_has_its_machine_cpu_and_console() {
        for (arch, accelerator, machine, cpu, console) in [
            (Arch::X86_64, Accelerator::Tcg, "pc,", "max,-la57", "console=ttyS0 quiet"),
            (Arch::X86_64, Accelerator::Kvm, "pc,", "host", "console=ttyS0 quiet"),
            (Arch::Aarch64, Accelerator::Tcg, "virt,", "max", "console=ttyAMA0 quiet"),
            (Arch::Aarch64, Accelerator::Kvm, "virt,", "host", "console=ttyAMA0 quiet"),
        ] {
            let line = line(arch, accelerator, &spec());
            assert!(value(&line, "-machine").starts_with(machine), "{arch:?}");
            assert_eq!((value(&line, "-cpu"), value(&line, "-append")), (cpu, console), "{arch:?}");
            assert_eq!(line.iter().any(|a| a.starts_with("vmgenid")), arch == Arch::X86_64);
        }
    }

    #[test]
    fn a_state_is_restored_into_the_machine_it_was_saved_from_except_for_the_memorys_sharing() {
        let with = |state| line(Arch::X86_64, Accelerator::Tcg, &VmSpec { state, ..spec() });
        let (saves, restores) = (with(StateUse::Save("/s,t".into())), with(StateUse::Restore("/s,t".into())));
        let ram =
            |line: &[String]| serde_json::from_str::<serde_json::Value>(value(line, "-object")).unwrap();
        for (line, share) in [(&saves, true), (&restores, false)] {
            assert!(value(line, "-machine").ends_with(",memory-backend=ram"));
            assert_eq!((&ram(line)["mem-path"], &ram(line)["share"]), (&"/s,t/memory".into(), &share.into()));
            assert_eq!(ram(line)["size"], 513 << 20);
        }
        let rest = |line: &[String]| {
            let mut line = line.to_vec();
            let object = line.iter().position(|a| a == "-object").unwrap();
            line.drain(object..object + 2);
            line.retain(|a| a != "-incoming" && a != "defer");
            line
        };
        assert_eq!(rest(&saves), rest(&restores));
        assert!(!value(&line(Arch::X86_64, Accelerator::Tcg, &spec()), "-machine").contains("memory"));
    }

    #[test]
    fn a_console_that_the_template_names_is_kept() {
        assert_eq!(command_line(Arch::X86_64, "quiet console=hvc0"), "quiet console=hvc0");
        assert_eq!(command_line(Arch::X86_64, ""), "console=ttyS0");
    }

    #[test]
    fn a_slots_address_is_the_network_cards() {
        let spec = VmSpec { mac_address: Some("02:1a:2b:3c:4d:01".into()), ..spec() };
        let line = line(Arch::X86_64, Accelerator::Tcg, &spec);
        let card = line.iter().find(|a| a.starts_with("virtio-net-pci")).unwrap();
        assert_eq!(card, "virtio-net-pci,netdev=net,romfile=,mac=02:1a:2b:3c:4d:01");
    }

    #[test]
    fn a_guest_gets_no_way_out_and_no_listener_on_the_host() {
        let line = line(Arch::X86_64, Accelerator::Tcg, &spec());
        let netdev = value(&line, "-netdev");
        assert!(netdev.contains("restrict=on") && !netdev.contains("hostfwd"), "{netdev}");
        assert!(!line.iter().any(|a| a.contains("server=on")), "{line:?}");
    }
}
