//! `make` and its scripts on simulated machines: PATH is a directory of fake programs, `uname` names the machine, and the
//! tests check what the targets print and call. Nothing is built or installed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
    process::Command,
};

use shoes_vz_testkit::bins::repository;
use tempfile::TempDir;

/// The programs that the Makefile and its scripts expect on every system; a test adds others.
const TOOLS: [&str; 23] = [
    "awk", "basename", "bash", "cat", "chmod", "cp", "cut", "dirname", "env", "grep", "head", "id",
    "install", "make", "mkdir", "mv", "readlink", "rm", "sed", "sh", "sort", "tail", "tr",
];

struct Machine {
    dir: TempDir,
}

impl Machine {
    /// With the output of `uname -s` and `uname -m`.
    fn new(system: &str, architecture: &str) -> Self {
        let machine = Self { dir: tempfile::tempdir().unwrap() };
        let path = std::env::var_os("PATH").unwrap();
        fs::create_dir(machine.bin()).unwrap();
        for tool in TOOLS {
            let found = std::env::split_paths(&path).map(|dir| dir.join(tool)).find(|path| path.is_file());
            symlink(found.unwrap_or_else(|| panic!("no {tool} here")), machine.bin().join(tool)).unwrap();
        }
        machine.with("uname", &format!("case $1 in -s) echo {system} ;; -m) echo {architecture} ;; esac"))
    }

    /// A Mac with all required programs.
    fn mac() -> Self {
        Self::new("Darwin", "arm64")
            .with("xcode-select", "echo /Applications/Xcode.app/Contents/Developer")
            .with("swift", "echo 'Apple Swift version 6.2.1 (swiftlang-6.2.1)'")
            .with("cargo", "echo 'cargo 1.99.0'")
    }

    fn bin(&self) -> PathBuf {
        self.dir.path().join("bin")
    }

    fn with(self, name: &str, script: &str) -> Self {
        let path = self.bin().join(name);
        // Writing through a link would replace the program of this system.
        match fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => panic!("{path:?}: {e}"),
            _ => {}
        }
        fs::write(&path, format!("#!/bin/bash\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    fn without(self, name: &str) -> Self {
        fs::remove_file(self.bin().join(name)).unwrap();
        self
    }

    /// Returns whether it succeeded, and its output.
    fn make(&self, args: &[&str]) -> (bool, String) {
        self.run(Command::new("make").args(["--no-print-directory", "-C"]).arg(repository()).args(args))
    }

    fn run(&self, command: &mut Command) -> (bool, String) {
        let program = self.bin().join(command.get_program());
        let mut whole = Command::new(program);
        whole.args(command.get_args()).env_clear().env("PATH", self.bin()).env("HOME", self.dir.path());
        for (name, value) in command.get_envs() {
            whole.env(name, value.unwrap());
        }
        let result = whole.output().unwrap();
        let output = [result.stdout, result.stderr].concat();
        (result.status.success(), String::from_utf8_lossy(&output).into_owned())
    }
}

#[test]
fn a_complete_mac_is_set_up_without_any_output() {
    let mac = Machine::mac();
    assert_eq!(mac.make(&["setup"]), (true, String::new()));
    let (done, output) = mac.make(&["deps"]);
    assert!(done && output.contains("deps: this is `make setup`"), "{output}");
}

#[test]
fn missing_rust_and_xcode_on_a_mac_are_named_with_their_remedy() {
    let (done, output) = Machine::mac().without("cargo").with("brew", "exit 9").make(&["setup"]);
    assert!(!done && output.contains("with Homebrew, `brew install rustup`"), "{output}");
    let (done, output) = Machine::mac().without("cargo").make(&["setup"]);
    assert!(!done && output.contains("install rustup from https://rustup.rs"), "{output}");
    let (done, output) = Machine::mac().with("cargo", "echo 'cargo 1.80.0'").make(&["setup"]);
    assert!(!done && output.contains("cargo 1.80.0") && output.contains("rustup update stable"), "{output}");
    let (done, output) = Machine::mac().with("xcode-select", "exit 2").make(&["setup"]);
    assert!(!done && output.contains("Xcode 26") && output.contains("xcode-select --install"), "{output}");
    let (done, output) =
        Machine::mac().with("swift", "echo 'licence not accepted' >&2; exit 69").make(&["setup"]);
    assert!(
        !done && output.contains("licence not accepted") && output.contains("xcodebuild -license"),
        "{output}"
    );
    let (done, output) = Machine::mac().with("swift", "echo 'Apple Swift version 5.10'").make(&["setup"]);
    assert!(!done && output.contains("Swift 5 is selected"), "{output}");
}

#[test]
fn the_architecture_is_checked_after_the_operating_system() {
    let (done, output) =
        Machine::new("Linux", "riscv64").with("cargo", "echo 'cargo 1.99.0'").make(&["setup"]);
    assert!(!done && output.contains("Linux guests are not supported on riscv64"), "{output}");
    let (done, output) = Machine::new("FreeBSD", "arm64").make(&["setup"]);
    assert!(!done && output.contains("this is FreeBSD") && !output.contains("not supported on"), "{output}");
    let (done, output) = Machine::new("Darwin", "x86_64").make(&["setup"]);
    assert!(!done && output.contains("a Mac with Apple silicon"), "{output}");
}

#[test]
fn targets_for_linux_fail_on_a_mac_and_name_the_alternative() {
    // Calling this cargo fails the test by its output.
    let mac = Machine::mac().with("cargo", "echo cargo was called");
    for target in ["demo", "template", "chaos", "soak", "bench"] {
        let (done, output) = mac.make(&[target]);
        assert!(!done, "{target}: {output}");
        for part in [
            &format!("{target}: "),
            "make build",
            "make bundle",
            "template install-macos",
            "docs/on-a-mac.md",
        ] {
            assert!(output.contains(part), "{target}, {part}: {output}");
        }
        assert!(!output.contains("cargo was called"), "{output}");
    }
}

#[test]
fn every_cargo_call_on_a_mac_has_the_deployment_target() {
    let log = "echo \"$MACOSX_DEPLOYMENT_TARGET $*\" >> \"$HOME/calls\"; [[ $1 != --version ]] || echo 'cargo 1.99.0'";
    let mac = Machine::mac().with("cargo", log);
    // `check` also calls cargo-deny, which is a subcommand of the same cargo.
    for target in ["check", "proto-generate"] {
        let (done, output) = mac.make(&[target]);
        assert!(done, "{target}: {output}");
    }
    let calls = fs::read_to_string(mac.dir.path().join("calls")).unwrap();
    assert!(calls.contains("clippy") && calls.contains("--test released"), "{calls}");
    assert!(calls.lines().all(|call| call.starts_with("26.0 ")), "{calls}");
}

/// Copies the scripts into a separate checkout, since they write into it.
fn checkout(machine: &Machine) -> PathBuf {
    let root = machine.dir.path().join("checkout");
    for name in ["Makefile", "Cargo.toml", "entitlements.plist", "scripts/setup.sh", "scripts/build.sh"] {
        let to = root.join(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(repository().join(name), to).unwrap();
    }
    root
}

const PROGRAMS: [&str; 4] = ["shoes-vz-client", "shoes-vz-server", "shoes-vz-agent", "shoes-vz-runner-agent"];

/// A cargo that logs its calls and creates its outputs.
fn cargo(folder: &str) -> String {
    format!(
        "echo \"$*\" >> \"$HOME/calls\"; [[ $1 != --version ]] || {{ echo 'cargo 1.99.0'; exit; }}
         mkdir -p target/{folder}; for p in {}; do echo $p > target/{folder}/$p; done",
        PROGRAMS.join(" ")
    )
}

#[test]
fn make_build_puts_four_release_binaries_into_bin_and_signs_them_on_a_mac() {
    let codesign = "echo \"codesign $*\" >> \"$HOME/calls\"";
    let mac = Machine::mac().with("cargo", &cargo("release")).with("codesign", codesign);
    let root = checkout(&mac);
    let make = |args: &[&str]| mac.run(Command::new("make").arg("-C").arg(&root).arg("build").args(args));
    let (done, output) = make(&[]);
    assert!(done, "{output}");
    for program in PROGRAMS {
        assert_eq!(fs::read_to_string(root.join("bin").join(program)).unwrap(), format!("{program}\n"));
    }
    let calls = fs::read_to_string(mac.dir.path().join("calls")).unwrap();
    assert!(calls.contains("build --profile release --package=shoes-vz-client"), "{calls}");
    let signed: Vec<_> = calls.lines().filter(|call| call.starts_with("codesign ")).collect();
    assert_eq!(signed.len(), 4, "{calls}");
    for call in signed {
        assert!(call.contains("--sign - ") && call.contains("--options runtime"), "{call}");
        assert_eq!(
            call.contains("--entitlements entitlements.plist"),
            call.ends_with("shoes-vz-agent.new"),
            "{call}"
        );
    }
    let (done, output) = make(&["SIGN_IDENTITY=Developer ID"]);
    assert!(done, "{output}");
    assert!(fs::read_to_string(mac.dir.path().join("calls")).unwrap().contains("--sign Developer ID"));
}

#[test]
fn make_build_on_linux_needs_no_qemu_and_accepts_another_profile() {
    let linux = Machine::new("Linux", "x86_64").with("cargo", &cargo("debug")).with("cc", "exit 9");
    let root = checkout(&linux);
    let (done, output) = linux.run(Command::new("make").arg("-C").arg(&root).args(["build", "PROFILE=dev"]));
    assert!(done, "{output}");
    assert!(root.join("bin/shoes-vz-server").is_file() && !output.contains("apt"), "{output}");
    let calls = fs::read_to_string(linux.dir.path().join("calls")).unwrap();
    assert!(calls.contains("build --workspace --bins") && !calls.contains("release"), "{calls}");
}

/// A Debian 12 or Ubuntu with Rust and a C compiler: apt logs its calls and installs this version of QEMU.
fn fresh(release: &str, qemu: &str) -> Machine {
    let machine = Machine::new("Linux", "x86_64");
    fs::write(machine.dir.path().join("os-release"), release).unwrap();
    let program = machine.bin().join("qemu-system-x86_64");
    let installs = format!(
        "echo \"apt-get $*\" >> \"$HOME/calls\"
         if [[ $1 == indextargets ]]; then echo 'bookworm main http://deb.example/debian'; fi
         version={qemu}; [[ \"$*\" != *-backports* ]] || version=10.0.2
         if [[ \" $* \" == *' qemu-system-x86 '* ]]; then
             printf '#!/bin/bash\\necho QEMU emulator version %s\\n' $version > {program:?}; chmod +x {program:?}
         fi"
    );
    machine
        .with("cargo", "echo 'cargo 1.99.0'")
        .with("cc", "exit 9")
        .with("id", "echo 0")
        .with("apt-cache", &format!("echo '  Candidate: 1:{qemu}+dfsg-7'"))
        .with("dpkg-query", "exit 1")
        .with("tee", "{ echo \"tee $*\"; cat; } >> \"$HOME/calls\"")
        .with("apt-get", &installs)
}

impl Machine {
    /// As [`Machine::make`]; returns also the logged calls.
    fn set_up(&self, target: &str) -> (bool, String, String) {
        let mut make = Command::new("make");
        make.args(["--no-print-directory", "-C"]).arg(repository()).arg(target);
        make.env("SHOESVZ_OS_RELEASE", self.dir.path().join("os-release"));
        let (done, output) = self.run(&mut make);
        (done, output, fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default())
    }
}

const DEBIAN_12: &str = "ID=debian\nVERSION_CODENAME=bookworm\nPRETTY_NAME='Debian 12'\n";
const UBUNTU_22: &str = "ID=ubuntu\nVERSION_CODENAME=jammy\nPRETTY_NAME='Ubuntu 22.04'\n";
const UBUNTU_24: &str = "ID=ubuntu\nVERSION_CODENAME=noble\nPRETTY_NAME='Ubuntu 24.04'\n";

#[test]
fn the_demo_needs_no_go_no_python_and_no_foreign_package_source() {
    for (release, qemu, saves) in
        [(DEBIAN_12, "7.2.22", false), (UBUNTU_22, "6.2.0", false), (UBUNTU_24, "8.2.2", true)]
    {
        let (done, output, calls) = fresh(release, qemu).set_up("setup");
        assert!(done, "{release}: {output}");
        assert!(output.contains("(apt-get, as root)"), "{output}");
        assert_eq!(!output.contains("cannot save VMs"), saves, "{output}");
        assert!(calls.contains(" qemu-system-x86") && calls.contains(" mmdebstrap"), "{calls}");
        for not in ["golang", "python", "backports", "qemu-utils", "tee"] {
            assert!(!calls.contains(not), "{not}: {calls}");
        }
    }
}

#[test]
fn only_setup_qemu_adds_a_package_source() {
    let (done, output, calls) = fresh(DEBIAN_12, "7.2.22").set_up("setup-qemu");
    assert!(done && output.contains("QEMU emulator version 10.0.2"), "{output}");
    assert!(calls.contains("tee /etc/apt/sources.list.d/shoes-vz-backports.sources"), "{calls}");
    assert!(calls.contains("URIs: http://deb.example/debian\nSuites: bookworm-backports"), "{calls}");
    assert!(calls.contains("-t bookworm-backports qemu-system-x86 qemu-utils"), "{calls}");
    let (done, output, calls) = fresh(UBUNTU_22, "6.2.0").set_up("setup-qemu");
    assert!(
        !done && output.contains("nothing was installed") && output.contains("Ubuntu has it from 24.04"),
        "{output}"
    );
    assert!(!calls.contains(" install ") && !calls.contains("tee"), "{calls}");
}
