//! Every fault and pain that `docs/faults.md` lists has a test named after it, and no test is named after another one.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeSet, fs, path::Path};

use shoes_vz_testkit::bins::repository;

/// Adds `fault_NN` or `pain_NN` for each function below `dir` whose name begins with it.
fn add_tests(dir: &Path, found: &mut BTreeSet<String>) {
    for path in fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
        if path.is_dir() {
            add_tests(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs" || e == "swift") {
            let text = fs::read_to_string(&path).unwrap();
            for kind in ["fault", "pain"] {
                for keyword in ["fn", "func"] {
                    let prefix = format!("{keyword} {kind}_");
                    let names = text.split(&prefix).skip(1).filter(|rest| rest.starts_with(char::is_numeric));
                    found.extend(names.map(|rest| format!("{kind}_{}", &rest[..2])));
                }
            }
        }
    }
}

#[test]
fn the_faults_and_pains_of_the_page_are_those_that_tests_are_named_after() {
    let mut listed = BTreeSet::new();
    let mut kind = "";
    for row in fs::read_to_string(repository().join("docs/faults.md")).unwrap().lines() {
        match row.split('|').nth(1).map(str::trim) {
            Some("fault") => kind = "fault",
            Some("pain") => kind = "pain",
            Some(cell) => listed.extend(cell.parse().map(|number: u8| format!("{kind}_{number:02}"))),
            None => {}
        }
    }
    let mut tests = BTreeSet::new();
    for dir in ["bridge", "rust", "tools", "VZCore/Tests"] {
        add_tests(&repository().join(dir), &mut tests);
    }
    assert_eq!(listed, tests);
}

#[test]
fn fault_15_every_crate_but_the_bridge_forbids_unsafe_code_and_so_data_races() {
    let read = |path: &Path| -> toml::Table { fs::read_to_string(path).unwrap().parse().unwrap() };
    let workspace = read(&repository().join("Cargo.toml"));
    assert_eq!(workspace["workspace"]["lints"]["rust"]["unsafe_code"].as_str(), Some("forbid"));
    for member in workspace["workspace"]["members"].as_array().unwrap() {
        let member = member.as_str().unwrap();
        let manifest = read(&repository().join(member).join("Cargo.toml"));
        let forbids = manifest.get("lints").and_then(|lints| lints.get("workspace")?.as_bool()) == Some(true);
        assert_eq!(forbids, member != "bridge", "{member}");
    }
    // Swift refuses data races from language mode 6 on; only the code that swift-bridge generates uses an older mode.
    let swift = fs::read_to_string(repository().join("Package.swift")).unwrap();
    assert!(swift.contains("swiftLanguageModes: [.v6]"));
    assert_eq!(swift.matches(".swiftLanguageMode(").count(), 1);
}
