use super::*;
use crate::api::declaration::Finding;
use crate::api::facts::Row;
use crate::api::parser;

/// What is wrong with a stand-in's text, without the lines of `by-hand.tsv` it does not need.
fn wrong_by(facts: &Facts, text: &str) -> Vec<String> {
    let source = parser::parse("v.swift", text);
    assert_eq!(source.findings, [], "{text}");
    let outcome = compare(facts, &source.declarations, &source.conformances);
    let of_table = |it: &Finding| it.place.file.ends_with(".tsv");
    outcome.findings.iter().filter(|it| !of_table(it)).map(|it| it.message.clone()).collect()
}

fn wrong(text: &str) -> Vec<String> {
    wrong_by(&Facts::built_in().expect("facts"), text)
}

/// A class with one member that others see.
fn member(class: &str, member: &str) -> String {
    format!("// objc: {class} 11.0\nopen class {class}: NSObject {{ init(standIn: Int) {{}}\n{member}\n}}")
}

#[test]
fn what_the_sdk_has_is_right() {
    let text = member(
        "VZVirtualMachine",
        "// objc: VZVirtualMachine canPause 11.0\nopen var canPause: Bool { true }",
    );
    assert_eq!(wrong(&text), [""; 0]);
}

#[test]
fn a_symbol_newer_than_the_deployment_target_is_refused() {
    let mut facts = Facts::built_in().expect("facts");
    let row = facts.rows.iter_mut().find(|row| row.symbol.as_deref() == Some("VZVirtualMachineState"));
    let row: &mut Row = row.expect("the state's line");
    row.introduced = Some(Version(26, 4));
    let text = member("VZVirtualMachine", "// objc: VZVirtualMachineState 26.4\npublic enum State: Int {}");
    assert_eq!(
        wrong_by(&facts, &text),
        ["`VZVirtualMachineState` came with macOS 26.4; the deployment target is 26.0"]
    );
}

#[test]
fn a_completion_handler_may_be_stricter_than_the_sdks_but_not_laxer() {
    let restore = |handler: &str| {
        let result = "(Result<VZMacOSRestoreImage, any Error>) -> Void";
        format!(
            "// objc: VZMacOSRestoreImage 12.0\nopen class VZMacOSRestoreImage: NSObject {{ init(standIn: Int) {{}}
            // objc: VZMacOSRestoreImage +fetchLatestSupportedWithCompletionHandler: 12.0
            open class func fetchLatestSupported(completionHandler: @escaping {handler}{result}) {{}} }}"
        )
    };
    assert_eq!(wrong(&restore("@Sendable ")), [""; 0]);
    assert_eq!(wrong(&restore("")).len(), 1, "{:#?}", wrong(&restore("")));

    let stop = "// objc: VZVirtualMachine stopWithCompletionHandler: 12.0
        open func stop(completionHandler: @escaping @Sendable ((any Error)?) -> Void) {}";
    assert_eq!(wrong(&member("VZVirtualMachine", stop)), [""; 0]);
}

#[test]
fn only_options_have_a_default() {
    let store = |default: &str| {
        format!(
            "// objc: VZEFIVariableStore 13.0\nopen class VZEFIVariableStore: NSObject {{
            // objc: VZEFIVariableStore initCreatingVariableStoreAtURL:options:error: 13.0
            public init(creatingVariableStoreAt url: URL, options: InitializationOptions = {default}) throws {{}}
            // objc: VZEFIVariableStoreInitializationOptions 13.0
            public struct InitializationOptions: OptionSet {{}} }}"
        )
    };
    assert_eq!(wrong(&store("[]")), [""; 0]);
    assert!(wrong(&store("[.allowOverwrite]"))[0].contains("has no default"), "{:#?}", wrong(&store("[.a]")));
}

#[test]
fn an_initializer_the_sdk_forbids_must_not_be_open() {
    let open = "// objc: VZBootLoader 11.0\nopen class VZBootLoader: NSObject {}";
    assert!(wrong(open)[0].starts_with("`VZBootLoader()` can be called here"), "{:#?}", wrong(open));
    let closed = "// objc: VZBootLoader 11.0\nopen class VZBootLoader: NSObject { override init() {} }";
    assert_eq!(wrong(closed), [""; 0]);
    // NSObject's, which the SDK leaves open.
    let inherited =
        "// objc: VZVirtualMachineConfiguration 11.0\nopen class VZVirtualMachineConfiguration: NSObject {}";
    assert_eq!(wrong(inherited), [""; 0]);
}

#[test]
fn a_required_method_of_a_protocol_can_have_no_default() {
    let facts = Facts::built_in().expect("facts");
    assert!(facts.pyobjc.own("VZUSBDevice", "uuid", false).expect("uuid").is("required"));
    let text = "// objc: VZUSBDevice 15.0\npublic protocol VZUSBDevice: NSObjectProtocol {}
        extension VZUSBDevice {
        // objc: VZUSBDevice uuid 15.0
        public var uuid: UUID { UUID() } }";
    assert!(wrong(text).iter().any(|it| it.contains("is required in the SDK")), "{:#?}", wrong(text));
}

#[test]
fn an_unknown_type_is_reported() {
    let text = "// objc: NSView 10.0\n@MainActor open class NSView: NSResponder {
        // objc: NSView inputContext 10.6
        open var inputContext: NSTextInputContext? }";
    assert!(
        wrong(text).iter().any(|it| it.contains("which api/types.rs does not know")),
        "{:#?}",
        wrong(text)
    );
}

#[test]
fn what_is_for_tests_alone_says_why() {
    assert_eq!(
        wrong("// spi: leak tests\n@_spi(StandIn) public enum A { public static let a = 1 }"),
        [""; 0]
    );
    assert!(wrong("@_spi(StandIn) public enum A {}")[0].contains("needs one line `// spi: reason`"));
    assert!(wrong("// spi:\n@_spi(StandIn) public enum A {}")[0].contains("needs one line `// spi: reason`"));
    assert!(wrong("// spi: reason\npublic enum A {}")[0].contains("but no @_spi(StandIn)"));
}

#[test]
fn options_and_errors_have_the_members_swift_makes_and_no_others() {
    let mask = |member: &str| {
        format!(
            "// objc: NSWindow 10.0\n@MainActor open class NSWindow: NSResponder {{
            // objc: NSWindowStyleMask 10.0\npublic struct StyleMask: OptionSet, Sendable {{
            // objc: NSWindowStyleMask 10.0\n{member} }} }}"
        )
    };
    assert_eq!(wrong(&mask("public let rawValue: UInt")), [""; 0]);
    assert_eq!(wrong(&mask("public let rawValue: Int")), ["`NSWindowStyleMask` has the raw type `UInt`"]);
    assert!(wrong(&mask("public var count: Int"))[0].contains("Swift does not synthesize"));
}
