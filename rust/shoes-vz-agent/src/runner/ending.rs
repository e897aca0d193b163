//! How a runner ends, in a kind and in words.

use std::{path::Path, time::Duration};

use shoes_vz_model::{bundle::file, state::Stage, text};
use shoes_vz_process::units;
use shoes_vz_proto::{
    agent::EndKind,
    vm::{VmEnd, VmEndKind},
};

use super::silence::Silence;
use crate::files;

/// Longest reason (`error_message` in agent.proto).
const MAX_REASON: usize = 8 << 10;
const CONSOLE_LINES: usize = 20;
/// Of a guest's last line, quoted in a reason.
const MAX_LAST_LINE: usize = 300;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ending {
    pub(crate) kind: EndKind,
    pub(crate) reason: String,
    /// A saved state was refused.
    pub(crate) state_refused: bool,
}

impl Ending {
    pub(crate) fn new(kind: EndKind, reason: impl Into<String>) -> Self {
        // Parts of it come from guests and from what they print.
        Self { kind, reason: text::cut(&text::plain(&reason.into()), MAX_REASON), state_refused: false }
    }

    pub(crate) fn failed(reason: impl Into<String>) -> Self {
        Self::new(EndKind::Failed, reason)
    }

    /// A task of the runner's panicked.
    pub(crate) fn fault_of_the_agent(message: &str) -> Self {
        Self::failed(format!(
            "a fault of the agent, not of the job or the template, ended this runner: {message}; the agent's log has more, \
             please report it"
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
        Self::new(EndKind::Deleted, "deleted as the server asked")
    }

    /// The VM is over, and it was not this runner's owner who ended it.
    pub(crate) fn vm_over(end: &VmEnd, stage: Stage, bundle: &Path) -> Self {
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
        // Later the console has no more to tell than the job itself, unless it is the kernel that failed.
        let kernel = matches!(end.kind(), VmEndKind::GuestPanic | VmEndKind::GuestReset);
        if kind == EndKind::VmDied && (stage <= Stage::Ssh || kernel) {
            reason.push_str(&console_tail(bundle));
        }
        Self { state_refused: end.kind() == VmEndKind::RestoreRefused, ..Self::new(kind, reason) }
    }

    /// SSH did not answer in time.
    pub(super) fn late(
        deadline: Duration,
        stage: Stage,
        in_stage: Duration,
        last: &str,
        bundle: &Path,
    ) -> Self {
        let doing = match stage {
            Stage::Clone => "the bundle was still being made",
            Stage::Start => "the hypervisor had not started the guest",
            Stage::Guest => "the guest had not booted as far as its guest agent",
            Stage::Ssh => "the guest was up, but SSH did not answer",
            _ => "it was further than that already",
        };
        let last = if last.is_empty() { String::new() } else { format!("; the last try said: {last}") };
        Self::failed(format!(
            "not ready within the start deadline of {}: stage {} took {} so far, {doing}{last}{}",
            units::show_duration(deadline),
            stage.as_str(),
            units::show_duration(in_stage),
            console_tail(bundle)
        ))
    }

    pub(super) fn expired(limit: Duration) -> Self {
        Self::new(
            EndKind::Expired,
            format!("the VM reached its maximum lifetime of {}", units::show_duration(limit)),
        )
    }

    /// The guest agent answers nothing any more.
    pub(super) fn silent(silence: &Silence, stage: Stage, bundle: &Path) -> Self {
        let last = match &silence.last {
            Some((what, ago)) => format!("it last said, {} ago: {what}", units::show_duration(*ago)),
            None => "it said nothing since this agent follows it".into(),
        };
        Self::new(
            EndKind::Unresponsive,
            format!(
                "the guest was not heard of for {} at stage {} (--unresponsive-guest-limit): it left {} questions unanswered, \
                 the last one with: {}; {last}{}",
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
            Ending::late(Duration::from_secs(12), Stage::Ssh, Duration::from_secs(11), "refused", dir).reason
        };
        assert!(late(dir.path()).ends_with("the console printed nothing"));
        let log: String = (1..=30).map(|n| format!("\u{1b}[0mline {n}\r\n")).collect();
        std::fs::write(dir.path().join(file::CONSOLE_LOG), log).unwrap();
        let words = late(dir.path());
        for part in ["12.0 s", "stage ssh took 11.0 s", "refused", "line 11\n", "line 30"] {
            assert!(words.contains(part), "{part:?} is not in {words}");
        }
        assert!(!words.contains("line 10") && !words.contains('\u{1b}'), "{words}");
    }

    #[test]
    fn a_failed_scripts_reason_is_useful_in_one_line_and_nothing_a_terminal_obeys() {
        let reason = |code, tail: &str| Ending::setup_failed(code, tail).reason;
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
        let reason = Ending::vm_over(&end, Stage::Job, dir.path()).reason;
        let first = reason.lines().next().unwrap();
        assert!(first.contains("\"Kernel panic - not syncing\""), "{reason}");
        assert!(!reason.contains("console.log") && !reason.contains("[1m"), "{reason}");
    }

    #[test]
    fn each_end_of_a_vm_has_its_kind_and_keeps_its_words() {
        let dir = tempfile::tempdir().unwrap();
        let over = |kind: VmEndKind, stage| {
            let end = VmEnd { kind: kind.into(), reason: "because".into() };
            Ending::vm_over(&end, stage, dir.path())
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
        assert!(Ending::failed("é".repeat(8 << 10)).reason.len() <= MAX_REASON);
    }
}
