//! Setup scripts: plain ones, and those of the exact shape myshoes sends.

use std::process::Command;

use crate::bins::repository;

/// A script that is no more than `body`.
pub fn plain(body: &str) -> String {
    format!("#!/bin/bash\n{body}\n")
}

/// A script that holds its VM until somebody deletes it.
pub fn held() -> String {
    plain("sleep 3600")
}

/// A job for the pretend Actions runner of `packaging/demo`.
#[derive(Debug, Clone)]
pub struct Job {
    command: String,
    more: Vec<String>,
}

impl Job {
    /// One whose only step is this shell command.
    pub fn new(command: &str) -> Self {
        Self { command: command.into(), more: Vec::new() }
    }

    /// The same, with another argument and its value for `make-setup-script`.
    #[must_use]
    pub fn with(mut self, flag: &str, value: &str) -> Self {
        self.more.extend([flag.into(), value.into()]);
        self
    }

    /// The script myshoes would send for it: a compressed payload, and the runner in the foreground.
    ///
    /// # Panics
    /// When `packaging/demo/make-setup-script` fails.
    pub fn setup_script(&self, runner_name: &str) -> String {
        let made = Command::new(repository().join("packaging/demo/make-setup-script"))
            .args(["--name", runner_name, "--token", "AAAA-demo-token", "--job-command", &self.command])
            .args(&self.more)
            .output()
            .expect("packaging/demo/make-setup-script runs");
        assert!(made.status.success(), "make-setup-script: {}", String::from_utf8_lossy(&made.stderr));
        String::from_utf8(made.stdout).expect("the script is UTF-8")
    }
}
