//! How a runner ends: a kind and a reason.

use std::{path::Path, time::Duration};

use shoes_vz_model::{bundle::file, state::Stage, text};
use shoes_vz_process::units;
use shoes_vz_proto::{
    agent::EndKind,
    vm::{VmEnd, VmEndKind},
};
use shoes_vz_vm::End;

use super::responsiveness::Silence;
use crate::{bundles::Bundle, files, provision::ProvisionError};

/// Longest reason (`error_message` in agent.proto).
const MAX_REASON: usize = 8 << 10;
const CONSOLE_LINES: usize = 20;
/// Of a guest's last line, quoted in a reason.
const MAX_LAST_LINE: usize = 300;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RunnerEnd {
    pub(crate) kind: EndKind,
    pub(crate) reason: String,
}

/// A start that was not done in time.
pub(super) struct Late {
    pub(super) deadline: Duration,
    pub(super) stage: Stage,
    pub(super) in_stage: Duration,
    pub(super) last_error: String,
}

impl RunnerEnd {
    pub(crate) fn new(kind: EndKind, reason: impl Into<String>) -> Self {
        // Parts of it come from guests and from what they print.
        Self { kind, reason: text::cut(&text::plain(&reason.into()), MAX_REASON) }
    }

    pub(crate) fn failed(reason: impl Into<String>) -> Self {
        Self::new(EndKind::Failed, reason)
    }

    /// A task of the runner panicked with this message.
    pub(crate) fn fault_of_the_agent(panic: &str) -> Self {
        Self::failed(format!(
            "a bug in the agent, not in the job or the template, ended this runner: {panic}; see the agent's log, and \
             report this"
        ))
    }

    /// In one line: the last of its output is in `Setup.log_tail`.
    pub(super) fn setup_failed(code: i32, tail: &str) -> Self {
        let signal = if code > 128 { format!(" (signal {})", code - 128) } else { String::new() };
        let last = match text::last_line(tail, MAX_LAST_LINE) {
            Some(line) => format!("last line: \"{line}\""),
            None => "it printed nothing".into(),
        };
        Self::failed(format!("setup script exited with code {code}{signal}; {last}"))
    }

    pub(crate) fn deleted() -> Self {
        Self::new(EndKind::Deleted, "deleted as the server requested")
    }

    /// The VM has ended, and the agent did not end it.
    pub(crate) fn of_vm(end: &VmEnd, stage: Stage, bundle: &Path) -> Self {
        let kind = match end.kind() {
            VmEndKind::Requested => {
                return Self::new(
                    EndKind::Deleted,
                    format!("the operator ended the VM on its host, at stage {}", stage.as_str()),
                );
            }
            VmEndKind::MaxLifetime => EndKind::Expired,
            _ => EndKind::VmDied,
        };
        let mut reason = format!("the VM ended at stage {}: {}", stage.as_str(), end.reason);
        // Later the console shows no more than the job itself, unless it is the kernel that failed.
        let kernel = matches!(end.kind(), VmEndKind::GuestPanic | VmEndKind::GuestReset);
        if kind == EndKind::VmDied && (stage <= Stage::Ssh || kernel) {
            reason.push_str(&console_tail(bundle));
        }
        Self::new(kind, reason)
    }

    /// Its VM did not become ready. Not for a cancelled start, which ends as decided by what cancelled it.
    pub(super) fn of_provision(error: ProvisionError, late: Late, bundle: &Path) -> Self {
        match error {
            ProvisionError::VmEnded { end, stage } => Self::of_vm(&end, stage, bundle),
            ProvisionError::Deadline { last_error } => Self::late(&Late { last_error, ..late }, bundle),
            ProvisionError::Panicked(panic) => Self::fault_of_the_agent(&panic),
            ProvisionError::VmProcessSilent { .. } => Self::new(EndKind::VmDied, error.to_string()),
            error => Self::failed(error.to_string()),
        }
    }

    /// SSH did not answer in time.
    fn late(late: &Late, bundle: &Path) -> Self {
        let Late { deadline, stage, in_stage, last_error } = late;
        let doing = match stage {
            Stage::Claim => "no VM was available",
            Stage::Personalize => "the restored guest was being personalized",
            Stage::Clone => "the bundle was still being created",
            Stage::Start => "the hypervisor had not started the guest",
            Stage::Guest => "the guest had not booted as far as its guest agent",
            Stage::Ssh => "the guest was up, but SSH did not answer",
            _ => "these stages were complete already",
        };
        let last = match last_error.is_empty() {
            true => String::new(),
            false => format!("; the last attempt failed with: {last_error}"),
        };
        Self::failed(format!(
            "not ready within the start deadline of {}: stage {} took {} so far, {doing}{last}{}",
            units::show_duration(*deadline),
            stage.as_str(),
            units::show_duration(*in_stage),
            console_tail(bundle)
        ))
    }

    /// Of a bundle that no VM process serves any more.
    pub(super) fn found_dead(bundle: &Bundle, stage: Stage) -> Self {
        match End::read(&bundle.path) {
            Ok(Some(end)) => Self::of_vm(&end.to_wire(), stage, &bundle.path),
            Ok(None) if !bundle.file(file::VM_LOG).exists() => {
                Self::failed("the agent was restarted before the VM was started")
            }
            Ok(None) => Self::new(
                EndKind::VmDied,
                "the VM process did not run any more when the agent started, and left no reason; the host was restarted, or \
                 something killed the process",
            ),
            Err(error) => Self::new(
                EndKind::VmDied,
                format!("the VM has ended, and VmEnd.json cannot be read ({error})"),
            ),
        }
    }

    pub(super) fn expired(limit: Duration) -> Self {
        Self::new(
            EndKind::Expired,
            format!("the VM reached its maximum lifetime of {}", units::show_duration(limit)),
        )
    }

    /// The guest agent does not respond any more.
    pub(super) fn unresponsive(silence: &Silence, stage: Stage, bundle: &Path) -> Self {
        let last = match &silence.last {
            Some((what, ago)) => format!("its last answer, {} ago: {what}", units::show_duration(*ago)),
            None => "it has not answered this agent once".into(),
        };
        Self::new(
            EndKind::Unresponsive,
            format!(
                "the guest did not respond for {} at stage {} (--unresponsive-guest-limit): {} requests failed, the last one \
                 with: {}; {last}{}",
                units::show_duration(silence.lasted),
                stage.as_str(),
                silence.unanswered,
                silence.error,
                console_tail(bundle)
            ),
        )
    }

    pub(super) fn is_failure(&self) -> bool {
        matches!(self.kind, EndKind::Failed | EndKind::VmDied | EndKind::Unresponsive)
    }
}

/// `; the console's last line: "…"`, and below it more of them, without what a terminal would obey. The bundle with the
/// whole log is gone once the reason is read.
pub(super) fn console_tail(bundle: &Path) -> String {
    let bytes = match files::last_bytes(&bundle.join(file::CONSOLE_LOG), 64 << 10) {
        Ok(bytes) => bytes,
        Err(error) => return format!("; the console's log cannot be read ({error})"),
    };
    let lines = text::plain(&text::tail(&bytes, CONSOLE_LINES, 4 << 10));
    match text::last_line(&lines, MAX_LAST_LINE) {
        None => "; the console printed nothing".into(),
        Some(last) => {
            format!("; the console's last line: \"{last}\"\nThe console's last lines:\n{}", lines.trim())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_late_start_names_stage_time_last_error_and_the_consoles_tail() {
        let dir = tempfile::tempdir().unwrap();
        let late = |dir: &Path| {
            let late = Late {
                deadline: Duration::from_secs(12),
                stage: Stage::Ssh,
                in_stage: Duration::from_secs(11),
                last_error: "refused".into(),
            };
            RunnerEnd::late(&late, dir).reason
        };
        assert!(late(dir.path()).ends_with("the console printed nothing"));
        let log: String = (1..=30).map(|n| format!("\u{1b}[0mline {n}\r\n")).collect();
        std::fs::write(dir.path().join(file::CONSOLE_LOG), log).unwrap();
        let reason = late(dir.path());
        for part in ["12.0 s", "stage ssh took 11.0 s", "refused", "line 11\n", "line 30"] {
            assert!(reason.contains(part), "{part:?} is not in {reason}");
        }
        assert!(!reason.contains("line 10") && !reason.contains('\u{1b}'), "{reason}");
    }

    #[test]
    fn a_failed_scripts_reason_is_useful_in_one_line_and_nothing_a_terminal_obeys() {
        let reason = |code, tail: &str| RunnerEnd::setup_failed(code, tail).reason;
        assert_eq!(
            reason(3, "fetching\n\u{1b}[31mcurl: (6) Could not resolve host\u{1b}[0m\n\n"),
            "setup script exited with code 3; last line: \"curl: (6) Could not resolve host\""
        );
        assert_eq!(reason(137, ""), "setup script exited with code 137 (signal 9); it printed nothing");
        assert!(reason(1, &"x".repeat(10_000)).len() < 400);
    }

    #[test]
    fn a_kernel_that_panics_is_quoted_at_every_stage_since_its_log_goes_with_the_bundle() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join(file::CONSOLE_LOG),
            "ok\n\u{1b}[1mKernel panic - not syncing\u{1b}[0m\r\n",
        )
        .unwrap();
        let end = VmEnd { kind: VmEndKind::GuestPanic.into(), reason: "the guest's kernel panicked".into() };
        let reason = RunnerEnd::of_vm(&end, Stage::Job, dir.path()).reason;
        let first = reason.lines().next().unwrap();
        assert!(first.contains("\"Kernel panic - not syncing\""), "{reason}");
        assert!(!reason.contains("console.log") && !reason.contains("[1m"), "{reason}");
    }

    #[test]
    fn each_end_of_a_vm_has_its_kind_and_keeps_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let over = |kind: VmEndKind, stage| {
            let end = VmEnd { kind: kind.into(), reason: "because".into() };
            RunnerEnd::of_vm(&end, stage, dir.path())
        };
        assert_eq!(over(VmEndKind::Requested, Stage::Job).kind, EndKind::Deleted);
        assert_eq!(over(VmEndKind::MaxLifetime, Stage::Job).kind, EndKind::Expired);
        let died = over(VmEndKind::DiskError, Stage::Job);
        assert_eq!(
            (died.kind, died.reason.as_str()),
            (EndKind::VmDied, "the VM ended at stage job: because")
        );
        assert!(over(VmEndKind::GuestPanic, Stage::Guest).reason.contains("console"));
    }

    #[test]
    fn fault_22_a_reason_is_bounded() {
        assert!(RunnerEnd::failed("é".repeat(8 << 10)).reason.len() <= MAX_REASON);
    }
}
