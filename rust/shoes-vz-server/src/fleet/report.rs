//! An agent's report of a runner: kept within bounds, never backward, and what is new in it.

use std::time::Duration;

use shoes_vz_model::{AgentId, ResourceType, RunnerId, RunnerName, State, text};
use shoes_vz_proto::{agent as wire, convert};

use super::{
    runner::{Delivery, Live, Phase, Placed, Runner},
    types::{Now, Observation, Shape},
};

/// Longest text taken from an agent, in bytes.
const MAX_TEXT: usize = 8 << 10;

/// Longest address: what myshoes' table holds.
const MAX_ADDRESS: usize = 255;

/// A text within bounds; its end is kept, since that is where logs say why.
pub fn bounded_text(told: &str) -> String {
    text::tail(told.as_bytes(), usize::MAX, MAX_TEXT)
}

/// An agent's words as part of a line.
pub fn one_line(told: &str) -> String {
    text::tail(told.as_bytes(), usize::MAX, 1 << 10).replace(char::is_control, " ").trim().to_owned()
}

/// The report with every text within bounds.
pub fn bounded(mut told: wire::Runner) -> wire::Runner {
    let long = |t: &mut String, max: usize| {
        if t.len() > max {
            *t = text::tail(t.as_bytes(), usize::MAX, max);
        }
    };
    long(&mut told.error_message, MAX_TEXT);
    long(&mut told.ip_address, MAX_ADDRESS);
    if let Some(setup) = &mut told.setup {
        long(&mut setup.log_tail, MAX_TEXT);
    }
    if let Some(end) = &mut told.end {
        long(&mut end.reason, MAX_TEXT);
    }
    told.stages.truncate(32);
    told
}

/// `told` as the successor of `last`: a state that is unknown or goes backward is not taken over.
pub fn follow(last: Option<&wire::Runner>, mut told: wire::Runner) -> wire::Runner {
    let before = last.and_then(|r| convert::state_from_wire(r.state)).unwrap_or(State::Creating);
    let kept = match convert::state_from_wire(told.state) {
        Some(next) if before.may_become(next) => next,
        _ => before,
    };
    told.state = wire::RunnerState::from(kept).into();
    // How it came to be ready does not change, and is not unlearned.
    if told.start_path == 0 {
        told.start_path = last.map_or(0, |r| r.start_path);
    }
    // Nor is it unlearned that a job was seen.
    told.job_seen = shows_a_job(&told) || last.is_some_and(shows_a_job);
    told
}

/// Whether a job was seen running, as far as this report goes. A Go agent, and reports stored by earlier versions, say so
/// only by the guest's state or by the job itself.
pub fn shows_a_job(told: &wire::Runner) -> bool {
    told.job_seen || told.job.is_some() || told.guest_runner_state() == wire::GuestRunnerState::Running
}

/// Stages that are over now and were not before.
pub fn new_stages(last: Option<&wire::Runner>, told: &wire::Runner) -> Vec<Observation> {
    let known = |stage: i32| last.is_some_and(|r| r.stages.iter().any(|t| t.stage == stage));
    let fresh = told.stages.iter().filter(|t| !known(t.stage));
    fresh
        .filter_map(|t| {
            let stage = convert::stage_from_wire(t.stage)?;
            Some(Observation::Stage(stage, Duration::from_micros(t.duration_us)))
        })
        .collect()
}

/// Follows whether a job runs; gives its duration once it is over.
pub fn job_over(
    busy_since: &mut Option<Duration>,
    told: &wire::Runner,
    now: Duration,
) -> Option<Observation> {
    if told.guest_runner_state() == wire::GuestRunnerState::Running {
        busy_since.get_or_insert(now);
        return None;
    }
    busy_since.take().map(|since| Observation::Job(now.saturating_sub(since)))
}

/// A runner made from nothing but its agent's report. Somebody is taken to have it, so it stays until it is deleted.
pub fn adopted(agent: AgentId, id: RunnerId, told: &wire::Runner, now: Now) -> Option<Runner> {
    // The runner's id is as unique as any.
    let cloud_id = told.cloud_id.parse().or_else(|_| format!("shoes-vz-{id}").parse()).ok()?;
    let name = RunnerName::recorded(&told.runner_name).or_else(|_| format!("adopted-{id}").parse()).ok()?;
    let created = told.created_at.as_ref().and_then(convert::time_from_wire);
    Some(Runner {
        id,
        cloud_id,
        name,
        // Agents do not tell; it only shows in lists.
        resource_type: ResourceType::Nano,
        shape: Shape::default(),
        template: String::new(),
        labels: Vec::new(),
        request_id: String::new(),
        requested_at: created.unwrap_or(now.wall),
        refusals: 0,
        claims: 1,
        phase: Phase::Placed(Placed {
            agent,
            template: String::new(),
            queued_for: Duration::ZERO,
            delivery: Delivery::Done,
            report: None,
            doom: None,
        }),
        live: Live { began: now.mono, found: true, ..Live::default() },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_state(state: wire::RunnerState) -> wire::Runner {
        wire::Runner { state: state.into(), ..Default::default() }
    }

    #[test]
    fn fault_14_a_report_never_leads_backward_or_to_a_state_nobody_knows() {
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
        let told =
            wire::Runner { error_message: format!("{}end", "x".repeat(1 << 20)), ..Default::default() };
        let kept = bounded(told).error_message;
        assert!(kept.len() <= MAX_TEXT && kept.ends_with("end"));
    }

    #[test]
    fn fault_23_a_stage_and_a_job_are_each_counted_once() {
        let stage =
            wire::StageTiming { stage: wire::RunnerStage::Clone.into(), duration_us: 1500, started_at: None };
        let told = wire::Runner { stages: vec![stage], ..Default::default() };
        assert_eq!(new_stages(None, &told).len(), 1);
        assert_eq!(new_stages(Some(&told), &told), []);

        let mut since = None;
        let busy =
            wire::Runner { guest_runner_state: wire::GuestRunnerState::Running.into(), ..Default::default() };
        assert_eq!(job_over(&mut since, &busy, Duration::from_secs(1)), None);
        assert_eq!(job_over(&mut since, &busy, Duration::from_secs(2)), None);
        let over = job_over(&mut since, &wire::Runner::default(), Duration::from_secs(5));
        assert_eq!(over, Some(Observation::Job(Duration::from_secs(4))));
        assert_eq!(job_over(&mut since, &wire::Runner::default(), Duration::from_secs(6)), None);
    }
}
