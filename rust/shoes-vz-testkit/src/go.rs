//! Real peers written in Go (`conformance/`), for the tests that have a Go to build them with.

use std::{io::Write as _, process::Command};

/// As `conformance/go.mod` has it.
const LEAST_MINOR: u32 = 25;

/// Whether there is no Go 1.25 or newer here; then a line that no test captures says what is not tested.
///
/// # Panics
/// When stderr cannot be written to.
pub fn is_missing(test: &str) -> bool {
    let found = Command::new("go").args(["env", "GOVERSION"]).output();
    let found = found.ok().filter(|said| said.status.success());
    let version = found.map(|said| String::from_utf8_lossy(&said.stdout).trim().to_owned());
    if version.as_deref().and_then(minor).is_some_and(|minor| minor >= LEAST_MINOR) {
        return false;
    }
    let found = version.unwrap_or_else(|| "no go in PATH".into());
    // Not by eprintln!, which shows in failed tests only.
    writeln!(
        std::io::stderr(),
        "SKIPPED: {test}: it needs Go 1.{LEAST_MINOR} or newer ({found}): https://go.dev/dl"
    )
    .expect("stderr is there");
    true
}

fn minor(version: &str) -> Option<u32> {
    let minor = version.strip_prefix("go1.")?;
    minor.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_go_is_known_by_its_minor_version() {
        let known = ["go1.19.8", "go1.25", "go1.26rc1", "go1.26.8 X:nojsonv2", "devel go1.27", ""].map(minor);
        assert_eq!(known, [Some(19), Some(25), Some(26), Some(26), None, None]);
    }
}
