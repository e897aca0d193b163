//! Requests for a name whose job has run.

use shoes_vz_model::RunnerId;

use super::*;

/// The host's only runner runs a job and ends.
fn run_job_and_end(world: &mut World, host: &mut Host, kind: wire::EndKind) {
    host.runners[0].guest_runner_state = wire::GuestRunnerState::Running.into();
    host.all(world, wire::RunnerState::Running);
    end(world, host, kind);
}

fn end(world: &mut World, host: &mut Host, kind: wire::EndKind) {
    host.runners[0].guest_runner_state = wire::GuestRunnerState::Finished.into();
    host.runners[0].end = Some(wire::RunnerEnd { kind: kind.into(), ..Default::default() });
    host.sync(world);
    host.none(world);
}

fn refused(world: &World, waiter: WaiterId) -> String {
    match world.added.get(&waiter) {
        Some(Err(Refusal::Invalid(text))) => text.clone(),
        other => panic!("not refused for good: {other:?}"),
    }
}

#[test]
fn a_served_name_gets_no_second_vm_and_the_answer_says_which_runner_had_it_and_when() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(2);
    let first = world.add("a");
    host.all(&mut world, wire::RunnerState::SshReady);
    let runner = world.added[&first].clone().unwrap().runner_id.to_string();
    world.clock = 3 * MINUTE;
    run_job_and_end(&mut world, &mut host, wire::EndKind::Finished);
    let again = world.add("a");
    let text = refused(&world, again);
    for part in ["the name a has been served", &runner, "on host", "1970-01-01T00:03:00Z"] {
        assert!(text.contains(part), "{text}");
    }
    assert_eq!(world.creates(host.session).len(), 1);
    let other = world.add("b");
    host.all(&mut world, wire::RunnerState::SshReady);
    assert!(world.added[&other].is_ok());
}

#[test]
fn a_name_that_is_not_served_gets_a_new_vm_however_its_runner_ended() {
    for (kind, worked) in [
        (wire::EndKind::Finished, false),
        (wire::EndKind::Failed, true),
        (wire::EndKind::Deleted, true),
        (wire::EndKind::VmDied, true),
        (wire::EndKind::Expired, true),
    ] {
        let mut world = World::new(Policy::default());
        let mut host = world.agent(1);
        ready(&mut world, &mut host, "a");
        match worked {
            true => run_job_and_end(&mut world, &mut host, kind),
            false => end(&mut world, &mut host, kind),
        }
        world.add("a");
        assert_eq!(world.creates(host.session).len(), 2, "{kind:?}");
    }
}

#[test]
fn a_request_during_the_teardown_of_a_runner_that_served_its_name_is_refused_once_the_runner_has_ended() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(2);
    ready(&mut world, &mut host, "a");
    host.runners[0].guest_runner_state = wire::GuestRunnerState::Running.into();
    host.all(&mut world, wire::RunnerState::Running);
    host.all(&mut world, wire::RunnerState::TearingDown);
    let again = world.add("a");
    assert!(!world.added.contains_key(&again), "it may still turn out to have failed");
    end(&mut world, &mut host, wire::EndKind::Finished);
    assert!(refused(&world, again).contains("has been served"));
    assert_eq!(world.creates(host.session).len(), 1);
}

#[test]
fn a_job_that_only_the_agent_saw_counts_once_the_agent_reconnects() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(1);
    ready(&mut world, &mut host, "a");
    host.lose(&mut world);
    host.runners[0].job_seen = true;
    host.runners[0].end =
        Some(wire::RunnerEnd { kind: wire::EndKind::Finished.into(), ..Default::default() });
    host.connect(&mut world);
    let again = world.add("a");
    refused(&world, again);
}

#[test]
fn a_job_reported_for_an_unknown_runner_counts_too() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(1);
    host.runners.push(wire::Runner {
        runner_id: RunnerId::random().to_string(),
        runner_name: "a".into(),
        job: Some(wire::Job::default()),
        end: Some(wire::RunnerEnd { kind: wire::EndKind::Finished.into(), ..Default::default() }),
        ..Default::default()
    });
    host.sync(&mut world);
    let again = world.add("a");
    refused(&world, again);
}

#[test]
fn a_served_name_is_free_again_once_its_runner_is_forgotten() {
    let mut world = World::new(Policy { tombstones: 60 * MINUTE, ..Policy::default() });
    let mut host = world.agent(1);
    ready(&mut world, &mut host, "a");
    run_job_and_end(&mut world, &mut host, wire::EndKind::Finished);
    world.pass(90 * MINUTE);
    world.add("a");
    assert_eq!(world.creates(host.session).len(), 2);
}

/// The same state after a restart of the server.
fn restarted(world: &World) -> World {
    let mut rows = HashMap::new();
    for write in &world.writes {
        match write {
            Write::Runner(row) => {
                rows.insert(row.id, (**row).clone());
            }
            Write::RemoveRunner(id) => {
                rows.remove(id);
            }
            _ => {}
        }
    }
    let runners = rows.into_values().map(|r| crate::fleet::runner::Runner { live: Default::default(), ..r });
    let mut next = World::new(Policy::default());
    next.clock = world.clock;
    // The monotonic clock starts with the server.
    next.core = Core::restore(Policy::default(), vec![], runners.collect(), next.now());
    next
}

#[test]
fn a_restarted_server_knows_which_names_are_served() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(1);
    ready(&mut world, &mut host, "a");
    run_job_and_end(&mut world, &mut host, wire::EndKind::Finished);
    let mut world = restarted(&world);
    let again = world.add("a");
    refused(&world, again);
}

#[test]
fn the_time_in_the_queue_is_counted_from_the_request_also_by_a_restarted_server() {
    let mut world = World::new(Policy::default());
    world.add("a");
    world.clock = 10 * MINUTE;
    let mut world = restarted(&world);
    assert_eq!(world.view("a").queue_ms, 600_000);
    world.add("a");
    world.pass(MINUTE);
    assert_eq!(world.view("a").queue_ms, 660_000);
    let host = world.agent(1);
    assert_eq!(world.creates(host.session).len(), 1);
    world.pass(MINUTE);
    assert_eq!(world.view("a").queue_ms, 660_000, "it has a slot and no longer waits");
}
