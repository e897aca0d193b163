//! Agents that get no new runners.

use std::time::Duration;

use shoes_vz_proto::agent as wire;

use super::{CordonOrder, Event, Host, MINUTE, Policy, Refusal, Registration, WaiterId, World, ready};

#[test]
fn a_cordoned_agent_gets_no_new_runner_keeps_those_it_has_and_gets_them_again_when_uncordoned() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(2);
    let cloud_id = ready(&mut world, &mut host, "old");
    world.cordon(host.id, "new disk");
    let waiter = world.add("new");
    assert_eq!(world.view("new").pending_reason, "host is cordoned (new disk)");
    assert_eq!(world.creates(host.session).len(), 1);
    host.all(&mut world, wire::RunnerState::Running);
    assert_eq!(world.view("old").runner.unwrap().state(), wire::RunnerState::Running);
    world.delete(cloud_id);
    host.none(&mut world);
    assert_eq!(world.creates(host.session).len(), 1, "a free slot changes nothing");
    world.uncordon(host.id);
    assert_eq!(world.creates(host.session).len(), 2);
    host.all(&mut world, wire::RunnerState::SshReady);
    assert!(world.added[&waiter].is_ok());
}

#[test]
fn a_runner_is_placed_on_an_agent_that_is_not_cordoned_however_full() {
    let mut world = World::new(Policy::default());
    let (empty, full) = (world.agent(9), world.agent(1));
    world.cordon(empty.id, "");
    world.add("a");
    assert_eq!((world.creates(empty.session).len(), world.creates(full.session).len()), (0, 1));
}

#[test]
fn a_cordon_outlives_a_new_registration_and_a_reason_outlives_an_order_without_one() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(1);
    world.cordon(host.id, "new\ndisk ");
    world.pass(MINUTE);
    let view = world.order(&host.id.to_string(), CordonOrder::Cordon(String::new())).unwrap();
    let cordon = view.cordon.unwrap();
    assert_eq!((cordon.reason.as_str(), cordon.since.unwrap().seconds), ("new disk", 0));
    host.lose(&mut world);
    world.register(Some(host.id), 1, Some(wire::AgentInfo { protocol: 1, ..Default::default() }));
    host.connect(&mut world);
    world.add("a");
    assert_eq!(world.creates(host.session).len(), 0);
    let view = world.order(&host.id.to_string(), CordonOrder::Cordon("other".into())).unwrap();
    assert_eq!(view.cordon.unwrap().reason, "other");
}

#[test]
fn a_go_agents_successor_on_a_cordoned_host_is_cordoned() {
    let mut world = World::new(Policy::default());
    let id = world.register(None, 1, None);
    world.cordon(id, "");
    let id = world.register(None, 1, None);
    assert!(world.core.agent_view(id).unwrap().cordon.is_some());
}

#[test]
fn an_agent_offline_for_too_long_loses_its_runners_and_not_its_cordon() {
    let mut world = World::new(Policy { agent_forget: 60 * MINUTE, ..Policy::default() });
    let mut host = world.agent(1);
    ready(&mut world, &mut host, "a");
    world.cordon(host.id, "repair");
    host.lose(&mut world);
    world.pass(90 * MINUTE);
    assert_eq!(world.end_of("a").kind(), wire::EndKind::VmDied);
    let view = world.core.agent_view(host.id).unwrap();
    assert_eq!((view.cordon.unwrap().reason.as_str(), view.runners), ("repair", 0));
    world.uncordon(host.id);
    world.pass(20 * MINUTE);
    assert!(world.core.agent_view(host.id).is_none());
}

#[test]
fn an_agent_is_named_by_its_id_or_by_a_hostname_that_only_it_has() {
    let mut world = World::new(Policy::default());
    let register = |world: &mut World, hostname: &str| {
        let id = world.uuid().parse().unwrap();
        let registration = Registration {
            agent_id: Some(id),
            new_id: id,
            hostname: hostname.into(),
            capacity: wire::AgentCapacity::default(),
            info: None,
        };
        let waiter = WaiterId(world.number());
        world.on(Event::Register { waiter, registration: Box::new(registration) });
        id
    };
    let (mac, twin, other) =
        (register(&mut world, "mac-1"), register(&mut world, "mac-1"), register(&mut world, "mac-2"));
    let cordon = || CordonOrder::Cordon("test".into());
    assert_eq!(world.order("MAC-2", cordon()).unwrap().agent.unwrap().agent_id, other.to_string());
    let refusal = world.order("mac-1", cordon()).unwrap_err();
    let names_both = |t: &String| t.contains(&mac.to_string()) && t.contains(&twin.to_string());
    assert!(matches!(&refusal, Refusal::Ambiguous(t) if names_both(t)), "{refusal}");
    assert!(world.order(&twin.to_string(), cordon()).is_ok());
    assert!(matches!(world.order("mac-3", CordonOrder::Uncordon), Err(Refusal::NotFound(_))));
    assert!(matches!(world.order("", CordonOrder::Uncordon), Err(Refusal::Invalid(_))));
    let long = CordonOrder::Cordon("x".repeat(2000));
    assert!(matches!(world.order("mac-2", long), Err(Refusal::Invalid(t)) if t.contains("2000")));
}

#[test]
fn a_runner_whose_agent_is_offline_is_marked_as_such() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(1);
    ready(&mut world, &mut host, "a");
    world.add("b");
    assert_eq!(world.view("a").agent_status(), wire::AgentStatus::Online);
    assert_eq!(world.view("b").agent_status(), wire::AgentStatus::Unspecified);
    host.lose(&mut world);
    assert_eq!(world.view("a").agent_status(), wire::AgentStatus::Offline);
    world.pass(Duration::from_secs(1));
    host.connect(&mut world);
    host.none(&mut world);
    assert_eq!(world.view("a").agent_status(), wire::AgentStatus::Unspecified, "it has ended");
}

#[test]
fn a_drained_agent_that_is_offline_still_counts_its_runners() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(1);
    ready(&mut world, &mut host, "a");
    host.lose(&mut world);
    world.cordon(host.id, "");
    assert_eq!(world.core.agent_view(host.id).unwrap().runners, 1);
    let mut back = Host::new(host.id);
    back.connect(&mut world);
    assert_eq!(world.core.agent_view(back.id).unwrap().runners, 0);
}
