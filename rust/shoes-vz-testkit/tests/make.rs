//! `make` and its scripts on machines that are not this one: a directory of fake programs is all of PATH, `uname` says what
//! the machine is, and what the targets say and call is compared. Nothing is built or installed.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::PathBuf,
    process::Command,
};

use shoes_vz_testkit::bins::repository;
use tempfile::TempDir;

/// What the Makefile and its scripts use of every system; anything else has to be put there.
const TOOLS: [&str; 23] = [
    "awk", "basename", "bash", "cat", "chmod", "cp", "cut", "dirname", "env", "grep", "head", "id",
    "install", "make", "mkdir", "mv", "readlink", "rm", "sed", "sh", "sort", "tail", "tr",
];

struct Machine {
    dir: TempDir,
}

impl Machine {
    /// `uname -s` and `uname -m`.
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

    /// A Mac with all it needs.
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
        // Writing through a link would replace the system's own program.
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

    /// Whether it succeeded, and all it said.
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
        let output = whole.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }
}

#[test]
fn a_mac_with_all_it_needs_is_set_up_without_a_word_of_linux() {
    let mac = Machine::mac();
    assert_eq!(mac.make(&["setup"]), (true, String::new()));
    let (done, said) = mac.make(&["deps"]);
    assert!(done && said.contains("deps: this is `make setup`"), "{said}");
}

#[test]
fn a_mac_is_asked_for_rust_and_xcode_by_the_names_they_have_there() {
    let (done, said) = Machine::mac().without("cargo").with("brew", "exit 9").make(&["setup"]);
    assert!(!done && said.contains("with Homebrew, `brew install rustup`"), "{said}");
    let (done, said) = Machine::mac().without("cargo").make(&["setup"]);
    assert!(!done && said.contains("install rustup from https://rustup.rs"), "{said}");
    let (done, said) = Machine::mac().with("cargo", "echo 'cargo 1.80.0'").make(&["setup"]);
    assert!(!done && said.contains("cargo 1.80.0") && said.contains("rustup update stable"), "{said}");
    let (done, said) = Machine::mac().with("xcode-select", "exit 2").make(&["setup"]);
    assert!(!done && said.contains("Xcode 26") && said.contains("xcode-select --install"), "{said}");
    let (done, said) =
        Machine::mac().with("swift", "echo 'licence not accepted' >&2; exit 69").make(&["setup"]);
    assert!(!done && said.contains("licence not accepted") && said.contains("xcodebuild -license"), "{said}");
    let (done, said) = Machine::mac().with("swift", "echo 'Apple Swift version 5.10'").make(&["setup"]);
    assert!(!done && said.contains("Swift 5 is selected"), "{said}");
}

#[test]
fn the_architecture_is_looked_at_after_the_operating_system() {
    let (done, said) = Machine::new("Linux", "riscv64").with("cargo", "echo 'cargo 1.99.0'").make(&["setup"]);
    assert!(!done && said.contains("Linux guests are not supported on riscv64"), "{said}");
    let (done, said) = Machine::new("FreeBSD", "arm64").make(&["setup"]);
    assert!(!done && said.contains("this is FreeBSD") && !said.contains("not supported on"), "{said}");
    let (done, said) = Machine::new("Darwin", "x86_64").make(&["setup"]);
    assert!(!done && said.contains("a Mac with Apple silicon"), "{said}");
}

#[test]
fn what_is_for_linux_says_on_a_mac_what_to_do_instead_and_fails() {
    // A cargo that would be called fails the test by what it says.
    let mac = Machine::mac().with("cargo", "echo cargo was called");
    for target in ["demo", "template", "chaos", "soak", "bench"] {
        let (done, said) = mac.make(&[target]);
        assert!(!done, "{target}: {said}");
        for part in [
            &format!("{target}: "),
            "make build",
            "make bundle",
            "template install-macos",
            "docs/on-a-mac.md",
        ] {
            assert!(said.contains(part), "{target}, {part}: {said}");
        }
        assert!(!said.contains("cargo was called"), "{said}");
    }
}

#[test]
fn every_cargo_call_on_a_mac_has_the_deployment_target() {
    let log = "echo \"$MACOSX_DEPLOYMENT_TARGET $*\" >> \"$HOME/calls\"; [[ $1 != --version ]] || echo 'cargo 1.99.0'";
    let mac = Machine::mac().with("cargo", log);
    // `check` goes on to cargo-deny, which is a subcommand of the same cargo.
    for target in ["check", "proto-generate"] {
        let (done, said) = mac.make(&[target]);
        assert!(done, "{target}: {said}");
    }
    let calls = fs::read_to_string(mac.dir.path().join("calls")).unwrap();
    assert!(calls.contains("clippy") && calls.contains("--test released"), "{calls}");
    assert!(calls.lines().all(|call| call.starts_with("26.0 ")), "{calls}");
}

/// Puts the scripts into a checkout of their own, since they write into it.
fn checkout(machine: &Machine) -> PathBuf {
    let root = machine.dir.path().join("checkout");
    for name in
        ["Makefile", "Cargo.toml", "entitlements.plist", "packaging/dev/setup.sh", "packaging/dev/build.sh"]
    {
        let to = root.join(name);
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(repository().join(name), to).unwrap();
    }
    root
}

const PROGRAMS: [&str; 4] = ["shoes-vz-client", "shoes-vz-server", "shoes-vz-agent", "shoes-vz-runner-agent"];

/// A cargo that notes how it was called and makes what it was to make.
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
    let (done, said) = make(&[]);
    assert!(done, "{said}");
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
    let (done, said) = make(&["SIGN_IDENTITY=Developer ID"]);
    assert!(done, "{said}");
    assert!(fs::read_to_string(mac.dir.path().join("calls")).unwrap().contains("--sign Developer ID"));
}

#[test]
fn make_build_on_linux_asks_for_no_qemu_and_takes_another_profile() {
    let linux = Machine::new("Linux", "x86_64").with("cargo", &cargo("debug")).with("cc", "exit 9");
    let root = checkout(&linux);
    let (done, said) = linux.run(Command::new("make").arg("-C").arg(&root).args(["build", "PROFILE=dev"]));
    assert!(done, "{said}");
    assert!(root.join("bin/shoes-vz-server").is_file() && !said.contains("apt"), "{said}");
    let calls = fs::read_to_string(linux.dir.path().join("calls")).unwrap();
    assert!(calls.contains("build --workspace --bins") && !calls.contains("release"), "{calls}");
}

/// A Debian 12 or Ubuntu with Rust and a C compiler: apt notes what it is asked for and offers this QEMU, which is there
/// once it was installed.
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
    /// As [`Machine::make`], with the calls it led to.
    fn sets_up(&self, target: &str) -> (bool, String, String) {
        let mut make = Command::new("make");
        make.args(["--no-print-directory", "-C"]).arg(repository()).arg(target);
        make.env("SHOESVZ_OS_RELEASE", self.dir.path().join("os-release"));
        let (done, said) = self.run(&mut make);
        (done, said, fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default())
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
        let (done, said, calls) = fresh(release, qemu).sets_up("setup");
        assert!(done, "{release}: {said}");
        assert!(said.contains("(apt-get, as root)"), "{said}");
        assert_eq!(!said.contains("cannot save VMs"), saves, "{said}");
        assert!(calls.contains(" qemu-system-x86") && calls.contains(" mmdebstrap"), "{calls}");
        for not in ["golang", "python", "lz4", "backports", "qemu-utils", "tee"] {
            assert!(!calls.contains(not), "{not}: {calls}");
        }
    }
}

#[test]
fn only_setup_qemu_adds_a_package_source() {
    let (done, said, calls) = fresh(DEBIAN_12, "7.2.22").sets_up("setup-qemu");
    assert!(done && said.contains("QEMU emulator version 10.0.2"), "{said}");
    assert!(calls.contains("tee /etc/apt/sources.list.d/shoes-vz-backports.sources"), "{calls}");
    assert!(calls.contains("URIs: http://deb.example/debian\nSuites: bookworm-backports"), "{calls}");
    assert!(calls.contains("-t bookworm-backports qemu-system-x86 qemu-utils"), "{calls}");
    let (done, said, calls) = fresh(UBUNTU_22, "6.2.0").sets_up("setup-qemu");
    assert!(
        !done && said.contains("nothing was installed") && said.contains("Ubuntu has it from 24.04"),
        "{said}"
    );
    assert!(!calls.contains(" install ") && !calls.contains("tee"), "{calls}");
}
