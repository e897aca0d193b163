//! Copies of the test template, in which a test can change or break a file.

use std::{fs, os::unix::fs::symlink, path::Path};

use crate::bins::test_template;

/// Makes `into` a template of links to the test template.
///
/// # Panics
/// When that fails.
pub fn linked_copy(into: &Path) {
    fs::create_dir_all(into).expect("a directory for the template");
    for entry in fs::read_dir(test_template()).expect("the template").flatten() {
        let file = entry.path().canonicalize().expect("the template's files are there");
        symlink(file, into.join(entry.file_name())).expect("a link");
    }
}

/// Replaces a link by a file with this content.
///
/// # Panics
/// When that fails.
pub fn replace(path: &Path, content: &[u8]) {
    fs::remove_file(path).expect("there is a link");
    fs::write(path, content).expect("the file is written");
}

/// Changes a [`linked_copy`]'s `Template.json`.
///
/// # Panics
/// When that fails.
pub fn edit(template: &Path, change: impl FnOnce(&mut serde_json::Value)) {
    let path = template.join(shoes_vz_model::template::file::METADATA);
    let bytes = fs::read(&path).expect("the template has metadata");
    let mut metadata = serde_json::from_slice(&bytes).expect("they are JSON");
    change(&mut metadata);
    replace(&path, metadata.to_string().as_bytes());
}
