//! Modules import downwards only, in the order that ARCHITECTURE.md states:
//!
//! - A top-level module imports from lower floors only. The crate's root (`lib.rs`, `main.rs`) is above all floors.
//! - Sibling files inside a top-level module do not import each other in a cycle.
//! - A child takes from its parent only what the parent's file defines, not what the parent imports or re-exports.

use std::collections::{BTreeMap, BTreeSet};

use proc_macro2::{
    Delimiter::{Brace, Parenthesis},
    TokenStream,
    TokenTree::{self, Group, Ident, Punct},
};

use crate::files::{Sources, declared, modules};

type Path = Vec<String>;
const MOVE: &str = "move what both need into a module below both of them";

pub(crate) fn violations(name: &str, sources: &Sources) -> Vec<String> {
    let at_page = |reason: String| format!("ARCHITECTURE.md, module order of shoes-vz-{name}: {reason}");
    let Some(floors) = floors(name, &sources["ARCHITECTURE.md"]) else {
        return vec![at_page("no block ```text with one floor on a line, the top one first".to_owned())];
    };
    let src = format!("rust/shoes-vz-{name}/src");
    let modules = modules(&format!("{src}/lib.rs"), &src, &[], sources);
    let top = declared(&modules.last().unwrap().tokens);
    let listed: Vec<_> = floors.iter().flatten().collect();
    let times = |module: &String| listed.iter().filter(|listed| **listed == module).count();
    let unknown = listed.iter().filter(|m| !top.contains(m)).map(|m| format!("{m} does not exist"));
    let miscounted = top.iter().filter(|m| times(m) != 1).map(|m| format!("{m} is not listed once"));
    let mut wrong: Vec<_> = unknown.chain(miscounted).map(at_page).collect();
    let floor = |m: &String| floors.iter().position(|floor| floor.contains(m)).map_or(0, |at| at + 1);
    let known: BTreeSet<Path> = modules.iter().map(|module| module.path.clone()).collect();
    let (mut imports, mut brought_in, mut siblings) = (Vec::new(), BTreeSet::new(), BTreeMap::new());
    for module in modules {
        let mut paths = Vec::new();
        collect(module.tokens, &mut paths);
        for (path, line) in paths {
            let name = path.iter().filter(|_| path[0] == "use").rfind(|part| *part != "self");
            brought_in.extend(name.map(|name| [&module.path[..], std::slice::from_ref(name)].concat()));
            let place = format!("{}:{line}: `{}`", module.file, path.join("::").replacen("use::", "use ", 1));
            imports.extend(target(&module.path, &path).map(|to| (place, module.path.clone(), to)));
        }
    }
    for (place, from, path) in imports {
        let to = &path[..(0..=path.len()).rfind(|n| known.contains(&path[..*n])).unwrap()];
        let reason = match (from.first(), to.first()) {
            (None, _) => None,
            (Some(a), None) => Some(format!("{a} imports from the crate's root, the top: {MOVE}")),
            (Some(a), Some(b)) if a != b => {
                let floors = format!("{a} (floor {}) imports {b} (floor {})", floor(a), floor(b));
                (floor(b) <= floor(a)).then(|| format!("{floors}: {MOVE}, or correct ARCHITECTURE.md"))
            }
            _ if to.starts_with(&from) => None,
            _ if from.starts_with(to) => {
                let item = path.get(..=to.len()).filter(|i| i[to.len()] == "*" || brought_in.contains(*i));
                item.map(|_| format!("not defined in {} itself: import it from where it is", to.join("::")))
            }
            _ => {
                let n = from.iter().zip(to).take_while(|(a, b)| a == b).count();
                siblings.insert((from[..=n].join("::"), to[..=n].join("::")), place.clone());
                None
            }
        };
        wrong.extend(reason.map(|reason| format!("{place}: {reason}")));
    }
    // Cycles stay when each import by a file that none imports, or of a file that imports none, is taken away.
    let is_end = |all: &BTreeMap<(String, String), _>, a: &String, b: &String| {
        !all.keys().any(|(importer, _)| importer == b) || !all.keys().any(|(_, imported)| imported == a)
    };
    while let Some(edge) = siblings.keys().find(|(a, b)| is_end(&siblings, a, b)).cloned() {
        siblings.remove(&edge);
    }
    let cycles = siblings.iter().map(|((a, b), at)| format!("{at}: {a} imports {b} in a cycle: {MOVE}"));
    wrong.into_iter().chain(cycles).collect()
}

/// The floors of `shoes-vz-NAME`, the top one first; `None` if its section is missing or not filled in.
fn floors(name: &str, page: &str) -> Option<Vec<Path>> {
    let (_, order) = page.split_once("\n## Module order")?;
    let (_, part) = order.split_once(&format!("\n### shoes-vz-{name}\n"))?;
    let (_, floors) = part.split("\n##").next()?.split_once("```text\n")?;
    let (floors, _) = floors.split_once("```")?;
    Some(floors.lines().map(|line| line.split_whitespace().map(String::from).collect()).collect())
}

/// A path in the module `at`, from the crate's root; `None` unless it begins with `crate`, `super` or `self`.
fn target(at: &[String], path: &[String]) -> Option<Path> {
    let up = path.iter().filter(|part| *part == "super").count();
    let base = match path.iter().find(|part| *part != "use")?.as_str() {
        "crate" => &[],
        "self" | "super" => &at[..at.len().checked_sub(up)?],
        _ => return None,
    };
    let names = path.iter().filter(|part| !["use", "crate", "super", "self"].contains(&part.as_str()));
    Some(base.iter().chain(names).cloned().collect())
}

/// Every `use` (as a path that begins with it) and every other path that begins with `crate`, `super` or `self`, with its
/// line. An inline module's `super` is taken for the file's.
fn collect(tokens: TokenStream, found: &mut Vec<(Path, usize)>) {
    let tokens: Vec<_> = tokens.into_iter().collect();
    let mut next = 0;
    while next < tokens.len() {
        next += match &tokens[next..] {
            // `pub(super)` and `pub(in crate::a)` import nothing.
            [Ident(word), Group(scope), ..] if word == "pub" && scope.delimiter() == Parenthesis => 2,
            [Ident(word), tree @ ..] if word == "use" => 1 + paths(tree, &["use".to_owned()], found),
            path @ [Ident(a), ..] if a == "crate" || a == "super" || a == "self" => paths(path, &[], found),
            [Group(group), ..] => {
                collect(group.stream(), found);
                1
            }
            _ => 1,
        };
    }
}

/// Reads the path at the beginning of `tokens`, or every path of a `{…}` at its end; returns how many tokens it has.
fn paths(tokens: &[TokenTree], before: &[String], found: &mut Vec<(Path, usize)>) -> usize {
    let is = |token: &TokenTree, wanted| matches!(token, Punct(punct) if punct.as_char() == wanted);
    let mut path = before.to_vec();
    for n in (0..tokens.len()).step_by(3) {
        match &tokens[n] {
            Group(group) if group.delimiter() == Brace => {
                let inner: Vec<_> = group.stream().into_iter().collect();
                inner.split(|token| is(token, ',')).for_each(|tree| _ = paths(tree, &path, found));
                return n + 1;
            }
            part @ Ident(_) => path.push(part.to_string()),
            star if is(star, '*') => path.push("*".to_owned()),
            _ => return n,
        }
        if !matches!(&tokens[n + 1..], [a, b, next, ..] if is(a, ':') && is(b, ':') && !is(next, '<')) {
            found.push((path, tokens[n].span().start().line));
            return n + 1;
        }
    }
    tokens.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\n## Module order\n\n### shoes-vz-c\n```text\nrun\nhot slots\nfiles\n```\n\n### shoes-vz-d\n(filled in at merge)";
    const FILES: [(&str, &str); 5] = [
        ("lib", "pub mod run; mod hot; mod slots; mod files; #[cfg(test)] mod made_up;"),
        ("run", "use crate::{files, hot::{self, Pool}};"),
        ("hot", "mod plan; mod pool; pub use pool::Pool; pub struct Mode; use crate::files;"),
        ("hot/plan", "use super::Mode; #[cfg(test)] mod tests { use crate::run::X; use super::*; }"),
        ("hot/pool", "pub(in crate::run) struct Pool(super::plan::Plan);"),
    ];

    fn wrong(name: &str, changed: (&str, &str)) -> String {
        let files = FILES.into_iter().chain([("files", "fn f() { self::g() }"), changed]);
        let files = files.map(|(file, text)| (format!("rust/shoes-vz-c/src/{file}.rs"), text.to_owned()));
        violations(name, &files.chain([("ARCHITECTURE.md".to_owned(), PAGE.to_owned())]).collect()).join("\n")
    }

    #[test]
    fn each_import_that_is_not_downward_and_each_wrong_order_is_found() {
        assert_eq!(wrong("c", FILES[0]), "");
        for (file, text, found) in [
            ("files", "\nuse crate::{\n  run::X,\n};", "files.rs:3: `use crate::run::X`: files (floor 3) im"),
            ("slots", "fn f() { log!(a = crate::hot::X); }", "slots (floor 2) imports hot (floor 2)"),
            ("slots", "#[x(y = super::run::f)] struct S;", "`super::run::f`: slots (floor 2) imports run"),
            ("files", "use crate::VERSION;", "the crate's root"),
            ("hot/plan", "use super::{*, Mode};", "`use super::*`: not defined in hot itself"),
            ("hot/plan", "use super::Pool;", "`use super::Pool`: not defined in hot itself"),
            ("hot/plan", "use super::pool;", "hot::plan imports hot::pool in a cycle"),
            ("lib", "mod run; mod hot; mod slots;", "files does not exist"),
            ("lib", "mod run; mod hot; mod slots; mod files; mod late;", "late is not listed once"),
        ] {
            let wrong = wrong("c", (file, text));
            assert!(wrong.contains(found), "{file}: {text}: {wrong}");
        }
        assert_eq!(["d", "e"].map(|name| wrong(name, FILES[0]).contains("no block")), [true; 2]);
    }
}
