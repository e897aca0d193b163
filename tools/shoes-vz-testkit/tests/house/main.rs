//! Rules that no compiler knows: modules import downwards only ([`order`]), what people read is plain English
//! ([`language`]), and every document that is cited is in the repository ([`documents`]).
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod documents;
mod files;
mod language;
mod order;

use std::collections::BTreeMap;

const LAYERED: [&str; 5] = ["agent", "server", "vm", "channel", "client"];

#[test]
fn no_module_imports_upward() {
    let sources = files::sources();
    let wrong: Vec<_> = LAYERED.iter().flat_map(|name| order::violations(name, &sources)).collect();
    assert!(wrong.is_empty(), "{} violations\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn no_banned_words_in_what_people_read() {
    let hits = language::hits(&files::sources());
    let (mut counts, mut lines) = (BTreeMap::new(), String::new());
    for (file, line, hit) in &hits {
        *counts
            .entry(file.trim_start_matches("rust/").trim_start_matches("tools/").split('/').next().unwrap())
            .or_insert(0) += 1;
        lines += &format!("{file}:{line}: {hit}\n");
    }
    assert!(hits.is_empty(), "{} hits: {counts:?}\n{lines}", hits.len());
}

#[test]
fn every_document_cited_is_in_the_repository() {
    let missing = documents::missing(&files::sources());
    assert!(missing.is_empty(), "{} citations\n{}", missing.len(), missing.join("\n"));
}
