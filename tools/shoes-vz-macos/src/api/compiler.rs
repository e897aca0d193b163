//! Compares with the compiler's lists, if there is a Swift toolchain: the stand-ins' public symbols, so that the parser
//! overlooks none, and the symbols that VZCore refers to, so that each of them is compared.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Deserialize;

use crate::api::compare::SYNTHESIZED_BY_IMPORTER;
use crate::api::declaration::{Access, Declaration, Finding, Kind, Place};
use crate::api::error::CheckError;
use crate::api::facts::Facts;

/// The stand-ins' modules as they are compiled. Package.swift builds `Darwin` as `StandInDarwin`.
const BUILT_AS: [&str; 4] = ["Virtualization", "vmnet", "AppKit", "StandInDarwin"];

/// The C library's modules on Linux. On macOS they are Darwin's.
const LIBC: [&str; 2] = ["Glibc", "SwiftGlibc"];

/// Symbols of Darwin's overlay that are not functions of the C library.
const OVERLAY: [&str; 1] = ["errno"];

/// Modules of the language and of macOS, and VZCore itself.
#[rustfmt::skip]
const ON_MACOS: [&str; 10] = [
    "Swift", "_Concurrency", "_StringProcessing", "Foundation", "FoundationEssentials", "FoundationInternationalization",
    "Dispatch", "Synchronization", "System", "VZCore",
];

/// Members that the compiler synthesizes besides the importer's: for raw values, options, equality.
const SYNTHESIZED_BY_COMPILER: [&str; 5] =
    ["RawValue", "Element", "ArrayLiteralElement", "hashValue", "!=(_:_:)"];

/// The result of comparing with the compiler's lists.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Compiled {
    /// Number of the stand-ins' public symbols.
    pub public: usize,
    /// Number of the stand-ins' symbols that VZCore refers to.
    pub used: usize,
    /// Number of the C library's symbols that VZCore refers to.
    pub of_libc: usize,
    pub findings: Vec<Finding>,
}

/// Compares with the compiler's output in a directory (scripts/api-check.sh): a symbol graph for each stand-in,
/// and `vzcore.ast`, the syntax tree of VZCore.
///
/// # Errors
/// A file is missing or cannot be read.
pub fn compare(
    facts: &Facts,
    directory: &Path,
    declarations: &[Declaration],
) -> Result<Compiled, CheckError> {
    let public: Vec<&Declaration> = declarations.iter().filter(|it| it.access == Access::Public).collect();
    let mut symbols = BTreeSet::new();
    for module in BUILT_AS {
        let path = directory.join(format!("{module}.symbols.json"));
        let text = std::fs::read_to_string(&path)
            .map_err(|source| CheckError::Read { path: path.clone(), source })?;
        symbols.extend(graph(&text).map_err(|source| CheckError::Graph { path, source })?);
    }
    let path = directory.join("vzcore.ast");
    // The compiler writes a string literal's bytes, which are not always UTF-8.
    let tree = std::fs::read(&path).map_err(|source| CheckError::Read { path: path.clone(), source })?;
    let uses = references(&String::from_utf8_lossy(&tree));
    if !uses.contains_key("VZCore") {
        return Err(CheckError::Tree(path));
    }

    let mut compiled = Compiled { public: symbols.len(), ..Compiled::default() };
    same_symbols(&symbols, &public, &mut compiled);
    used_symbols(facts, &uses, &public, &mut compiled);
    Ok(compiled)
}

fn same_symbols(symbols: &BTreeSet<String>, public: &[&Declaration], compiled: &mut Compiled) {
    let known: BTreeSet<String> = public.iter().map(|it| path(it)).collect();
    for symbol in symbols.iter().filter(|symbol| !known.contains(*symbol) && !is_synthesized(symbol)) {
        compiled.findings.push(found(format!("the compiler has `{symbol}`, which the comparison overlooks")));
    }
    for it in public.iter().filter(|it| !symbols.contains(&path(it))) {
        let message = format!("the compiler has no public `{}`", path(it));
        compiled.findings.push(Finding { place: it.place.clone(), message });
    }
}

fn used_symbols(
    facts: &Facts,
    uses: &BTreeMap<String, BTreeSet<String>>,
    public: &[&Declaration],
    compiled: &mut Compiled,
) {
    let mut known: BTreeSet<String> = public.iter().map(|it| reference(it)).collect();
    // A class without initializers inherits NSObject's; `compare` reports it if the SDK's class does not.
    let own = |class: &&&Declaration| {
        !public.iter().any(|it| it.kind == Kind::Initializer && it.owner == class.path())
    };
    known.extend(
        public
            .iter()
            .filter(|it| it.kind == Kind::Class)
            .filter(own)
            .map(|it| format!("{}.init()", it.path())),
    );
    for (module, symbols) in uses {
        let module = module.as_str();
        if BUILT_AS.contains(&module) {
            compiled.used += symbols.len();
            for symbol in symbols.iter().filter(|symbol| !known.contains(*symbol) && !is_synthesized(symbol))
            {
                compiled
                    .findings
                    .push(found(format!("VZCore uses `{module}.{symbol}`, which is not compared")));
            }
        } else if LIBC.contains(&module) {
            compiled.of_libc += symbols.len();
            for symbol in
                symbols.iter().filter(|symbol| !facts.c.has(symbol) && !OVERLAY.contains(&symbol.as_str()))
            {
                compiled.findings.push(found(format!(
                    "VZCore uses `{symbol}` of the C library, which the table of macOS does not have (run \
                     scripts/sdk-facts.py if it is new)"
                )));
            }
        } else if !ON_MACOS.contains(&module) {
            compiled
                .findings
                .push(found(format!("VZCore uses the module `{module}`, which does not exist on macOS")));
        }
    }
}

fn found(message: String) -> Finding {
    Finding { place: Place { file: "the compiler".to_owned(), line: 0 }, message }
}

fn is_synthesized(symbol: &str) -> bool {
    let member = symbol.rsplit_once('.').map_or(symbol, |(_, member)| member);
    let operator = member.strip_suffix("(_:_:)").unwrap_or(member);
    SYNTHESIZED_BY_COMPILER.contains(&member)
        || SYNTHESIZED_BY_IMPORTER.contains(&member)
        || SYNTHESIZED_BY_IMPORTER.contains(&operator)
}

#[derive(Deserialize)]
struct SymbolGraph {
    symbols: Vec<Symbol>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Symbol {
    path_components: Vec<String>,
    #[serde(default)]
    spi: bool,
}

/// The paths of a symbol graph's public symbols.
fn graph(text: &str) -> Result<Vec<String>, serde_json::Error> {
    let graph: SymbolGraph = serde_json::from_str(text)?;
    Ok(graph.symbols.into_iter().filter(|it| !it.spi).map(|it| it.path_components.join(".")).collect())
}

/// What a syntax tree refers to, by module: `decl="Module.(file).path@place`.
fn references(tree: &str) -> BTreeMap<String, BTreeSet<String>> {
    let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for after in tree.split("decl=\"").skip(1) {
        let Some((module, rest)) = after.split_once(".(file).") else { continue };
        let end = rest.find(['"', ' ', '@', '\n']).unwrap_or(rest.len());
        if module.chars().all(|c| c.is_alphanumeric() || c == '_') {
            uses.entry(module.to_owned()).or_default().insert(rest[..end].to_owned());
        }
    }
    uses
}

/// The declaration as a symbol graph calls it.
fn path(it: &Declaration) -> String {
    let name = match it.kind {
        // Operators' labels are their parameters' names.
        Kind::Function if !it.name.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
            format!("{}({})", it.name, "_:".repeat(it.parameters.len()))
        }
        _ => it.full_name(),
    };
    if it.owner.is_empty() { name } else { format!("{}.{name}", it.owner) }
}

/// The declaration as a syntax tree calls it: a function whose labels are all `_` without them.
fn reference(it: &Declaration) -> String {
    let bare = !it.parameters.is_empty() && it.parameters.iter().all(|it| it.label.is_empty());
    if it.kind != Kind::Function || !bare {
        return path(it);
    }
    if it.owner.is_empty() { it.name.clone() } else { format!("{}.{}", it.owner, it.name) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::parser;

    const STAND_IN: &str =
        "open class A { public init(url: URL) {} open func stop(_ a: Any?) {} open func go(to: B) {} }
        public struct O: OptionSet { public let rawValue: UInt }";

    fn compared(graph: &[&str], tree: &str) -> Compiled {
        let facts = Facts::built_in().expect("facts");
        let directory = tempfile::tempdir().expect("directory");
        let symbols: Vec<String> = graph
            .iter()
            .map(|it| format!("{{\"pathComponents\": [\"{}\"]}}", it.replace('.', "\", \"")))
            .collect();
        for module in BUILT_AS {
            let symbols = if module == "Virtualization" { symbols.join(",") } else { String::new() };
            let file = directory.path().join(format!("{module}.symbols.json"));
            std::fs::write(file, format!("{{\"symbols\": [{symbols}]}}")).expect("graph");
        }
        std::fs::write(directory.path().join("vzcore.ast"), tree).expect("tree");
        compare(&facts, directory.path(), &parser::parse("v.swift", STAND_IN).declarations).expect("compared")
    }

    const ALL: [&str; 6] = ["A", "A.init(url:)", "A.stop(_:)", "A.go(to:)", "O", "O.rawValue"];

    fn messages(compiled: &Compiled) -> Vec<&str> {
        compiled.findings.iter().map(|it| it.message.as_str()).collect()
    }

    #[test]
    fn the_same_symbols_on_both_sides_are_right() {
        let tree = "(x decl=\"VZCore.(file).a@b\" (y decl=\"Virtualization.(file).A.stop@/v.swift:1:2\" decl=\"SwiftGlibc.(file).O_CREAT\"";
        let compiled = compared(&ALL, tree);
        assert_eq!(compiled, Compiled { public: 6, used: 1, of_libc: 1, findings: Vec::new() });
    }

    #[test]
    fn a_symbol_that_only_the_compiler_or_only_the_parser_has_is_reported() {
        let mut graph = ALL.to_vec();
        graph.retain(|it| *it != "A.go(to:)");
        graph.push("A.hidden()");
        let compiled = compared(&graph, "decl=\"VZCore.(file).a\"");
        assert_eq!(
            messages(&compiled),
            [
                "the compiler has `A.hidden()`, which the comparison overlooks",
                "the compiler has no public `A.go(to:)`"
            ]
        );
    }

    #[test]
    fn a_use_of_a_symbol_that_does_not_exist_on_macos_is_reported() {
        let tree = "decl=\"VZCore.(file).a\" decl=\"Virtualization.(file).A.secret\" decl=\"Glibc.(file).accept4\" \
                    decl=\"CLinux.(file).b\"";
        let compiled = compared(&ALL, tree);
        assert_eq!(compiled.findings.len(), 3, "{:#?}", compiled.findings);
        assert!(messages(&compiled)[0].contains("the module `CLinux`"));
        assert!(messages(&compiled)[1].contains("`accept4` of the C library"));
        assert!(messages(&compiled)[2].contains("`Virtualization.A.secret`"));
    }

    #[test]
    fn a_tree_without_references_is_refused() {
        let facts = Facts::built_in().expect("facts");
        let directory = tempfile::tempdir().expect("directory");
        for module in BUILT_AS {
            std::fs::write(directory.path().join(format!("{module}.symbols.json")), "{\"symbols\": []}")
                .expect("graph");
        }
        std::fs::write(directory.path().join("vzcore.ast"), "error: no such module").expect("tree");
        assert!(matches!(compare(&facts, directory.path(), &[]), Err(CheckError::Tree(_))));
    }
}
