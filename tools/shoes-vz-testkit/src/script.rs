//! Setup scripts: plain scripts, and scripts in the exact form that myshoes sends.

use std::process::Command;

use crate::bins::repository;

/// A script that only runs `body`.
pub fn plain(body: &str) -> String {
    format!("#!/bin/bash\n{body}\n")
}

/// A script that keeps its VM busy until it is deleted.
pub fn sleeping() -> String {
    plain("sleep 3600")
}

/// A job for the simulated Actions runner in `guests/demo`.
#[derive(Debug, Clone)]
pub struct Job {
    command: String,
    more: Vec<String>,
}

impl Job {
    /// A job whose only step is this shell command.
    pub fn new(command: &str) -> Self {
        Self { command: command.into(), more: Vec::new() }
    }

    /// Adds an argument for `make-setup-script`.
    #[must_use]
    pub fn with(mut self, flag: &str, value: &str) -> Self {
        self.more.extend([flag.into(), value.into()]);
        self
    }

    /// The script that myshoes would send: a compressed payload, and the runner in the foreground.
    ///
    /// # Panics
    /// When `guests/demo/make-setup-script` fails.
    pub fn setup_script(&self, runner_name: &str) -> String {
        let made = Command::new(repository().join("guests/demo/make-setup-script"))
            .args(["--name", runner_name, "--token", "AAAA-demo-token", "--job-command", &self.command])
            .args(&self.more)
            .output()
            .expect("guests/demo/make-setup-script runs");
        assert!(made.status.success(), "make-setup-script: {}", String::from_utf8_lossy(&made.stderr));
        String::from_utf8(made.stdout).expect("the script is UTF-8")
    }
}
