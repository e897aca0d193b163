//! Programs written in Go (`conformance/`) that tests build and run when Go is installed.

use std::{io::Write as _, process::Command};

/// As in `conformance/go.mod`.
const LEAST_MINOR: u32 = 25;

/// Whether Go 1.25 or newer is missing; then it prints, past the capture of the test, what is not tested.
///
/// # Panics
/// When stderr cannot be written.
pub fn is_missing(test: &str) -> bool {
    let found = Command::new("go").args(["env", "GOVERSION"]).output();
    let found = found.ok().filter(|output| output.status.success());
    let version = found.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    if version.as_deref().and_then(minor).is_some_and(|minor| minor >= LEAST_MINOR) {
        return false;
    }
    let found = version.unwrap_or_else(|| "no go in PATH".into());
    // Not by eprintln!, whose output only failed tests show.
    writeln!(
        std::io::stderr(),
        "SKIPPED: {test}: needs Go 1.{LEAST_MINOR} or newer ({found}): https://go.dev/dl"
    )
    .expect("stderr is writable");
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
    fn the_minor_version_of_go_is_parsed() {
        let known = ["go1.19.8", "go1.25", "go1.26rc1", "go1.26.8 X:nojsonv2", "devel go1.27", ""].map(minor);
        assert_eq!(known, [Some(19), Some(25), Some(26), Some(26), None, None]);
    }
}
