//! Agents that cannot take a runner now, though another agent may.

use shoes_vz_proto::agent as wire;

use super::{Host, Policy, SessionId, World, Write, ready};

/// The names of an agent's creates, in order.
fn created(world: &World, session: SessionId) -> Vec<String> {
    world.creates(session).into_iter().map(|c| c.runner_name).collect()
}

fn scripts_kept(world: &World) -> usize {
    let count = |wanted: fn(&Write) -> bool| world.writes.iter().filter(|w| wanted(w)).count();
    count(|w| matches!(w, Write::Script(..))) - count(|w| matches!(w, Write::ForgetScript(_)))
}

/// Reports, with the agent's next message, why it accepts no runners.
fn report(world: &mut World, host: &mut Host, unschedulable_reason: &str) {
    host.unschedulable_reason = unschedulable_reason.into();
    host.sync(world);
}

#[test]
fn an_agent_that_reports_that_it_accepts_no_runners_gets_none_until_it_accepts_them_again() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(1);
    report(&mut world, &mut host, "its disk\nis full ");
    world.add("a");
    assert_eq!(world.view("a").pending_reason, "host takes no runners for now: its disk is full");
    assert_eq!(world.core.agent_view(host.id).unwrap().unschedulable_reason, "its disk is full");
    report(&mut world, &mut host, "");
    assert_eq!(created(&world, host.session), ["a"]);
}

#[test]
fn an_agents_report_about_itself_is_forgotten_with_its_stream() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(1);
    report(&mut world, &mut host, "its disk is full");
    host.lose(&mut world);
    world.add("a");
    assert_eq!(world.view("a").pending_reason, "host is offline");
    assert_eq!(world.core.agent_view(host.id).unwrap().unschedulable_reason, "");
    host.unschedulable_reason.clear();
    host.connect(&mut world);
    assert_eq!(created(&world, host.session), ["a"]);
}

#[test]
fn pain_07_a_runner_that_one_agent_cannot_take_is_started_by_another_for_the_same_caller() {
    let mut world = World::new(Policy::default());
    let first = world.agent(9);
    let mut second = world.agent(1);
    let waiter = world.add("a");
    first.refuse(&mut world, "its disk is full");
    assert_eq!((created(&world, first.session).len(), created(&world, second.session).len()), (1, 1));
    assert_eq!(world.creates(second.session)[0].setup_script, "secret");
    assert_eq!(scripts_kept(&world), 1);
    assert!(!world.added.contains_key(&waiter));
    second.all(&mut world, wire::RunnerState::SshReady);
    assert!(world.added[&waiter].is_ok());
    assert_eq!(scripts_kept(&world), 0);
}

#[test]
fn pain_14_a_runner_that_every_agent_refused_waits_with_their_reasons_and_its_script() {
    let mut world = World::new(Policy::default());
    let (one, two) = (world.agent(2), world.agent(1));
    let waiter = world.add("a");
    one.refuse(&mut world, "no memory\nleft");
    two.refuse(&mut world, "no disk left");
    let reason = world.view("a").pending_reason;
    assert!(
        reason.contains("host refused it: no memory left") && reason.contains("refused it: no disk left"),
        "{reason}"
    );
    assert!(!world.added.contains_key(&waiter));
    assert_eq!(scripts_kept(&world), 1);
    let last = world.writes.iter().rev().find_map(|w| match w {
        Write::Runner(r) => Some(matches!(r.phase, crate::fleet::runner::Phase::Queued(_))),
        _ => None,
    });
    assert_eq!(last, Some(true), "the requeue is durable");
    let cloud_id = world.cloud_id("a");
    let deleted = world.delete(cloud_id);
    assert_eq!(world.deleted[&deleted], Ok(()), "it has no VM");
    assert!(world.added[&waiter].is_err());
}

#[test]
fn an_agent_is_not_asked_again_before_it_reports_something_new_and_then_with_a_new_command() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(2);
    ready(&mut world, &mut host, "old");
    let waiter = world.add("a");
    host.refuse(&mut world, "no memory left");
    for _ in 0..3 {
        host.sync(&mut world);
    }
    assert_eq!(created(&world, host.session), ["old", "a"], "nothing has changed");
    let before = world.sent.last().unwrap().1.command_id.clone();
    host.none(&mut world);
    assert_eq!(created(&world, host.session), ["old", "a", "a"], "one of its runners has ended");
    assert_ne!(world.sent.last().unwrap().1.command_id, before, "or the agent would repeat its answer");

    // Its answer to the first command does not count for the second.
    let late = wire::CommandAck { command_id: before, error: "no".into(), try_elsewhere: false };
    host.ack(&mut world, vec![late]);
    assert!(!world.added.contains_key(&waiter));
    host.all(&mut world, wire::RunnerState::Running);
    assert!(world.added[&waiter].is_ok());
}

#[test]
fn the_removal_of_a_stray_runner_is_a_change_though_it_held_no_slot() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(2);
    let cloud_id = ready(&mut world, &mut host, "old");
    let stray = host.runners.clone();
    world.delete(cloud_id);
    host.none(&mut world);
    host.runners = stray;
    host.sync(&mut world);
    world.add("a");
    host.refuse(&mut world, "no memory left");
    host.none(&mut world);
    assert_eq!(created(&world, host.session), ["old", "a", "a"]);
}

#[test]
fn a_new_stream_of_an_agent_is_a_change() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(1);
    world.add("a");
    host.refuse(&mut world, "no memory left");
    host.connect(&mut world);
    assert_eq!(created(&world, host.session), ["a"]);
}

#[test]
fn a_refused_runner_returns_to_its_old_place() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(2);
    ready(&mut world, &mut host, "old");
    for name in ["a", "b", "c"] {
        world.add(name);
    }
    world.cordon(host.id, "");
    host.refuse(&mut world, "no memory left");
    let mut other = world.agent(1);
    for name in ["a", "b", "c"] {
        assert_eq!(created(&world, other.session).last().map(String::as_str), Some(name));
        other.all(&mut world, wire::RunnerState::SshReady);
        let cloud_id = world.cloud_id(name);
        world.delete(cloud_id);
        other.none(&mut world);
    }
}

#[test]
fn a_terminated_runner_that_is_refused_has_ended() {
    let mut world = World::new(Policy::default());
    let host = world.agent(1);
    world.add("a");
    let cloud_id = world.cloud_id("a");
    let deleted = world.delete(cloud_id);
    host.refuse(&mut world, "no memory left");
    assert_eq!(world.deleted[&deleted], Ok(()));
    assert_eq!(world.end_of("a").kind(), wire::EndKind::Deleted);
}
