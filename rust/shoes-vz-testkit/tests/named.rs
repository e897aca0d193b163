//! Every fault of the Go implementation and every pain of its peers that concerns this project has a test named after it
//! (`docs/faults.md` lists them); and what the sources alone can show.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use shoes_vz_testkit::bins::repository;

const FAULTS: std::ops::RangeInclusive<u8> = 1..=28;
const PAINS: [u8; 6] = [3, 4, 5, 6, 7, 14];
const PLACES: [&str; 3] = ["bridge", "rust", "VZCore/Tests"];

/// What a test is named after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Subject {
    Fault(u8),
    Pain(u8),
}

/// `None` unless a name begins with one of ours and goes on as a sentence.
fn subject(name: &str) -> Option<Subject> {
    let (kind, rest) = name.split_once('_')?;
    let (number, sentence) = rest.split_once('_')?;
    let number = (number.len() == 2 && sentence.contains('_')).then(|| number.parse().ok()).flatten()?;
    match kind {
        "fault" if FAULTS.contains(&number) => Some(Subject::Fault(number)),
        "pain" if PAINS.contains(&number) => Some(Subject::Pain(number)),
        _ => None,
    }
}

fn claims_a_subject(name: &str) -> bool {
    name.starts_with("fault_") || name.starts_with("pain_")
}

/// The function a line declares.
fn declared(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let line = line.strip_prefix("@Test ").unwrap_or(line);
    let line = line.strip_prefix("async ").unwrap_or(line);
    let rest = line.strip_prefix("fn ").or_else(|| line.strip_prefix("func "))?;
    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
    Some(&rest[..end])
}

/// Whether the function declared on line `at` is run as a test: its attributes stand on that line and right above it.
fn is_run(lines: &[&str], at: usize) -> bool {
    let above = lines[..at].iter().rev().take_while(|line| !matches!(line.trim(), "" | "}"));
    let attributes: Vec<_> = std::iter::once(&lines[at]).chain(above).map(|line| line.trim_start()).collect();
    let is_test = |line: &&str| ["#[test]", "#[tokio::test", "@Test"].iter().any(|a| line.starts_with(a));
    let is_not_run = |line: &&str| line.contains("#[ignore") || line.contains(".disabled(");
    attributes.iter().any(is_test) && !attributes.iter().any(is_not_run)
}

/// Files below `dir` with one of these extensions, by their path in the repository.
fn sources(dir: &str, found: &mut BTreeMap<String, String>) {
    for entry in fs::read_dir(repository().join(dir)).unwrap() {
        let entry = entry.unwrap();
        let path = format!("{dir}/{}", entry.file_name().to_str().unwrap());
        if entry.file_type().unwrap().is_dir() {
            sources(&path, found);
        } else if Path::new(&path).extension().is_some_and(|e| e == "rs" || e == "swift") {
            found.insert(path, fs::read_to_string(entry.path()).unwrap());
        }
    }
}

/// Path and name of every test that claims a subject.
fn tests() -> BTreeSet<(String, String)> {
    let mut all = BTreeMap::new();
    for place in PLACES {
        sources(place, &mut all);
    }
    let mut found = BTreeSet::new();
    for (path, text) in all {
        let lines: Vec<_> = text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let Some(name) = declared(line).filter(|name| claims_a_subject(name)) else { continue };
            assert!(is_run(&lines, at), "{path}: {name} is never run");
            assert!(subject(name).is_some(), "{path}: {name} is named after nothing there is");
            assert!(found.insert((path.clone(), name.to_owned())), "{path} has {name} twice");
        }
    }
    found
}

fn subjects(tests: &BTreeSet<(String, String)>) -> BTreeSet<Subject> {
    tests.iter().filter_map(|(_, name)| subject(name)).collect()
}

fn all_subjects() -> BTreeSet<Subject> {
    FAULTS.map(Subject::Fault).chain(PAINS.map(Subject::Pain)).collect()
}

/// Path and name of every test a row of the table names: `` `name` ([file](../path)) ``.
fn listed(page: &str) -> BTreeSet<(String, String)> {
    let mut found = BTreeSet::new();
    for row in page.lines().filter(|line| line.starts_with('|')) {
        let mut pieces = row.split('`').skip(1);
        while let (Some(name), Some(after)) = (pieces.next(), pieces.next()) {
            if claims_a_subject(name) {
                let path = after.split_once("](../").and_then(|(_, path)| path.split_once("))"));
                let (path, _) = path.unwrap_or_else(|| panic!("{name} has no link to its file: {after}"));
                found.insert((path.to_owned(), name.to_owned()));
            }
        }
    }
    found
}

#[test]
fn every_fault_of_the_go_implementation_and_every_pain_has_a_test_of_its_name() {
    let tests = tests();
    let missing: Vec<_> = all_subjects().difference(&subjects(&tests)).copied().collect();
    assert!(missing.is_empty(), "no test is named after {missing:?}");
}

#[test]
fn the_page_on_faults_names_every_such_test_and_no_other() {
    let page = fs::read_to_string(repository().join("docs/faults.md")).unwrap();
    let (tests, listed) = (tests(), listed(&page));
    let gone: Vec<_> = listed.difference(&tests).collect();
    assert!(gone.is_empty(), "docs/faults.md names tests that are not there: {gone:#?}");
    let unlisted: Vec<_> = tests.difference(&listed).collect();
    assert!(unlisted.is_empty(), "docs/faults.md does not name {unlisted:#?}");
}

#[test]
fn a_name_is_read_as_a_number_and_a_sentence_or_not_at_all() {
    assert_eq!(subject("fault_09_a_fast_guest_is_ready"), Some(Subject::Fault(9)));
    assert_eq!(subject("pain_14_why_it_waits"), Some(Subject::Pain(14)));
    let wrong =
        ["fault_9_a_fast_guest", "fault_29_a_b", "fault_00_a_b", "pain_01_a_b", "fault_09_", "fault_09"];
    assert_eq!(wrong.map(subject), [None; 6]);
    let lines =
        ["#[test]", "fn fault_01_a_b() {", "}", "", "fn fault_02_a_b() {", "@Test func pain_03_a_b() {"];
    assert_eq!(lines.map(|line| declared(line).is_some()), [false, true, false, false, true, true]);
    assert_eq!([1, 4, 5].map(|at| is_run(&lines, at)), [true, false, true]);
    assert!(!is_run(&["#[test]", "#[ignore]", "fn fault_01_a_b() {"], 2));
}

#[test]
fn fault_15_every_crate_but_the_bridge_forbids_unsafe_code_and_so_data_races() {
    let read = |path: &Path| -> toml::Table { fs::read_to_string(path).unwrap().parse().unwrap() };
    let workspace = read(&repository().join("Cargo.toml"));
    assert_eq!(workspace["workspace"]["lints"]["rust"]["unsafe_code"].as_str(), Some("forbid"));
    for member in workspace["workspace"]["members"].as_array().unwrap() {
        let member = member.as_str().unwrap();
        let manifest = read(&repository().join(member).join("Cargo.toml"));
        let lints = manifest.get("lints").and_then(|lints| lints.get("workspace"));
        let forbids = lints.and_then(toml::Value::as_bool) == Some(true);
        assert_eq!(forbids, member != "bridge", "{member}");
    }
    // Swift's compiler refuses data races from language mode 6 on; what swift-bridge generates alone does without.
    let swift = fs::read_to_string(repository().join("Package.swift")).unwrap();
    assert!(swift.contains("swiftLanguageModes: [.v6]"));
    assert_eq!(swift.matches(".swiftLanguageMode(").count(), 1);
}
