//! The Swift name of an Objective-C symbol, by those of the importer's rules (SE-0005) that the stand-ins need. Names
//! that the SDK defines (`NS_SWIFT_NAME`, `NS_REFINED_FOR_SWIFT`) stand in `facts/by-hand.tsv`.

use crate::api::facts::Method;

/// `start(options:completionHandler:)`, `url`, `init(attachment:)`.
pub fn member(method: &Method) -> String {
    if method.selector == "init" {
        return "init()".to_owned();
    }
    if method.arguments.is_empty() {
        let name = lower(&method.selector);
        return if method.is("property") { name } else { format!("{name}()") };
    }
    let mut pieces: Vec<&str> = method.selector.split(':').filter(|piece| !piece.is_empty()).collect();
    let mut kinds: Vec<&str> = method.arguments.iter().map(String::as_str).collect();
    // `error:` at the end becomes `throws`.
    let throws = kinds.last().is_some_and(|kind| is_error_out(kind));
    if throws {
        kinds.pop();
        let last = pieces.pop().unwrap_or_default();
        if pieces.is_empty() {
            // `validateWithError:`
            return format!("{}()", lower(last.strip_suffix("WithError").unwrap_or(last)));
        }
    }
    let (base, first) = first_piece(pieces[0], kinds.first().copied().unwrap_or_default());
    let rest =
        pieces.iter().zip(&kinds).skip(1).map(|(piece, kind)| without_type(&lower(piece), kind, Role::Label));
    let labels: String = std::iter::once(first).chain(rest).map(|label| format!("{label}:")).collect();
    format!("{base}({labels})")
}

/// `stopped` for `VZVirtualMachineStateStopped` of `VZVirtualMachineState`.
pub fn case(owner: &str, case: &str) -> String {
    let shortened = ["", "s", "Code", "Type", "Mask", "Options"].map(|end| owner.strip_suffix(end));
    let prefix =
        shortened.into_iter().flatten().filter(|prefix| case.starts_with(prefix)).max_by_key(|it| it.len());
    lower(&case[prefix.map_or(0, str::len)..])
}

/// Whether the type is that of the `error:` argument Swift turns into `throws`.
pub fn is_error_out(kind: &str) -> bool {
    kind.starts_with("NSError *") && kind.matches('*').count() == 2
}

fn first_piece(piece: &str, kind: &str) -> (String, String) {
    if let Some(label) = piece.strip_prefix("init") {
        let label = lower(label.strip_prefix("With").unwrap_or(label));
        return ("init".to_owned(), without_type(&label, kind, Role::Label));
    }
    let shorter = without_type(piece, kind, Role::Base);
    if shorter != piece {
        return (shorter, "_".to_owned());
    }
    // `removeSocketListenerForPort:` splits before its last preposition, and a `With` goes.
    let words = words(piece);
    let at = words.iter().rposition(|word| PREPOSITIONS.contains(&word.to_lowercase().as_str()));
    match at {
        Some(at) if at > 0 && at + 1 < words.len() => {
            let keep = if words[at] == "With" { at + 1 } else { at };
            (words[..at].concat(), lower(&words[keep..].concat()))
        }
        _ => (lower(piece), "_".to_owned()),
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Role {
    Base,
    Label,
}

#[rustfmt::skip]
const PREPOSITIONS: [&str; 16] = [
    "after", "as", "at", "before", "by", "for", "from", "in", "into", "of", "on", "since", "to", "using", "via", "with",
];

/// The verbs of the stand-ins' selectors; the importer has a dictionary of them.
const VERBS: [&str; 6] = ["attach", "detach", "close", "order", "perform", "stop"];

/// Names that say nothing by themselves.
const VACUOUS: [&str; 6] = ["get", "for", "set", "using", "with", "add"];

/// The name without the end that only repeats the type, if a preposition or a verb stands before them.
fn without_type(name: &str, kind: &str, role: Role) -> String {
    let Some(kind) = type_name(kind) else { return name.to_owned() };
    let (words, kinds) = (words(name), words(&kind));
    let repeated = words
        .iter()
        .rev()
        .zip(kinds.iter().rev())
        .take_while(|(word, kind)| word.eq_ignore_ascii_case(kind))
        .count();
    let kept = words.len() - repeated;
    let Some(before) = kept.checked_sub(1).map(|last| words[last].to_lowercase()) else {
        return name.to_owned();
    };
    let preposition = PREPOSITIONS.contains(&before.as_str());
    let strips = match role {
        Role::Label => preposition || VERBS.contains(&before.as_str()),
        Role::Base => VERBS.contains(&before.as_str()),
    };
    // Errors keep their name: `didStopWithError`.
    let says_nothing = role == Role::Base && kept == 1 && VACUOUS.contains(&before.as_str());
    if repeated == 0 || !strips || says_nothing || kind == "Error" {
        return name.to_owned();
    }
    words[..kept].concat()
}

/// What the type is called where names repeat it: without pointer, protocol brackets and the framework's prefix.
fn type_name(kind: &str) -> Option<String> {
    let name = kind.trim_end_matches(['*', ' ']).trim_start_matches("id<").trim_end_matches('>');
    let name = name.strip_prefix("NS").or_else(|| name.strip_prefix("VZ"))?;
    name.chars().all(char::is_alphanumeric).then(|| name.to_owned())
}

/// `connectToPort` as `connect`, `To`, `Port`; `fileURL` as `file`, `URL`.
fn words(name: &str) -> Vec<&str> {
    let letters: Vec<(usize, char)> = name.char_indices().collect();
    let mut starts = vec![0];
    for (position, (at, letter)) in letters.iter().enumerate().skip(1) {
        let before = letters[position - 1].1;
        let after = letters.get(position + 1).map(|(_, letter)| *letter);
        let begins =
            letter.is_uppercase() && (!before.is_uppercase() || after.is_some_and(char::is_lowercase));
        if begins {
            starts.push(*at);
        }
    }
    starts.push(name.len());
    starts.windows(2).map(|pair| &name[pair[0]..pair[1]]).filter(|word| !word.is_empty()).collect()
}

/// `URL` as `url`, `CPUCount` as `cpuCount`, `isReadOnly` as it is.
fn lower(name: &str) -> String {
    let words = words(name);
    match words.split_first() {
        Some((first, rest)) => first.to_lowercase() + &rest.concat(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(selector: &str, arguments: &[&str]) -> String {
        member(&Method {
            owner: "VZ".into(),
            on_class: false,
            selector: selector.into(),
            introduced: None,
            flags: vec!["property".into()],
            result: "void".into(),
            arguments: arguments.iter().map(|it| (*it).to_owned()).collect(),
        })
    }

    #[test]
    fn properties_begin_in_lower_case() {
        assert_eq!(name("URL", &[]), "url");
        assert_eq!(name("CPUCount", &[]), "cpuCount");
        assert_eq!(name("MACAddress", &[]), "macAddress");
        assert_eq!(name("isReadOnly", &[]), "isReadOnly");
    }

    #[test]
    fn initializers_lose_init_and_with() {
        assert_eq!(name("initWithURL:", &["NSURL *"]), "init(url:)");
        assert_eq!(name("initWithKernelURL:", &["NSURL *"]), "init(kernelURL:)");
        assert_eq!(name("initForScreen:sizeInPoints:", &["NSScreen *", "NSSize"]), "init(for:sizeInPoints:)");
        assert_eq!(
            name("initCreatingVariableStoreAtURL:options:error:", &["NSURL *", "X", "NSError * _Nullable *"]),
            "init(creatingVariableStoreAt:options:)"
        );
    }

    #[test]
    fn the_first_piece_splits_before_its_last_preposition() {
        let block = "void (^)(NSError * _Nullable)";
        assert_eq!(name("startWithCompletionHandler:", &[block]), "start(completionHandler:)");
        assert_eq!(
            name("connectToPort:completionHandler:", &["uint32_t", block]),
            "connect(toPort:completionHandler:)"
        );
        assert_eq!(name("removeSocketListenerForPort:", &["uint32_t"]), "removeSocketListener(forPort:)");
        assert_eq!(
            name("setSocketListener:forPort:", &["VZVirtioSocketListener *", "uint32_t"]),
            "setSocketListener(_:forPort:)"
        );
    }

    #[test]
    fn words_that_repeat_the_type_go() {
        assert_eq!(
            name(
                "listener:shouldAcceptNewConnection:fromSocketDevice:",
                &["VZVirtioSocketListener *", "VZVirtioSocketConnection *", "VZVirtioSocketDevice *"]
            ),
            "listener(_:shouldAcceptNewConnection:from:)"
        );
        assert_eq!(
            name("virtualMachine:didStopWithError:", &["VZVirtualMachine *", "NSError *"]),
            "virtualMachine(_:didStopWithError:)"
        );
    }

    #[test]
    fn an_error_argument_becomes_throws() {
        assert_eq!(name("validateWithError:", &["NSError * _Nullable *"]), "validate()");
        assert_eq!(
            name("validateBlockDeviceIdentifier:error:", &["NSString *", "NSError * _Nullable *"]),
            "validateBlockDeviceIdentifier(_:)"
        );
    }

    #[test]
    fn cases_lose_their_enums_name() {
        assert_eq!(case("VZVirtualMachineState", "VZVirtualMachineStatePaused"), "paused");
        assert_eq!(case("VZErrorCode", "VZErrorUSBControllerNotFound"), "usbControllerNotFound");
        assert_eq!(case("NSBackingStoreType", "NSBackingStoreBuffered"), "buffered");
        let options = "VZMacAuxiliaryStorageInitializationOptions";
        assert_eq!(
            case(options, "VZMacAuxiliaryStorageInitializationOptionAllowOverwrite"),
            "allowOverwrite"
        );
    }
}
