//! Random histories against the invariants.

use std::{collections::BTreeSet, time::Duration};

use proptest::prelude::*;
use shoes_vz_model::AgentId;
use shoes_vz_proto::agent::{self as wire, sync_response::Command};

use super::{Event, Host, MINUTE, Policy, WaiterId, World};

/// One step of a random history.
#[derive(Debug, Clone)]
enum Step {
    Add(u8),
    Disconnect(u8),
    Undelivered(u8),
    Delete(u8),
    Pass(u16),
    Connect(u8),
    Lose(u8),
    /// The agent carries out its commands and reports; the runner it picks advances.
    Work(u8, u8, u8),
    Forget(u8),
    RefuseCreate(u8),
    /// As [`Step::RefuseCreate`], but another agent may take the runner.
    RefuseForNow(u8),
    Cordon(u8),
    Uncordon(u8),
    Unschedulable(u8),
    Schedulable(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0u8..6).prop_map(Step::Add),
        2 => any::<u8>().prop_map(Step::Disconnect),
        1 => any::<u8>().prop_map(Step::Undelivered),
        2 => any::<u8>().prop_map(Step::Delete),
        2 => (0u16..400).prop_map(Step::Pass),
        1 => (0u8..3).prop_map(Step::Connect),
        1 => (0u8..3).prop_map(Step::Lose),
        6 => (0u8..3, any::<u8>(), 1u8..7).prop_map(|(a, r, s)| Step::Work(a, r, s)),
        1 => (0u8..3).prop_map(Step::Forget),
        1 => (0u8..3).prop_map(Step::RefuseCreate),
        2 => (0u8..3).prop_map(Step::RefuseForNow),
        1 => (0u8..3).prop_map(Step::Unschedulable),
        1 => (0u8..3).prop_map(Step::Schedulable),
        1 => (0u8..3).prop_map(Step::Cordon),
        1 => (0u8..3).prop_map(Step::Uncordon),
    ];
    proptest::collection::vec(step, 1..120)
}

/// Carries out everything that was sent on the host's current stream.
fn carry_out(world: &mut World, host: &mut Host, from: usize) -> Vec<wire::CommandAck> {
    let mut acks = vec![];
    for (session, response) in world.sent[from..].iter().cloned() {
        if session != host.session {
            continue;
        }
        match response.command {
            Some(Command::CreateRunner(create)) => {
                let known = host.refused.contains(&response.command_id)
                    || host.runners.iter().any(|r| r.runner_id == create.runner_id);
                if !known {
                    host.runners.push(wire::Runner {
                        runner_id: create.runner_id,
                        runner_name: create.runner_name,
                        cloud_id: create.cloud_id,
                        state: 1,
                        ..Default::default()
                    });
                }
            }
            Some(Command::DeleteRunner(delete)) => host.runners.retain(|r| r.runner_id != delete.runner_id),
            _ => continue,
        }
        acks.push(wire::CommandAck { command_id: response.command_id, ..Default::default() });
    }
    acks
}

/// Refuses the last command that came since `from`.
fn refuse_last(world: &mut World, host: &mut Host, from: usize, try_elsewhere: bool) {
    let last = world.sent[from..].iter().rev().find(|(s, _)| *s == host.session).cloned();
    let Some((_, response)) = last.filter(|_| host.online) else { return };
    if matches!(response.command, Some(Command::CreateRunner(_))) {
        host.refused.push(response.command_id.clone());
    }
    let ack = wire::CommandAck { command_id: response.command_id, error: "no".into(), try_elsewhere };
    host.ack(world, vec![ack]);
}

/// Whether the host's stream is open.
fn is_open(world: &World, host: &Host) -> bool {
    world.closed.iter().all(|(session, _)| *session != host.session)
}

/// Ids of the runners placed on an agent.
fn runners_on(world: &World, agent: AgentId) -> BTreeSet<String> {
    let runners = world.core.snapshot(false, world.now()).runners.into_iter().filter_map(|v| v.runner);
    runners.filter(|r| r.agent_id == agent.to_string()).map(|r| r.runner_id).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    /// Whatever happens, the invariants hold after each event (`World::perform`), no agent ever has more runners than slots
    /// or two VMs of one name, and in the end every call is answered and every host is empty.
    #[test]
    fn random_histories_keep_every_promise(steps in steps()) {
        let mut world = World::new(Policy::default());
        let mut hosts: Vec<Host> = (0..3).map(|_| world.agent(2)).collect();
        let mut done = [0usize; 3];
        let mut waiters: Vec<WaiterId> = vec![];
        let mut delete_waiters: Vec<WaiterId> = vec![];
        let mut disconnected: Vec<WaiterId> = vec![];
        // For each host that gets no new runners, those it had by then.
        let mut cordoned: [Option<BTreeSet<String>>; 3] = [None, None, None];
        let mut unschedulable: [Option<BTreeSet<String>>; 3] = [None, None, None];
        for step in steps {
            match step {
                Step::Add(n) => waiters.push(world.add(&format!("r{n}"))),
                Step::Disconnect(n) if !waiters.is_empty() => {
                    let waiter = waiters[usize::from(n) % waiters.len()];
                    if !world.added.contains_key(&waiter) {
                        disconnected.push(waiter);
                    }
                    world.on(Event::CallerDisconnected { waiter });
                }
                Step::Undelivered(n) => {
                    let answered: Vec<_> = world.added.values().flatten().map(|a| a.runner_id).collect();
                    if !answered.is_empty() {
                        world.on(Event::Undelivered { runner: answered[usize::from(n) % answered.len()] });
                    }
                }
                Step::Delete(n) => {
                    let views = world.core.snapshot(true, world.now()).runners;
                    if !views.is_empty() {
                        let cloud_id = views[usize::from(n) % views.len()].cloud_id.parse().unwrap();
                        delete_waiters.push(world.delete(cloud_id));
                    }
                }
                Step::Pass(seconds) => world.pass(Duration::from_secs(seconds.into())),
                Step::Connect(a) => {
                    let host = &mut hosts[usize::from(a)];
                    host.connect(&mut world);
                    done[usize::from(a)] = 0;
                }
                Step::Lose(a) => hosts[usize::from(a)].lose(&mut world),
                Step::Work(a, pick, state) => {
                    let at = usize::from(a);
                    let from = std::mem::replace(&mut done[at], world.sent.len());
                    let acks = carry_out(&mut world, &mut hosts[at], from);
                    let count = hosts[at].runners.len();
                    if count > 0 {
                        let runner = &mut hosts[at].runners[usize::from(pick) % count];
                        runner.state = runner.state.max(state.into());
                    }
                    if is_open(&world, &hosts[at]) {
                        hosts[at].ack(&mut world, acks);
                    }
                }
                Step::Forget(a) => {
                    hosts[usize::from(a)].runners.clear();
                    hosts[usize::from(a)].sync(&mut world);
                }
                Step::RefuseCreate(a) => refuse_last(&mut world, &mut hosts[usize::from(a)], done[usize::from(a)], false),
                Step::RefuseForNow(a) => refuse_last(&mut world, &mut hosts[usize::from(a)], done[usize::from(a)], true),
                Step::Cordon(a) => {
                    let at = usize::from(a);
                    world.cordon(hosts[at].id, "");
                    cordoned[at].get_or_insert(runners_on(&world, hosts[at].id));
                }
                Step::Uncordon(a) => {
                    cordoned[usize::from(a)] = None;
                    world.uncordon(hosts[usize::from(a)].id);
                }
                Step::Unschedulable(a) => {
                    let at = usize::from(a);
                    hosts[at].unschedulable_reason = "its disk is full".into();
                    if hosts[at].online && is_open(&world, &hosts[at]) {
                        hosts[at].sync(&mut world);
                        unschedulable[at].get_or_insert(runners_on(&world, hosts[at].id));
                    }
                }
                Step::Schedulable(a) => {
                    let at = usize::from(a);
                    unschedulable[at] = None;
                    hosts[at].unschedulable_reason.clear();
                    if is_open(&world, &hosts[at]) {
                        hosts[at].sync(&mut world);
                    }
                }
                Step::Disconnect(_) => {}
            }
            for at in 0..hosts.len() {
                for had in cordoned[at].iter().chain(&unschedulable[at]) {
                    let has = runners_on(&world, hosts[at].id);
                    prop_assert!(has.is_subset(had), "an agent that accepts no new runner got one");
                }
            }
            let mut names: Vec<&str> = hosts.iter().flat_map(|h| &h.runners).map(|r| r.runner_name.as_str()).collect();
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            prop_assert_eq!(names.len(), all, "two VMs have one name");
            prop_assert!(hosts.iter().all(|h| h.runners.len() <= 2), "an agent has more than its slots");
        }
        // In the end every runner is deleted, every host carries out its commands, and time passes.
        let mut last = vec![];
        for view in world.core.snapshot(false, world.now()).runners {
            last.push(world.delete(view.cloud_id.parse().unwrap()));
        }
        for host in &mut hosts {
            host.unschedulable_reason.clear();
            host.connect(&mut world);
            world.uncordon(host.id);
        }
        for round in 0..4 {
            for (at, host) in hosts.iter_mut().enumerate() {
                let from = if round == 0 { 0 } else { done[at] };
                done[at] = world.sent.len();
                let acks = carry_out(&mut world, host, from);
                host.ack(&mut world, acks);
            }
        }
        world.pass(10 * MINUTE);
        for waiter in waiters.iter().filter(|w| !disconnected.contains(w)) {
            prop_assert!(world.added.contains_key(waiter), "an AddInstance was never answered");
        }
        for waiter in delete_waiters {
            prop_assert!(world.deleted.contains_key(&waiter), "a DeleteInstance was never answered");
        }
        for waiter in last {
            prop_assert_eq!(world.deleted.get(&waiter), Some(&Ok(())));
        }
        prop_assert!(hosts.iter().all(|h| h.runners.is_empty()), "a VM was left behind");
        prop_assert_eq!(world.core.snapshot(false, world.now()).runners.len(), 0);
    }

    /// With one agent and one slot, those who wait are served in the order they came.
    #[test]
    fn the_queue_is_first_come_first_served(count in 2usize..12) {
        let mut world = World::new(Policy::default());
        let mut host = world.agent(1);
        for n in 0..count {
            world.add(&format!("r{n}"));
        }
        for _ in 0..count {
            host.all(&mut world, wire::RunnerState::SshReady);
            let cloud_id = world.cloud_id(&world.creates(host.session).last().unwrap().runner_name);
            world.delete(cloud_id);
            host.none(&mut world);
        }
        let order: Vec<String> = world.creates(host.session).into_iter().map(|c| c.runner_name).collect();
        prop_assert_eq!(order, (0..count).map(|n| format!("r{n}")).collect::<Vec<_>>());
    }
}
