use super::*;

fn read(text: &str) -> Source {
    parse("a.swift", text)
}

/// `path access declaration`, one for each declaration that is not internal.
fn seen(text: &str) -> Vec<String> {
    let source = read(text);
    assert_eq!(source.findings, [], "{text}");
    let visible = source.declarations.into_iter().filter(|it| it.access != Access::Internal);
    visible.map(|it| format!("{} {it}", if it.owner.is_empty() { "-" } else { &it.owner })).collect()
}

#[test]
fn members_carry_the_path_of_their_type() {
    let found = seen(
        "open class A: NSObject {
            public enum State: Int { case stopped = 0, running }
            open func run(_ a: Int, with b: [String]?) throws -> Bool { func inner() {}; return true }
            let hidden = 1
        }
        extension A.State { public var name: String { \"x\" } }",
    );
    let expected = [
        "- class A",
        "A enum State",
        "A.State case stopped",
        "A.State case running",
        "A func run(_: Int, with: [String]?) throws -> Bool",
        "A.State var name: String",
    ];
    assert_eq!(found, expected);
}

#[test]
fn nothing_in_a_type_of_the_module_alone_is_seen() {
    assert_eq!(seen("struct A { public init() {} public static func a() {} }"), Vec::<String>::new());
    assert_eq!(seen("public protocol P { func a() }"), ["- protocol P", "P func a()"]);
    assert_eq!(seen("public extension A { func a() {} private func b() {} }"), ["A func a()"]);
}

#[test]
fn declarations_for_tests_are_distinguished_from_public_ones() {
    let source = read(
        "// spi: tests set it
        @_spi(StandIn) public var limit = 2
        @_spi(StandIn) public extension A { func a() {} }
        @_spi(StandIn) public struct B { public init() {} }",
    );
    let access: Vec<_> = source.declarations.iter().map(|it| it.access).collect();
    assert_eq!(access, [Access::Spi; 4]);
    assert_eq!(source.declarations[0].annotations[0].text, "tests set it");
}

#[test]
fn signatures_over_many_lines_are_read_whole() {
    let found = seen(
        "public convenience init?<T: P>(
            creatingStorageAt url: URL, // where
            options: A.Options = [],
            completionHandler: @escaping @Sendable (Result<Void, any Error>) -> Void
        ) async throws where T: Q {
            body()
        }",
    );
    let expected = "- init?(creatingStorageAt: URL, options: A.Options, completionHandler: @Sendable (Result<Void, any Error>) -> Void) async throws";
    assert_eq!(found, [expected]);
}

#[test]
fn who_may_set_a_property_is_known() {
    let source = read(
        "public var a: Int
        public let b: Int
        public private(set) var c = 0
        public var d: Int { get { 1 } set { e = newValue } }
        public var e: Int { let set = 1; return set2 }
        public var f = 0 { didSet { set() } }
        public var g: [Int] = [1, 2].map { $0 + 1 }
        public var h: Int { get }",
    );
    let settable: String =
        source.declarations.iter().filter(|it| it.settable).map(|it| it.name.as_str()).collect();
    // The getter of `e` contains a word `set`, which only its place distinguishes from an accessor: it counts as settable.
    assert_eq!(settable, "adefg");
}

#[test]
fn a_propertys_type_is_taken_from_a_value_that_says_it() {
    let found = seen(
        "public var a = false
        public var b = \"x\"
        public var c = VZGenericPlatformConfiguration()
        public static let d = A.Options(rawValue: 1 << 3)
        public var e = compute()",
    );
    let expected = [
        "- var a: Bool",
        "- var b: String",
        "- var c: VZGenericPlatformConfiguration",
        "- class var d: A.Options",
        "- var e",
    ];
    assert_eq!(found, expected);
    let options = read("public static let d = Self(rawValue: 1 << 3)");
    assert_eq!(options.declarations[0].number, Some(8));
}

#[test]
fn what_a_case_carries_may_have_labels_or_none() {
    let found = seen("public enum A { case failed(any Error), at(line: Int, [String]), plain }");
    assert_eq!(found, ["- enum A", "A case failed", "A case at", "A case plain"]);
}

#[test]
fn annotations_belong_to_what_follows_them() {
    let source = read(
        "/// A machine.
        // objc: A 11.0
        @MainActor
        open class A {
            // objc: A run 11.0
            open func run() {}

            // objc: A lost 11.0
        }",
    );
    let texts: Vec<_> =
        source.declarations.iter().map(|it| it.annotations.first().map(|a| a.text.as_str())).collect();
    assert_eq!(texts, [Some("A 11.0"), Some("A run 11.0")]);
    assert!(source.declarations.iter().all(|it| it.main_actor));
    assert_eq!(source.findings[0].place.line, 8);
}

#[test]
fn what_cannot_be_read_is_reported_with_its_line() {
    let source = read("public func a(\npublic class {\n");
    assert_eq!(source.findings[0].to_string(), "a.swift:1: this func cannot be read");
}

#[test]
fn text_that_is_not_swift_is_read_without_a_crash() {
    let whole = "public open class A<B>: C { public init?(a b: (C) -> D = { $0 }) throws {} case x = -1 subscript(i: Int) -> E { get set } }";
    for end in 0..whole.len() {
        read(&whole[..end]);
        read(&whole[end..]);
    }
    read(&"class A { ".repeat(10_000));
    read(&"extension A { ".repeat(10_000));
    read(&"public var a: ".repeat(1000));
    read("} } ) ] public");
}
