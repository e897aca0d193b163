//! Every document of ours that a tracked file cites is in the repository.

use shoes_vz_testkit::bins::repository;

use crate::files::Sources;

/// Documents of hashicorp/go-plugin and of QEMU, and one that only tests/pages has.
const ELSEWHERE: [&str; 3] = ["docs/internals.md", "docs/interop/qcow2.txt", "x.md"];

pub(crate) fn missing(sources: &Sources) -> Vec<String> {
    let mut missing = Vec::new();
    // What is cited here is to be refused.
    for (file, text) in sources.iter().filter(|(file, _)| !file.contains("/tests/house/")) {
        for (at, line) in text.lines().enumerate() {
            let words = line.split(|c: char| c.is_whitespace() || "\"'`()[]<>,;|#\\!=".contains(c));
            // `:` may end a word or come before a line number; an address with `://` is of another place.
            let ours = words.filter(|word| !word.contains("://")).filter_map(|word| word.split(':').next());
            for word in ours.map(|word| word.trim_end_matches('.')).filter(|word| is_document(word)) {
                let is_of_macos =
                    word.contains("facts/") && (file.clone() + line).contains("tools/shoes-vz-macos");
                if !is_of_macos && !exists(file, word) && !ELSEWHERE.contains(&word) {
                    missing.push(format!("{file}:{}: {word} is not in the repository", at + 1));
                }
            }
        }
    }
    missing
}

/// Whether a word is the path of a document; patterns and what a program puts together are not.
fn is_document(word: &str) -> bool {
    let is_page = word.ends_with(".md") && !format!("/{word}").ends_with("/.md");
    let is_below = |folder| format!("/{word}").contains(folder);
    !word.contains(['*', '$', '{', '}', '%']) && (is_page || is_below("/docs/") || is_below("/facts/"))
}

/// From the root, or beside the file that cites it.
fn exists(file: &str, cited: &str) -> bool {
    let root = repository();
    root.join(cited).exists() || root.join(file).parent().is_some_and(|folder| folder.join(cited).exists())
}

#[test]
fn a_citation_of_what_is_not_there_is_found_and_no_other() {
    let right = "See docs/faults.md#a, [b](faults.md), `docs/`, https://x.org/docs/c.md and {dir}/d.md.";
    let wrong = "\nsee DESIGN.md, docs/c.md:12 and (facts/house.md)";
    let sources = [("docs/x.md", right), ("rust/y.rs", wrong)];
    let found = missing(&sources.map(|(file, text)| (file.to_owned(), text.to_owned())).into());
    let expected = ["DESIGN.md", "docs/c.md", "facts/house.md"];
    assert_eq!(found, expected.map(|name| format!("rust/y.rs:2: {name} is not in the repository")));
}
