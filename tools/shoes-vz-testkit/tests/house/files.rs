//! The repository's text files, and the modules of a crate as its `mod` items declare them.
//!
//! Rust is read as tokens: they reach into macros and attributes, where a syntax tree ends.

use std::{collections::BTreeMap, fs};

use proc_macro2::{Group, TokenStream, TokenTree};
use shoes_vz_testkit::bins::repository;

/// Text by path from the repository's root.
pub(crate) type Sources = BTreeMap<String, String>;

/// Git's own folder, and what .gitignore names.
const NOT_SOURCES: [&str; 5] = [".git", "target", "bin", ".build", "bridge/swift/VZBridge/generated"];

pub(crate) fn sources() -> Sources {
    let (mut found, mut open) = (Sources::new(), vec![String::new()]);
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(repository().join(&folder)).unwrap().map(Result::unwrap) {
            let path = folder.clone() + entry.file_name().to_str().unwrap();
            if let Ok(text) = fs::read_to_string(entry.path()) {
                found.insert(path, text);
            } else if entry.file_type().unwrap().is_dir() && !NOT_SOURCES.contains(&path.as_str()) {
                open.push(path + "/");
            }
        }
    }
    found
}

/// One file of a crate, without its tests. The path of `lib.rs` and `main.rs` is empty.
pub(crate) struct Module {
    pub(crate) path: Vec<String>,
    pub(crate) file: String,
    pub(crate) tokens: TokenStream,
}

/// The module in the file `root` and all below it, which are in the folder `dir`.
pub(crate) fn modules(root: &str, dir: &str, path: &[String], sources: &Sources) -> Vec<Module> {
    let tokens = without_tests(sources[root].parse().unwrap_or_else(|e| panic!("{root}: {e}")));
    let mut found = Vec::new();
    for name in declared(&tokens) {
        let dir = format!("{dir}/{name}");
        let path = [path, &[name]].concat();
        let files = [format!("{dir}.rs"), format!("{dir}/mod.rs")];
        for file in files.iter().filter(|file| sources.contains_key(*file)) {
            found.extend(modules(file, &dir, &path, sources));
        }
    }
    found.push(Module { path: path.to_vec(), file: root.to_owned(), tokens });
    found
}

/// Names of the modules that a file declares.
pub(crate) fn declared(tokens: &TokenStream) -> Vec<String> {
    let name = |pair: &[TokenTree]| match pair {
        [TokenTree::Ident(word), TokenTree::Ident(name)] if word == "mod" => Some(name.to_string()),
        _ => None,
    };
    tokens.clone().into_iter().collect::<Vec<_>>().windows(2).filter_map(name).collect()
}

/// Takes out what stands below `#[cfg(test)]` or `#[cfg(all(test, …))]`: up to a `;` or a body in braces.
fn without_tests(tokens: TokenStream) -> TokenStream {
    let (mut kept, mut is_test) = (Vec::new(), false);
    for token in tokens {
        let text = token.to_string().replace(' ', "");
        match token {
            _ if is_test => is_test = text != ";" && !text.starts_with('{'),
            _ if text == "[cfg(test)]" || text.starts_with("[cfg(all(test,") => {
                is_test = kept.pop().is_some()
            }
            TokenTree::Group(group) => {
                kept.push(Group::new(group.delimiter(), without_tests(group.stream())).into());
            }
            token => kept.push(token),
        }
    }
    kept.into_iter().collect()
}
