//! How Swift imports Objective-C's and C's types. An unknown type is a finding, and must be added here.

use crate::api::facts::Facts;
use crate::api::swift_type::SwiftType;

/// Objective-C's and Foundation's types, and how Swift imports them (SE-0072 bridging).
#[rustfmt::skip]
const OBJC: [(&str, &str); 26] = [
    ("BOOL", "Bool"),
    ("CGFloat", "CGFloat"),
    ("CGSize", "CGSize"),
    ("NSInteger", "Int"),
    ("NSUInteger", "Int"), // Int, not UInt, in Apple's headers
    ("NSPoint", "CGPoint"),
    ("NSRect", "CGRect"),
    ("NSSize", "CGSize"),
    ("NSTimeInterval", "TimeInterval"),
    ("NSOperatingSystemVersion", "OperatingSystemVersion"),
    ("NSString *", "String"),
    ("NSURL *", "URL"),
    ("NSData *", "Data"),
    ("NSUUID *", "UUID"),
    ("NSError *", "any Error"),
    ("NSProgress *", "Progress"),
    ("NSFileHandle *", "FileHandle"),
    ("NSNotification *", "Notification"),
    ("id", "Any"),
    ("int", "Int32"),
    ("short", "Int16"),
    ("uint32_t", "UInt32"),
    ("uint64_t", "UInt64"),
    ("void", "Void"),
    ("dispatch_queue_t", "DispatchQueue"),
    ("ether_addr_t", "ether_addr_t"),
];

/// Types of other headers, with the same name in Swift and C.
const SAME: [&str; 1] = ["vmnet_network_ref"];

/// The Swift types that an Objective-C type may become, without nil: more than one for a completion handler, which an
/// overlay may turn into one that takes a `Result`. Empty if the type is unknown.
pub fn of_objc(facts: &Facts, objc: &str) -> Vec<SwiftType> {
    let objc = objc.trim().trim_start_matches("__kindof ").trim_start_matches("const ");
    if let Some((_, swift)) = OBJC.iter().find(|(name, _)| *name == objc) {
        return SwiftType::parse(swift).into_iter().collect();
    }
    if SAME.contains(&objc) {
        return vec![SwiftType::named(objc)];
    }
    if let Some(arguments) = objc.strip_prefix("void (^)(").and_then(|rest| rest.strip_suffix(')')) {
        return of_block(facts, arguments);
    }
    if let Some(element) = within(objc, "NSArray<", "> *") {
        let element = of_objc(facts, element);
        return element.into_iter().map(|it| SwiftType::Array(Box::new(it))).collect();
    }
    if let Some((key, value)) = within(objc, "NSDictionary<", "> *").and_then(|both| both.split_once(',')) {
        return match (of_objc(facts, key).as_slice(), of_objc(facts, value).as_slice()) {
            ([key], [value]) => vec![SwiftType::Dictionary(Box::new(key.clone()), Box::new(value.clone()))],
            _ => Vec::new(),
        };
    }
    if let Some(protocol) = within(objc, "id<", ">") {
        let known = facts.pyobjc.protocols.contains_key(protocol);
        let it = SwiftType::Any(Box::new(SwiftType::named(protocol)));
        return if known { vec![it] } else { Vec::new() };
    }
    if let Some(class) = objc.strip_suffix(" *") {
        let known = facts.pyobjc.classes.contains_key(class) || facts.objc2.classes.contains_key(class);
        return if known { vec![SwiftType::named(facts.swift_type_name(class))] } else { Vec::new() };
    }
    if facts.pyobjc.enums.contains_key(objc) {
        return vec![SwiftType::named(facts.swift_type_name(objc))];
    }
    Vec::new()
}

/// `void (^)(…)`, plain or, where it ends with an error, as one taking a `Result`.
fn of_block(facts: &Facts, arguments: &str) -> Vec<SwiftType> {
    let mut takes = Vec::new();
    for argument in arguments.split(", ") {
        let nullable = argument.contains("_Nullable");
        let known = of_objc(facts, &argument.replace(" _Nullable", ""));
        let [it] = known.as_slice() else { return Vec::new() };
        takes.push(if nullable { SwiftType::Optional(Box::new(it.clone())) } else { it.clone() });
    }
    let block =
        |takes| SwiftType::Function { takes, gives: Box::new(SwiftType::Tuple(Vec::new())), sendable: false };
    let mut may = vec![block(takes.clone())];
    let error = SwiftType::Any(Box::new(SwiftType::named("Error")));
    if takes.pop().is_some_and(|last| *last.without_optional() == error) && takes.len() <= 1 {
        let success = takes.pop().map_or(SwiftType::Tuple(Vec::new()), |it| it.without_optional().clone());
        may.push(block(vec![SwiftType::Named("Result".to_owned(), vec![success, error])]));
    }
    may
}

/// Whether a type of objc2's may be nil. A block or a number is neither.
pub fn is_nullable_in_rust(rust: &str) -> bool {
    rust.starts_with("Option<")
}

/// Rust's types in the crates for C, and the Swift types they may stand for.
#[rustfmt::skip]
const C: [(&str, &[&str]); 15] = [
    ("()", &["Void"]),
    ("u8", &["UInt8"]),
    ("u16", &["UInt16"]),
    ("u32", &["UInt32", "vmnet_mode_t"]),
    ("c_int", &["Int32"]),
    ("*const c_char", &["UnsafePointer<CChar>"]),
    ("*const in_addr", &["UnsafePointer<in_addr>"]),
    ("*mut in_addr", &["UnsafeMutablePointer<in_addr>"]),
    ("*const in6_addr", &["UnsafePointer<in6_addr>"]),
    ("*mut in6_addr", &["UnsafeMutablePointer<in6_addr>"]),
    ("*mut u8", &["UnsafeMutablePointer<UInt8>"]),
    ("NetworkConfigurationRef", &["vmnet_network_configuration_ref"]),
    ("NetworkRef", &["vmnet_network_ref"]),
    ("VmnetReturnT", &["vmnet_return_t"]),
    ("*mut VmnetReturnT", &["UnsafeMutablePointer<vmnet_return_t>"]),
];

/// The Swift types that a C type may become, without nil, by its spelling in a Rust crate.
pub fn of_c(rust: &str) -> Vec<SwiftType> {
    let found = C.iter().find(|(name, _)| *name == rust);
    found.into_iter().flat_map(|(_, swift)| *swift).filter_map(|swift| SwiftType::parse(swift)).collect()
}

fn within<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    text.strip_prefix(before)?.strip_suffix(after)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objc(text: &str) -> Vec<String> {
        let facts = Facts::built_in().expect("facts");
        of_objc(&facts, text).iter().map(SwiftType::to_string).collect()
    }

    #[test]
    fn objects_become_what_they_are_bridged_to() {
        assert_eq!(objc("NSArray<VZNetworkDevice *> *"), ["[VZNetworkDevice]"]);
        assert_eq!(objc("NSDictionary<NSString *,VZSharedDirectory *> *"), ["[String: VZSharedDirectory]"]);
        assert_eq!(objc("id<VZVirtualMachineDelegate>"), ["any VZVirtualMachineDelegate"]);
        assert_eq!(objc("VZVirtualMachineState"), ["VZVirtualMachine.State"]);
        assert_eq!(objc("__kindof NSView *"), ["NSView"]);
    }

    #[test]
    fn a_completion_handler_is_plain_or_takes_a_result() {
        assert_eq!(
            objc("void (^)(NSError * _Nullable)"),
            ["((any Error)?) -> Void", "(Result<Void, any Error>) -> Void"]
        );
        assert_eq!(
            objc("void (^)(VZVirtioSocketConnection * _Nullable, NSError * _Nullable)"),
            [
                "(VZVirtioSocketConnection?, (any Error)?) -> Void",
                "(Result<VZVirtioSocketConnection, any Error>) -> Void"
            ]
        );
    }

    #[test]
    fn what_is_not_known_is_nothing() {
        for text in ["", "FooBar", "NSArray<Foo *> *", "id<Foo>", "Foo *", "void (^)(Foo *)", "void (^)("] {
            assert_eq!(objc(text), Vec::<String>::new(), "{text}");
        }
    }
}
