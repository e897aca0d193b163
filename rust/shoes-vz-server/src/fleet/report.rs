//! An agent's report of a runner: bounded, never backward, and compared with the last one.

use std::time::Duration;

use jiff::Timestamp;
use shoes_vz_model::{State, text};
use shoes_vz_proto::{agent as wire, convert};

use super::observation::Observation;

/// Longest text taken from an agent, in bytes.
const MAX_TEXT: usize = 8 << 10;

/// Longest address, in bytes: what myshoes' table holds.
const MAX_ADDRESS: usize = 255;

/// A text within bounds. Its end is kept, since that is where logs give the reason.
pub fn bounded_text(text: &str) -> String {
    text::tail(text.as_bytes(), usize::MAX, MAX_TEXT)
}

/// An agent's text, to become part of a line.
pub fn one_line(text: &str) -> String {
    text::tail(text.as_bytes(), usize::MAX, 1 << 10).replace(char::is_control, " ").trim().to_owned()
}

/// The report with every text within bounds.
pub fn bounded(mut report: wire::Runner) -> wire::Runner {
    let long = |t: &mut String, max: usize| {
        if t.len() > max {
            *t = text::tail(t.as_bytes(), usize::MAX, max);
        }
    };
    long(&mut report.error_message, MAX_TEXT);
    long(&mut report.ip_address, MAX_ADDRESS);
    if let Some(setup) = &mut report.setup {
        long(&mut setup.log_tail, MAX_TEXT);
    }
    if let Some(end) = &mut report.end {
        long(&mut end.reason, MAX_TEXT);
    }
    report.stages.truncate(32);
    report
}

/// `report` as the successor of `last`: a state that is unknown or goes backward is ignored.
pub fn follow(last: Option<&wire::Runner>, mut report: wire::Runner) -> wire::Runner {
    let before = last.and_then(|r| convert::state_from_wire(r.state)).unwrap_or(State::Creating);
    let kept = match convert::state_from_wire(report.state) {
        Some(next) if before.may_become(next) => next,
        _ => before,
    };
    report.state = wire::RunnerState::from(kept).into();
    // The start path does not change, and stays known.
    if report.start_path == 0 {
        report.start_path = last.map_or(0, |r| r.start_path);
    }
    // It also stays known that a job was seen.
    report.job_seen = shows_a_job(&report) || last.is_some_and(shows_a_job);
    report
}

/// An end that the server records at `at`.
pub fn end(kind: wire::EndKind, reason: String, stage: i32, at: Timestamp) -> wire::RunnerEnd {
    wire::RunnerEnd { kind: kind.into(), reason, stage, at: Some(convert::time_to_wire(at)) }
}

/// Whether this report shows that a job ran. A Go agent, and reports stored by earlier versions, show it only by the
/// guest's state or by the job itself.
pub fn shows_a_job(report: &wire::Runner) -> bool {
    report.job_seen || report.job.is_some() || report.guest_runner_state() == wire::GuestRunnerState::Running
}

/// Stages that have ended since the last report.
pub fn new_stages(last: Option<&wire::Runner>, report: &wire::Runner) -> Vec<Observation> {
    let known = |stage: i32| last.is_some_and(|r| r.stages.iter().any(|t| t.stage == stage));
    let new = report.stages.iter().filter(|t| !known(t.stage));
    new.filter_map(|t| {
        let stage = convert::stage_from_wire(t.stage)?;
        Some(Observation::Stage(stage, Duration::from_micros(t.duration_us)))
    })
    .collect()
}

/// Follows whether a job runs; returns its duration once it has ended.
pub fn job_ended(
    busy_since: &mut Option<Duration>,
    report: &wire::Runner,
    now: Duration,
) -> Option<Observation> {
    if report.guest_runner_state() == wire::GuestRunnerState::Running {
        busy_since.get_or_insert(now);
        return None;
    }
    busy_since.take().map(|since| Observation::Job(now.saturating_sub(since)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_state(state: wire::RunnerState) -> wire::Runner {
        wire::Runner { state: state.into(), ..Default::default() }
    }

    #[test]
    fn fault_14_a_report_never_leads_backward_or_to_an_unknown_state() {
        let running = in_state(wire::RunnerState::Running);
        let back = follow(Some(&running), in_state(wire::RunnerState::Booting));
        assert_eq!(back.state(), wire::RunnerState::Running);
        let odd = follow(Some(&running), wire::Runner { state: 77, ..Default::default() });
        assert_eq!(odd.state(), wire::RunnerState::Running);
        assert_eq!(
            follow(None, in_state(wire::RunnerState::Unspecified)).state(),
            wire::RunnerState::Creating
        );
    }

    #[test]
    fn fault_22_an_endless_message_is_cut_to_its_last_part() {
        let report =
            wire::Runner { error_message: format!("{}end", "x".repeat(1 << 20)), ..Default::default() };
        let kept = bounded(report).error_message;
        assert!(kept.len() <= MAX_TEXT && kept.ends_with("end"));
    }

    #[test]
    fn fault_23_a_stage_and_a_job_are_each_counted_once() {
        let stage =
            wire::StageTiming { stage: wire::RunnerStage::Clone.into(), duration_us: 1500, started_at: None };
        let report = wire::Runner { stages: vec![stage], ..Default::default() };
        assert_eq!(new_stages(None, &report).len(), 1);
        assert_eq!(new_stages(Some(&report), &report), []);

        let mut since = None;
        let busy =
            wire::Runner { guest_runner_state: wire::GuestRunnerState::Running.into(), ..Default::default() };
        assert_eq!(job_ended(&mut since, &busy, Duration::from_secs(1)), None);
        assert_eq!(job_ended(&mut since, &busy, Duration::from_secs(2)), None);
        let ended = job_ended(&mut since, &wire::Runner::default(), Duration::from_secs(5));
        assert_eq!(ended, Some(Observation::Job(Duration::from_secs(4))));
        assert_eq!(job_ended(&mut since, &wire::Runner::default(), Duration::from_secs(6)), None);
    }
}
