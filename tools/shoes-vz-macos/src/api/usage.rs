//! VZCore: the stand-ins' symbols that it uses, and what it must not use because the comparison would not see it.

use std::collections::BTreeSet;

use crate::api::compare::SYNTHESIZED_BY_IMPORTER;
use crate::api::declaration::{Access, Declaration, Finding, Kind, Place};
use crate::api::lexer::{Token, TokenKind, tokens};
use crate::api::parser;

/// How much of the stand-ins VZCore uses. It is found by name: a name that VZCore uses for its declarations counts as
/// used too, so only what is not used is certain.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Declarations that other modules see, overloads and defaults of optional methods counted once.
    pub declared: usize,
    /// Declarations whose name and labels occur in VZCore.
    pub used: usize,
    /// Declarations that VZCore does not use.
    pub unused: Vec<Finding>,
}

/// Modules that are on macOS.
#[rustfmt::skip]
const MODULES: [&str; 9] = [
    "Foundation", "Dispatch", "Virtualization", "vmnet", "AppKit", "Darwin", "Synchronization", "System", "os",
];

/// Names that reach a symbol at run time, and so bypass the stand-ins.
#[rustfmt::skip]
const REFUSED: [(&str, &str); 9] = [
    ("NSSelectorFromString", "a selector by its name"),
    ("NSClassFromString", "a class by its name"),
    ("dlsym", "a symbol by its name"),
    ("dlopen", "a library by its name"),
    ("_spi", "a part of a stand-in that does not exist on macOS"),
    ("_silgen_name", "a symbol by its name"),
    ("_extern", "a symbol by its name"),
    ("testable", "a part of a stand-in that does not exist on macOS"),
    ("available", "a part that exists only on some macOS versions"),
];

/// Calls that do so, with a label.
#[rustfmt::skip]
const REFUSED_CALLS: [(&str, &str, &str); 7] = [
    ("value", "forKey", "a property by its name"),
    ("value", "forKeyPath", "a property by its name"),
    ("setValue", "forKey", "a property by its name"),
    ("setValue", "forKeyPath", "a property by its name"),
    ("perform", "", "a selector by its name"),
    ("perform", "with", "a selector by its name"),
    ("Selector", "", "a selector by its name"),
];

/// Looks through VZCore's files for what the stand-ins declare and for what is refused.
pub fn of(files: &[(String, String)], declarations: &[Declaration]) -> (Usage, Vec<Finding>) {
    let mut refused = Vec::new();
    let mut used = Used::default();
    for (file, text) in files {
        let tokens = tokens(text);
        refuse(file, &tokens, &mut refused);
        used.read(&tokens);
        used.implemented.extend(parser::parse(file, text).declarations.iter().map(Declaration::full_name));
    }
    (usage(&used, declarations), refused)
}

fn usage(used: &Used, declarations: &[Declaration]) -> Usage {
    let public: Vec<&Declaration> = declarations.iter().filter(|it| it.access == Access::Public).collect();
    let types = types_needed(used, &public);
    let mut seen = BTreeSet::new();
    let mut usage = Usage::default();
    for it in public {
        if !seen.insert((it.owner.clone(), it.full_name())) {
            continue;
        }
        usage.declared += 1;
        // Synthesized members come with the type.
        let made = SYNTHESIZED_BY_IMPORTER.contains(&it.full_name().as_str()) || it.name == "==";
        let is_used = match it.kind {
            kind if kind.is_type() || kind == Kind::Alias => types.contains(&it.path()),
            _ => used.uses(it) || (made && types.contains(&it.owner)),
        };
        if is_used {
            usage.used += 1;
        } else {
            let name =
                if it.owner.is_empty() { it.full_name() } else { format!("{}.{}", it.owner, it.full_name()) };
            usage
                .unused
                .push(Finding { place: it.place.clone(), message: format!("VZCore does not use `{name}`") });
        }
    }
    usage
}

/// The types that VZCore names, and those they need: superclasses, owners, types in the signatures of used members.
fn types_needed(used: &Used, public: &[&Declaration]) -> BTreeSet<String> {
    let mut types = BTreeSet::new();
    let mut waiting: Vec<String> = Vec::new();
    for it in public {
        let is_type = it.kind.is_type() || it.kind == Kind::Alias;
        if is_type && used.names.contains(&it.name) {
            waiting.push(it.path());
        }
        if !is_type && used.uses(it) {
            waiting.push(it.owner.clone());
            let signature = it.parameters.iter().map(|it| &it.kind).chain(&it.gives);
            for kind in signature {
                for name in kind.names() {
                    waiting.push(format!("{}.{name}", it.owner));
                    waiting.push(name);
                }
            }
        }
    }
    while let Some(path) = waiting.pop() {
        let Some(it) =
            public.iter().find(|it| it.path() == path && (it.kind.is_type() || it.kind == Kind::Alias))
        else {
            continue;
        };
        if types.insert(path) {
            waiting.extend(it.inherits.iter().cloned());
            waiting.push(it.owner.clone());
            waiting.extend(it.gives.iter().flat_map(|kind| kind.names()));
        }
    }
    types
}

/// The names VZCore has.
#[derive(Debug, Default)]
struct Used {
    names: BTreeSet<String>,
    /// `name(label:label:)`; a trailing closure has no label.
    calls: BTreeSet<(String, Vec<String>)>,
    implemented: BTreeSet<String>,
}

impl Used {
    fn read(&mut self, tokens: &[Token]) {
        for (at, token) in tokens.iter().enumerate() {
            let Some(word) = token.word() else { continue };
            self.names.insert(word.to_owned());
            match tokens.get(at + 1) {
                Some(next) if next.is('(') => {
                    self.calls.insert((word.to_owned(), labels(&tokens[at + 1..])));
                }
                // `stop { … }`
                Some(next) if next.is('{') => {
                    self.calls.insert((word.to_owned(), Vec::new()));
                }
                _ => {}
            }
        }
    }

    fn uses(&self, it: &Declaration) -> bool {
        let labels: Vec<String> = it.parameters.iter().map(|it| it.label.clone()).collect();
        match it.kind {
            Kind::Function | Kind::Initializer => {
                let name = if it.kind == Kind::Initializer {
                    it.owner.rsplit('.').next().unwrap_or_default()
                } else {
                    it.name.as_str()
                };
                let called =
                    |name: &str, labels: &[String]| self.calls.contains(&(name.to_owned(), labels.to_vec()));
                let closure_behind = labels.split_last().is_some_and(|(_, before)| called(name, before));
                called(name, &labels)
                    || closure_behind
                    || (it.kind == Kind::Initializer && called("init", &labels))
                    || (it.kind == Kind::Function && self.implemented.contains(&it.full_name()))
            }
            _ => self.names.contains(&it.name),
        }
    }
}

/// The labels in the brackets that start here; empty for an argument without one.
fn labels(tokens: &[Token]) -> Vec<String> {
    let mut depth = 0_usize;
    let mut labels = Vec::new();
    let mut fresh = true;
    for (at, token) in tokens.iter().enumerate() {
        match &token.kind {
            TokenKind::Symbol('(' | '[' | '{') => depth += 1,
            TokenKind::Symbol(')' | ']' | '}') => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    break;
                }
            }
            TokenKind::Symbol(',') if depth == 1 => {
                fresh = true;
                continue;
            }
            // `init(string:)`, a name without a call: the next label has no comma before it.
            TokenKind::Symbol(':') if depth == 1 => {
                fresh = tokens.get(at + 2).is_some_and(|token| token.is(':'));
                continue;
            }
            _ => {}
        }
        if fresh && depth >= 1 && at > 0 {
            let label = tokens.get(at + 1).filter(|next| depth == 1 && next.is(':')).and(token.word());
            labels.push(label.unwrap_or_default().to_owned());
            fresh = false;
        }
    }
    labels
}

fn refuse(file: &str, tokens: &[Token], findings: &mut Vec<Finding>) {
    let mut report = |line, message: String| {
        findings.push(Finding { place: Place { file: file.to_owned(), line }, message });
    };
    for (at, token) in tokens.iter().enumerate() {
        match &token.kind {
            TokenKind::Directive(name) => match name.as_str() {
                "#if" | "#elseif" => {
                    report(token.line, format!("`{name}`: VZCore is the same on Linux and macOS"));
                }
                "#selector" | "#keyPath" => {
                    report(token.line, format!("`{name}` reaches a symbol by its name"))
                }
                "#available" | "#unavailable" => {
                    report(token.line, format!("`{name}`: every symbol is in the deployment target"));
                }
                _ => {}
            },
            TokenKind::Word(word) => {
                let attribute = at > 0 && tokens[at - 1].is('@');
                let plain =
                    !matches!(word.as_str(), "_spi" | "_silgen_name" | "_extern" | "testable" | "available");
                if let Some((_, reason)) = REFUSED.iter().find(|(name, _)| name == word)
                    && (plain || attribute)
                {
                    let mark = if attribute { "@" } else { "" };
                    report(token.line, format!("`{mark}{word}` reaches {reason}"));
                }
                let declared = at > 0 && tokens[at - 1].is_word("func");
                if tokens.get(at + 1).is_some_and(|next| next.is('(')) && !declared {
                    let labels = labels(&tokens[at + 1..]);
                    let call = REFUSED_CALLS
                        .iter()
                        .find(|(name, label, _)| name == word && labels.iter().any(|found| found == label));
                    if let Some((_, label, reason)) = call {
                        let shown = if label.is_empty() { "_" } else { label };
                        report(token.line, format!("`{word}({shown}:)` reaches {reason}"));
                    }
                }
                if word == "import"
                    && token.first | (at > 0 && !tokens[at - 1].is('.'))
                    && let Some(module) = imported(&tokens[at + 1..])
                    && !MODULES.contains(&module)
                {
                    report(token.line, format!("imports `{module}`, which does not exist on macOS"));
                }
            }
            _ => {}
        }
    }
}

/// The module of `import Foundation`, `import struct Foundation.URL`.
fn imported(tokens: &[Token]) -> Option<&str> {
    let kind = ["struct", "class", "enum", "protocol", "func", "var", "let", "typealias"];
    let module = tokens.iter().filter_map(Token::word).find(|word| !kind.contains(word))?;
    Some(module)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vzcore(text: &str) -> Vec<(String, String)> {
        vec![("VZCore/a.swift".to_owned(), text.to_owned())]
    }

    fn unused(text: &str, stand_in: &str) -> Vec<String> {
        let declarations = parser::parse("v.swift", stand_in).declarations;
        of(&vzcore(text), &declarations).0.unused.into_iter().map(|it| it.message).collect()
    }

    fn refused(text: &str) -> Vec<String> {
        of(&vzcore(text), &[]).1.iter().map(Finding::to_string).collect()
    }

    #[test]
    fn an_unused_overload_is_distinguished_from_a_used_one() {
        let stand_in = "open class A { public init(url: URL) {} public init() {} open func start(completionHandler: F) {}
            open func start(options: O, completionHandler: F) {} open func stop(completionHandler: F) {} }";
        let found = unused("let a = A(url: u); a.start { _ in }; a.stop(completionHandler: done)", stand_in);
        assert_eq!(
            found,
            ["VZCore does not use `A.init()`", "VZCore does not use `A.start(options:completionHandler:)`"]
        );
    }

    #[test]
    fn a_delegates_method_is_used_by_implementing_it() {
        let stand_in = "public protocol D { func did(_ a: A, stop error: E); func other(_ a: A) }";
        let found = unused("final class B: D { func did(_ a: A, stop error: E) {} }", stand_in);
        assert_eq!(found, ["VZCore does not use `D.other(_:)`"]);
    }

    #[test]
    fn a_name_without_a_call_is_a_use() {
        assert_eq!(
            unused("x.flatMap(A.init(string:))", "open class A { public init?(string: String) {} }"),
            [""; 0]
        );
        assert_eq!(unused("f(A.init(a:b:))", "open class A { public init(a: B, b: C) {} }"), [""; 0]);
    }

    #[test]
    fn what_escapes_the_comparison_is_refused() {
        let found = refused(
            "import Virtualization
            @_spi(StandIn) import AppKit
            import Glibc
            #if os(Linux)
            #endif
            func a() { x.perform(s); x.value(forKey: \"a\"); NSSelectorFromString(\"b\"); Selector(\"c\") }
            @available(macOS 27, *) func b() {}
            func perform(_ a: Int) {}",
        );
        let lines: Vec<&str> = found.iter().filter_map(|it| it.split(": ").next()).collect();
        let expected: Vec<String> =
            [2, 3, 4, 6, 6, 6, 6, 7].iter().map(|line| format!("VZCore/a.swift:{line}")).collect();
        assert_eq!(lines, expected, "{found:#?}");
    }

    #[test]
    fn names_in_strings_and_comments_are_not_uses() {
        assert_eq!(refused("// #if\nlet a = \"#if dlsym(\"\nlet available = value(for: b)"), [""; 0]);
    }
}
