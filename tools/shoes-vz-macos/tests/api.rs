//! The comparison on the repository's own sources: they pass as they are, and each way of being wrong is caught.

use std::path::{Path, PathBuf};
use std::process::Command;

use shoes_vz_macos::api::{self, Report};
use tempfile::TempDir;

const MACHINE: &str = "VZCore/Sources/Virtualization/Machine/VZVirtualMachine.swift";
const CONFIGURATION: &str = "VZCore/Sources/Virtualization/Machine/VZVirtualMachineConfiguration.swift";
const SOCKETS: &str = "VZCore/Sources/Virtualization/Devices/Sockets.swift";
const VZCORE: &str = "VZCore/Sources/VZCore/HostLimits.swift";

/// A copy of the Swift sources that a test may change.
struct Tree(TempDir);

impl Tree {
    fn new() -> Tree {
        let tree = Tree(TempDir::new().expect("a directory"));
        copy(&repository().join("VZCore/Sources"), &tree.0.path().join("VZCore/Sources"));
        tree
    }

    /// Replaces the first `from` in a file, and returns its line.
    fn change(&self, file: &str, from: &str, to: &str) -> usize {
        let path = self.0.path().join(file);
        let text = std::fs::read_to_string(&path).expect("a source");
        let at = text.find(from).unwrap_or_else(|| panic!("{file} has no `{from}`"));
        std::fs::write(&path, text.replacen(from, to, 1)).expect("written");
        text[..at].matches('\n').count() + 1
    }

    fn check(&self) -> Report {
        api::check(self.0.path()).expect("a report")
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).expect("a directory");
    for entry in std::fs::read_dir(from).expect("sources") {
        let path = entry.expect("an entry").path();
        let copied = to.join(path.file_name().expect("a name"));
        if path.is_dir() {
            copy(&path, &copied);
        } else if path.extension().is_some_and(|extension| extension == "swift") {
            std::fs::copy(&path, &copied).expect("copied");
        }
    }
}

/// Changes one place and expects a finding about it, `down` lines below.
fn is_caught(file: &str, from: &str, to: &str, down: usize, expected: &str) {
    let tree = Tree::new();
    let line = tree.change(file, from, to) + down;
    let report = tree.check();
    let place = format!("{file}:{line}: ");
    let found = report
        .findings
        .iter()
        .map(ToString::to_string)
        .find(|it| it.starts_with(&place) && it.contains(expected));
    assert!(found.is_some(), "no `{expected}` at {place} in {:#?}", report.findings);
}

#[test]
fn the_repositorys_own_sources_are_right() {
    let report = api::check(&repository()).expect("a report");
    let counts = &report.counts;
    println!("{counts:#?}\nVZCore uses {} of {}", report.usage.used, report.usage.declared);
    assert_eq!(report.findings, []);
    assert_eq!(counts.compared, counts.public);
    assert!(counts.public > 300 && counts.in_both > 250, "{counts:#?}");
}

#[test]
fn a_wrong_selector_is_caught() {
    is_caught(
        MACHINE,
        "VZVirtualMachine pauseWithCompletionHandler:",
        "VZVirtualMachine haltWithCompletionHandler:",
        1,
        "`VZVirtualMachine` has no selector `haltWithCompletionHandler:`",
    );
}

#[test]
fn another_selector_of_the_same_class_is_caught_by_its_name_and_types() {
    is_caught(
        MACHINE,
        "VZVirtualMachine pauseWithCompletionHandler:",
        "VZVirtualMachine resumeWithCompletionHandler:",
        1,
        "`resumeWithCompletionHandler:` is `resume(completionHandler:)` in Swift, not `pause(completionHandler:)`",
    );
}

#[test]
fn a_wrong_class_is_caught() {
    is_caught(
        MACHINE,
        "// objc: VZVirtualMachine canPause 11.0",
        "// objc: VZVirtualMachineConfiguration canPause 11.0",
        1,
        "`VZVirtualMachine.canPause` is named as a member of `VZVirtualMachineConfiguration`",
    );
    is_caught(
        SOCKETS,
        "// objc: VZSocketDevice 11.0",
        "// objc: VZSockDevice 11.0",
        1,
        "no class, protocol or enum",
    );
}

#[test]
fn a_class_method_declared_as_an_instances_is_caught() {
    is_caught(
        CONFIGURATION,
        "open class var maximumAllowedCPUCount",
        "open var maximumAllowedCPUCount",
        0,
        "`maximumAllowedCPUCount` is the class' property",
    );
    is_caught(
        CONFIGURATION,
        "VZVirtualMachineConfiguration +maximumAllowedCPUCount",
        "VZVirtualMachineConfiguration maximumAllowedCPUCount",
        1,
        "is a class method, not an instance method",
    );
}

#[test]
fn a_symbol_said_to_be_older_or_newer_than_it_is_is_caught() {
    is_caught(
        MACHINE,
        "VZVirtualMachine queue 26.0",
        "VZVirtualMachine queue 27.0",
        1,
        "came with macOS 26.0, not 27.0",
    );
    is_caught(
        MACHINE,
        "VZVirtualMachine queue 26.0",
        "VZVirtualMachine queue 11.0",
        1,
        "came with macOS 26.0, not 11.0",
    );
    is_caught(
        MACHINE,
        "VZVirtualMachine canPause 11.0",
        "VZVirtualMachine canPause",
        1,
        "is not `Class [+]selector macOS`",
    );
}

#[test]
fn a_wrong_enum_value_is_caught() {
    is_caught(MACHINE, "case paused = 2", "case paused = 22", 0, "`VZVirtualMachineStatePaused` is 2");
    is_caught(MACHINE, "StatePaused=2 11.0", "StatePaused=5 11.0", 1, "is 2, not 5");
    is_caught(MACHINE, "case paused = 2", "case halted = 2", 0, "is `paused` in Swift, not `halted`");
}

#[test]
fn a_missing_annotation_is_caught() {
    is_caught(
        MACHINE,
        "    // objc: VZVirtualMachine canPause 11.0\n",
        "",
        0,
        "has no `// objc:` or `// c:` line before it",
    );
    is_caught(
        MACHINE,
        "    // objc: VZVirtualMachine canPause 11.0\n",
        "    public func helper() {}\n    // objc: VZVirtualMachine canPause 11.0\n",
        0,
        "`VZVirtualMachine.helper()` has no `// objc:`",
    );
}

#[test]
fn a_wrong_superclass_is_caught() {
    is_caught(
        SOCKETS,
        "class VZVirtioSocketDevice: VZSocketDevice",
        "class VZVirtioSocketDevice: NSObject",
        0,
        "`VZVirtioSocketDevice` inherits from `VZSocketDevice`, not `NSObject`",
    );
}

#[test]
fn a_wrong_argument_label_is_caught() {
    is_caught(
        SOCKETS,
        "removeSocketListener(forPort",
        "removeSocketListener(port",
        0,
        "is `removeSocketListener(forPort:)` in Swift",
    );
}

#[test]
fn a_wrong_type_is_caught() {
    is_caught(
        CONFIGURATION,
        "var memorySize: UInt64",
        "var memorySize: Int",
        0,
        "`uint64_t`: `UInt64`, not `Int`",
    );
    is_caught(
        CONFIGURATION,
        "var bootLoader: VZBootLoader?",
        "var bootLoader: VZBootLoader",
        0,
        "can be nil",
    );
    is_caught(
        MACHINE,
        "func stop(completionHandler: @escaping ((any Error)?) -> Void)",
        "func stop(completionHandler: @escaping (Result<Void, any Error>) -> Void)",
        0,
        "is documented as `func stop(completionHandler: ((any Error)?) -> Void)`",
    );
    is_caught(MACHINE, "func requestStop() throws", "func requestStop()", 0, "throws in Swift");
}

#[test]
fn a_property_that_can_be_set_here_but_not_in_the_sdk_is_caught() {
    is_caught(SOCKETS, "public let sourcePort", "public var sourcePort", 0, "cannot be set in the SDK");
    is_caught(
        CONFIGURATION,
        "open var bootLoader",
        "open private(set) var bootLoader",
        0,
        "can be set in the SDK",
    );
}

#[test]
fn a_conformance_that_the_sdk_does_not_have_is_caught() {
    is_caught(
        MACHINE,
        "class VZVirtualMachine: NSObject",
        "class VZVirtualMachine: NSObject, @unchecked Sendable",
        0,
        "`VZVirtualMachine` does not conform to `Sendable`",
    );
    is_caught(
        MACHINE,
        "import Foundation",
        "extension VZVirtualMachine.State: CaseIterable {}\nimport Foundation",
        0,
        "CaseIterable",
    );
}

#[test]
fn a_class_of_the_main_thread_must_be_the_main_actors() {
    is_caught(
        "VZCore/Sources/AppKit/NSWindow.swift",
        "@MainActor\nopen class",
        "open class",
        0,
        "it needs @MainActor",
    );
}

#[test]
fn a_wrong_c_symbol_is_caught() {
    let vmnet = "VZCore/Sources/vmnet/vmnet.swift";
    is_caught(
        vmnet,
        "case VMNET_SHARED_MODE = 1001",
        "case VMNET_SHARED_MODE = 1002",
        0,
        "`VMNET_SHARED_MODE` is 1001",
    );
    is_caught(
        vmnet,
        "public func vmnet_network_create(",
        "public func vmnet_network_make(",
        0,
        "in C, not `vmnet_network_create`",
    );
    let darwin = "VZCore/Sources/Darwin/clonefile.swift";
    is_caught(darwin, "_ flags: UInt32", "_ flags: Int32", 0, "is `u32`");
    is_caught(
        darwin,
        "CLONE_NOFOLLOW: Int32 = 0x0001",
        "CLONE_NOFOLLOW: Int32 = 0x0008",
        0,
        "is documented as",
    );
}

#[test]
fn an_unneeded_line_of_the_table_is_caught() {
    let tree = Tree::new();
    tree.change(MACHINE, "public convenience init(configuration", "convenience init(configuration");
    let findings = tree.check().findings;
    let found = |expected: &str| findings.iter().any(|it| it.to_string().contains(expected));
    assert!(found("nothing in the stand-ins is `VZVirtualMachine.init(configuration:)`"), "{findings:#?}");
    assert!(found("which other modules do not see"), "{findings:#?}");
}

#[test]
fn what_escapes_the_comparison_is_refused_in_vzcore() {
    let import = "import Virtualization\n";
    is_caught(
        VZCORE,
        import,
        "@_spi(StandIn) import Virtualization\n",
        0,
        "`@_spi` reaches a part of a stand-in",
    );
    is_caught(
        VZCORE,
        import,
        "#if os(Linux)\nimport Virtualization\n#endif\n",
        0,
        "`#if`: VZCore is the same",
    );
    is_caught(
        VZCORE,
        import,
        "import Virtualization\nimport Glibc\n",
        1,
        "imports `Glibc`, which does not exist on macOS",
    );
    is_caught(
        VZCORE,
        import,
        "import Virtualization\nlet a = NSSelectorFromString(\"b\")\n",
        1,
        "a selector by its name",
    );
}

#[test]
fn a_re_exported_module_that_macos_does_not_have_is_caught() {
    is_caught(
        MACHINE,
        "import Foundation",
        "@_exported import CLinux\nimport Foundation",
        0,
        "re-exports the module `CLinux`",
    );
}

#[test]
fn sources_cut_off_anywhere_are_read_without_a_crash() {
    let tree = Tree::new();
    let path = tree.0.path().join(MACHINE);
    let text = std::fs::read_to_string(&path).expect("a source");
    let last = text.rfind("// objc:").expect("an annotation");
    for end in (0..text.len()).step_by(499).filter(|end| text.is_char_boundary(*end)) {
        std::fs::write(&path, &text[..end]).expect("written");
        let findings = tree.check().findings;
        // Behind the last annotation only private members are lost.
        assert!(end > last || !findings.is_empty(), "cut off at {end}");
    }
}

#[test]
fn the_program_prints_the_counts_and_fails_if_something_is_wrong() {
    let run = |root: &Path| {
        let output =
            Command::new(env!("CARGO_BIN_EXE_check-api")).arg("--root").arg(root).output().expect("run");
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    let tree = Tree::new();
    let (code, text) = run(tree.0.path());
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("(100.0 %)") && text.contains("0 wrong"), "{text}");

    let line = tree.change(MACHINE, "canPause 11.0", "canRest 11.0") + 1;
    let (code, text) = run(tree.0.path());
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains(&format!("error: {MACHINE}:{line}: ")), "{text}");
}
