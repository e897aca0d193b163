//! Tests of the core alone: single rules here and in the other modules, random histories against the invariants in
//! [`histories`].

mod cordon;
mod histories;
mod requeue;
mod requirements;
mod served_names;

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use shoes_vz_model::{AgentId, CloudId, ResourceType};
use shoes_vz_proto::{
    agent::{self as wire, sync_response::Command},
    fleet::AgentView,
};

use crate::{
    fleet::{
        core::{Core, Policy},
        event::{AddRequest, Closed, CordonOrder, Decision, Effect, Event, Refusal, Registration, Write},
        runner::Added,
        values::{NewIds, Now, Script, SessionId, WaiterId},
    },
    metrics::Metrics,
};

const MINUTE: Duration = Duration::from_secs(60);

/// A core, and every effect and write of it so far.
struct World {
    core: Core,
    clock: Duration,
    next: u64,
    added: HashMap<WaiterId, Result<Added, Refusal>>,
    deleted: HashMap<WaiterId, Result<(), Refusal>>,
    cordoned: HashMap<WaiterId, Result<AgentView, Refusal>>,
    sent: Vec<(SessionId, wire::SyncResponse)>,
    closed: Vec<(SessionId, Closed)>,
    writes: Vec<Write>,
}

impl World {
    fn new(policy: Policy) -> Self {
        let now = Now { mono: Duration::ZERO, wall: Timestamp::UNIX_EPOCH };
        Self {
            core: Core::restore(policy, vec![], vec![], now),
            clock: Duration::ZERO,
            next: 0,
            added: HashMap::new(),
            deleted: HashMap::new(),
            cordoned: HashMap::new(),
            sent: vec![],
            closed: vec![],
            writes: vec![],
        }
    }

    fn now(&self) -> Now {
        let wall = Timestamp::UNIX_EPOCH + jiff::SignedDuration::try_from(self.clock).unwrap();
        Now { mono: self.clock, wall }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Counted rather than random, so that a failing history is reproducible.
    fn uuid(&mut self) -> String {
        format!("00000000-0000-4000-8000-{:012x}", self.number())
    }

    fn perform(&mut self, decision: Decision) {
        self.writes.extend(decision.writes);
        for effect in decision.effects {
            match effect {
                Effect::Added(w, a) => assert!(self.added.insert(w, a).is_none(), "answered twice"),
                Effect::Deleted(w, a) => {
                    assert!(self.deleted.insert(w, a.map(drop)).is_none(), "answered twice");
                }
                Effect::Cordoned(w, a) => {
                    assert!(self.cordoned.insert(w, a.map(|v| *v)).is_none(), "answered twice");
                }
                Effect::Send(s, c) => self.sent.push((s, *c)),
                Effect::Close(s, reason) => self.closed.push((s, reason)),
                Effect::Registered(..) | Effect::Observe(_) => {}
            }
        }
        assert_eq!(self.core.broken_invariant(), None);
    }

    fn on(&mut self, event: Event) {
        let decision = self.core.handle(event, self.now());
        self.perform(decision);
    }

    fn pass(&mut self, time: Duration) {
        self.clock += time;
        let decision = self.core.on_time(self.now());
        self.perform(decision);
    }

    fn add(&mut self, name: &str) -> WaiterId {
        self.add_labelled(name, &[])
    }

    fn add_labelled(&mut self, name: &str, labels: &[&str]) -> WaiterId {
        let waiter = WaiterId(self.number());
        let new_ids = NewIds {
            runner: self.uuid().parse().unwrap(),
            cloud: format!("shoes-vz-{}", self.uuid()).parse().unwrap(),
        };
        let request = AddRequest {
            name: name.parse().unwrap(),
            script: Script::new("secret"),
            resource_type: ResourceType::Nano,
            labels: labels.iter().map(|l| (*l).into()).collect(),
            request_id: String::new(),
        };
        self.on(Event::Add { waiter, request, timeout: 5 * MINUTE, new_ids });
        waiter
    }

    fn delete(&mut self, cloud_id: CloudId) -> WaiterId {
        let waiter = WaiterId(self.number());
        self.on(Event::Delete { waiter, cloud_id, timeout: 2 * MINUTE });
        waiter
    }

    fn order(&mut self, agent: &str, order: CordonOrder) -> Result<AgentView, Refusal> {
        let waiter = WaiterId(self.number());
        self.on(Event::Cordon { waiter, agent: agent.into(), order });
        self.cordoned.remove(&waiter).expect("an order is answered at once")
    }

    fn cordon(&mut self, agent: AgentId, reason: &str) {
        self.order(&agent.to_string(), CordonOrder::Cordon(reason.into())).unwrap();
    }

    fn uncordon(&mut self, agent: AgentId) {
        self.order(&agent.to_string(), CordonOrder::Uncordon).unwrap();
    }

    fn agent(&mut self, slots: u32) -> Host {
        let id = self.uuid().parse().unwrap();
        self.register(Some(id), slots, Some(wire::AgentInfo { protocol: 1, ..Default::default() }));
        let mut host = Host::new(id);
        host.connect(self);
        host
    }

    fn register(&mut self, agent_id: Option<AgentId>, slots: u32, info: Option<wire::AgentInfo>) -> AgentId {
        let (waiter, new_id) = (WaiterId(self.number()), self.uuid().parse().unwrap());
        let capacity = wire::AgentCapacity { max_runners: slots, ..Default::default() };
        let registration = Registration { agent_id, new_id, hostname: "host".into(), capacity, info };
        self.on(Event::Register { waiter, registration: Box::new(registration) });
        agent_id.unwrap_or(new_id)
    }

    fn creates(&self, session: SessionId) -> Vec<wire::CreateRunnerCommand> {
        self.commands(session)
            .filter_map(|c| match c {
                Command::CreateRunner(c) => Some(c.clone()),
                _ => None,
            })
            .collect()
    }

    fn deletes(&self, session: SessionId) -> usize {
        self.commands(session).filter(|c| matches!(c, Command::DeleteRunner(_))).count()
    }

    fn commands(&self, session: SessionId) -> impl Iterator<Item = &Command> {
        self.sent.iter().filter(move |(s, _)| *s == session).filter_map(|(_, c)| c.command.as_ref())
    }

    fn cloud_id(&self, name: &str) -> CloudId {
        let id = self.core.find_by_name(&name.parse().unwrap()).unwrap();
        self.core.view(id, self.now()).unwrap().cloud_id.parse().unwrap()
    }

    fn view(&self, name: &str) -> shoes_vz_proto::fleet::RunnerView {
        let id = self.core.find_by_name(&name.parse().unwrap()).unwrap();
        self.core.view(id, self.now()).unwrap()
    }

    fn end_of(&self, name: &str) -> wire::RunnerEnd {
        self.view(name).runner.unwrap().end.unwrap()
    }
}

/// An agent played by the test.
struct Host {
    id: AgentId,
    session: SessionId,
    runners: Vec<wire::Runner>,
    /// Command ids of the creates it refused.
    refused: Vec<String>,
    unschedulable_reason: String,
    online: bool,
}

impl Host {
    /// Registered, and not connected yet.
    fn new(id: AgentId) -> Self {
        Self {
            id,
            session: SessionId(0),
            runners: vec![],
            refused: vec![],
            unschedulable_reason: String::new(),
            online: false,
        }
    }

    /// Refuses the last create sent to it, so that another agent may take the runner.
    fn refuse(&self, world: &mut World, error: &str) {
        let mut sent = world.sent.iter().rev().filter(|(s, _)| *s == self.session);
        let create = sent.find(|(_, c)| matches!(c.command, Some(Command::CreateRunner(_))));
        let command_id = create.expect("a create was sent").1.command_id.clone();
        self.ack(world, vec![wire::CommandAck { command_id, error: error.into(), try_elsewhere: true }]);
    }

    fn connect(&mut self, world: &mut World) {
        self.online = true;
        self.session = SessionId(world.number());
        self.sync(world);
    }

    fn sync(&self, world: &mut World) {
        self.ack(world, vec![]);
    }

    fn ack(&self, world: &mut World, acks: Vec<wire::CommandAck>) {
        if !self.online {
            return;
        }
        let request = wire::SyncRequest {
            agent_id: self.id.to_string(),
            active_runners: 0,
            runners: self.runners.clone(),
            acks,
            unschedulable_reason: self.unschedulable_reason.clone(),
            ..wire::SyncRequest::default()
        };
        world.on(Event::Synced { session: self.session, agent: self.id, request: Box::new(request) });
    }

    fn lose(&mut self, world: &mut World) {
        self.online = false;
        world.on(Event::SessionLost { session: self.session, reason: "test".into() });
    }

    /// Has every runner of its creates, in this state.
    fn all(&mut self, world: &mut World, state: wire::RunnerState) {
        for create in world.creates(self.session) {
            if !self.runners.iter().any(|r| r.runner_id == create.runner_id) {
                self.runners.push(wire::Runner {
                    runner_id: create.runner_id,
                    runner_name: create.runner_name,
                    cloud_id: create.cloud_id,
                    ..Default::default()
                });
            }
        }
        for runner in &mut self.runners {
            runner.state = state.into();
        }
        self.sync(world);
    }

    fn none(&mut self, world: &mut World) {
        self.runners.clear();
        self.sync(world);
    }
}

fn ready(world: &mut World, host: &mut Host, name: &str) -> CloudId {
    let waiter = world.add(name);
    host.all(world, wire::RunnerState::SshReady);
    world.added[&waiter].clone().unwrap().cloud_id
}

#[test]
fn fault_03_agents_that_come_back_under_new_ids_leave_no_agent_no_series_and_no_load_behind() {
    let mut world = World::new(Policy::default());
    for _ in 0..3 {
        let mut host = Host::new(world.register(None, 1, None));
        host.connect(&mut world);
        world.add("a");
        host.sync(&mut world);
        host.all(&mut world, wire::RunnerState::SshReady);
        host.lose(&mut world);
    }
    let fleet = world.core.snapshot(false, world.now());
    assert_eq!((fleet.agents.len(), fleet.runners.len()), (1, 1), "{fleet:#?}");
    let text = String::from_utf8(Metrics::new().unwrap().render(&fleet).unwrap()).unwrap();
    for (series, lines) in [("shoesvz_agents_capacity_runners{", 1), ("shoesvz_agents_current_runners{", 1)] {
        assert_eq!(text.lines().filter(|l| l.starts_with(series)).count(), lines, "{text}");
    }
    assert!(text.lines().any(|l| l == "shoesvz_capacity_utilization_ratio 0"), "it is offline: {text}");
}

#[test]
fn fault_04_a_delete_before_the_agents_first_report_of_the_runner_reaches_the_agent() {
    let mut world = World::new(Policy::default());
    let host = world.agent(1);
    let added = world.add("a");
    let cloud_id = world.cloud_id("a");
    let deleted = world.delete(cloud_id);
    assert_eq!(world.deletes(host.session), 1);
    assert!(!world.deleted.contains_key(&deleted), "it may exist, so it is not deleted yet");
    assert!(world.added[&added].is_err());
    let acks = world
        .sent
        .iter()
        .map(|(_, c)| wire::CommandAck { command_id: c.command_id.clone(), ..Default::default() });
    let acks = acks.collect();
    host.ack(&mut world, acks);
    assert_eq!(
        world.deleted[&deleted],
        Ok(()),
        "the agent acknowledged both commands and lists no such runner"
    );
    let again = world.delete(cloud_id);
    assert_eq!(world.deleted[&again], Ok(()));
}

#[test]
fn fault_08_each_answer_is_an_effect_of_the_very_report_it_waits_for() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(1);
    let added = world.add("a");
    host.all(&mut world, wire::RunnerState::Booting);
    assert!(!world.added.contains_key(&added));
    host.all(&mut world, wire::RunnerState::SshReady);
    let cloud_id = world.added[&added].clone().unwrap().cloud_id;
    let deleted = world.delete(cloud_id);
    host.all(&mut world, wire::RunnerState::TearingDown);
    assert!(!world.deleted.contains_key(&deleted));
    let waiting = world.add("b");
    assert_eq!(world.creates(host.session).len(), 1);
    host.none(&mut world);
    assert_eq!(world.deleted[&deleted], Ok(()));
    assert_eq!(world.creates(host.session).len(), 2, "the slot goes to the next runner in the queue");
    host.all(&mut world, wire::RunnerState::SshReady);
    assert!(world.added[&waiting].is_ok());
    assert_eq!(world.clock, Duration::ZERO, "no time has passed, and no timer has run");
}

#[test]
fn fault_09_a_fast_guest_that_passes_ssh_ready_between_two_reports_is_ready() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(1);
    let waiter = world.add("a");
    host.all(&mut world, wire::RunnerState::Running);
    assert!(world.added[&waiter].is_ok());
}

#[test]
fn fault_09_a_guest_whose_job_ends_between_two_reports_was_ready_and_its_job_is_not_run_again() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(1);
    let waiter = world.add("a");
    host.all(&mut world, wire::RunnerState::Booting);
    host.runners[0].end =
        Some(wire::RunnerEnd { kind: wire::EndKind::Finished.into(), ..Default::default() });
    host.all(&mut world, wire::RunnerState::TearingDown);
    assert!(world.added[&waiter].is_ok());
    assert_eq!(world.end_of("a").kind(), wire::EndKind::Finished);
}

#[test]
fn fault_10_a_placed_runner_holds_its_slot_before_the_agent_reports_it() {
    let mut world = World::new(Policy::default());
    let host = world.agent(2);
    for name in ["a", "b", "c"] {
        world.add(name);
    }
    assert_eq!(world.creates(host.session).len(), 2);
    assert_eq!(world.view("c").pending_reason, "host is full (all 2 slots in use)");
}

#[test]
fn pain_07_a_runner_whose_labels_no_free_agent_offers_does_not_hold_up_those_behind_it() {
    let mut world = World::new(Policy::default());
    let info = |label: &str| {
        let template = wire::TemplateInfo { labels: vec![label.into()], ..Default::default() };
        wire::AgentInfo { protocol: 1, templates: vec![template], ..Default::default() }
    };
    let away = world.register(Some(AgentId::random()), 1, Some(info("rare")));
    let here = world.register(Some(AgentId::random()), 1, Some(info("usual")));
    world.add_labelled("first", &["rare"]);
    world.add_labelled("second", &["usual"]);
    let mut host = Host::new(here);
    host.connect(&mut world);
    let made = world.creates(host.session);
    assert_eq!(made.iter().map(|c| c.runner_name.as_str()).collect::<Vec<_>>(), ["second"]);
    assert!(world.view("first").pending_reason.contains("is offline"));
    let mut late = Host::new(away);
    late.connect(&mut world);
    assert_eq!(world.creates(late.session).len(), 1);
}

#[test]
fn fault_10_a_failed_or_dying_runner_holds_its_slot_until_its_vm_is_removed() {
    for state in [wire::RunnerState::Error, wire::RunnerState::TearingDown] {
        let mut world = World::new(Policy::default());
        let mut host = world.agent(1);
        world.add("a");
        host.all(&mut world, wire::RunnerState::Booting);
        host.all(&mut world, state);
        world.add("b");
        assert_eq!(world.creates(host.session).len(), 1, "{state:?}");
        host.none(&mut world);
        assert_eq!(world.creates(host.session).len(), 2, "{state:?}");
    }
}

#[test]
fn fault_10_slots_promised_in_one_pass_are_counted_one_by_one() {
    let mut world = World::new(Policy::default());
    let mut host = |label: &str, slots: u32| {
        let template = wire::TemplateInfo { labels: vec![label.into()], ..Default::default() };
        let info = wire::AgentInfo { protocol: 1, templates: vec![template], ..Default::default() };
        let id = world.uuid().parse().unwrap();
        world.register(Some(id), slots, Some(info));
        let mut host = Host::new(id);
        host.connect(&mut world);
        host
    };
    let (mut usual, _rare) = (host("usual", 2), host("rare", 1));
    for name in ["a", "b", "c", "d", "e"] {
        world.add_labelled(name, &["usual"]);
    }
    usual.all(&mut world, wire::RunnerState::Running);
    usual.none(&mut world);
    assert_eq!(
        world.creates(usual.session).len(),
        4,
        "two ended at once, so two may start; the rare slot does not help"
    );
}

#[test]
fn a_script_is_kept_until_its_agent_has_it_and_no_longer() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(2);
    let kept = |world: &World| {
        let count = |wanted: fn(&Write) -> bool| world.writes.iter().filter(|w| wanted(w)).count();
        count(|w| matches!(w, Write::Script(..))) - count(|w| matches!(w, Write::ForgetScript(_)))
    };
    world.add("listed");
    assert_eq!(kept(&world), 1);
    host.all(&mut world, wire::RunnerState::Creating);
    assert_eq!(kept(&world), 0);
    world.add("acknowledged");
    let command_id = world.sent.last().unwrap().1.command_id.clone();
    assert_eq!(kept(&world), 1);
    host.ack(&mut world, vec![wire::CommandAck { command_id, error: String::new(), ..Default::default() }]);
    assert_eq!(kept(&world), 0);
}

#[test]
fn an_error_reaches_the_caller_at_once_and_a_retry_waits_until_the_failed_vm_is_removed() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(2);
    let waiter = world.add("a");
    host.all(&mut world, wire::RunnerState::Booting);
    host.runners[0].error_message = "no boot within 5 m".into();
    host.runners[0].stage = wire::RunnerStage::Guest.into();
    host.all(&mut world, wire::RunnerState::Error);
    let refusal = world.added[&waiter].clone().unwrap_err();
    assert!(
        matches!(&refusal, Refusal::Failed(t) if t.contains("no boot") && t.contains("stage guest")),
        "{refusal}"
    );
    assert_eq!(world.deletes(host.session), 0, "the agent removes it by itself");

    let retry = world.add("a");
    assert_eq!(world.creates(host.session).len(), 1, "one VM for each name");
    assert!(world.view("a").pending_reason.contains("host has not removed the last VM"));
    host.none(&mut world);
    assert_eq!(world.creates(host.session).len(), 2);
    assert!(!world.added.contains_key(&retry));
}

#[test]
fn fault_13_a_failed_vm_that_the_agent_leaves_is_deleted_once_after_a_minute_and_stays_a_failure() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(1);
    world.add("a");
    host.all(&mut world, wire::RunnerState::Booting);
    host.runners[0].error_message = "disk full".into();
    host.all(&mut world, wire::RunnerState::Error);
    world.pass(MINUTE - Duration::from_secs(1));
    assert_eq!(world.deletes(host.session), 0, "the agent removes it by itself");
    for _ in 0..9 {
        world.pass(MINUTE);
        host.sync(&mut world);
        assert_eq!(world.deletes(host.session), 1);
    }
    host.runners[0].end = Some(wire::RunnerEnd { kind: wire::EndKind::Deleted.into(), ..Default::default() });
    host.sync(&mut world);
    let end = world.end_of("a");
    assert_eq!((end.kind(), end.reason.as_str()), (wire::EndKind::Failed, "disk full"));
}

#[test]
fn a_runner_that_is_not_listed_ends_only_after_the_agent_had_it() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(1);
    world.add("a");
    host.sync(&mut world);
    assert!(world.view("a").runner.unwrap().end.is_none(), "the command is still on its way");
    let command_id = world.sent.last().unwrap().1.command_id.clone();
    host.ack(&mut world, vec![wire::CommandAck { command_id, error: String::new(), ..Default::default() }]);
    host.sync(&mut world);
    assert_eq!(world.end_of("a").kind(), wire::EndKind::VmDied);
    assert!(world.end_of("a").reason.contains("no longer has this runner"));
    host.none(&mut world);
}

#[test]
fn pain_07_a_create_that_was_refused_fails_its_caller_with_the_agents_reason() {
    let mut world = World::new(Policy::default());
    let host = world.agent(1);
    let waiter = world.add("a");
    let command_id = world.sent.last().unwrap().1.command_id.clone();
    host.ack(
        &mut world,
        vec![wire::CommandAck { command_id, error: "template is damaged".into(), ..Default::default() }],
    );
    assert!(world.added[&waiter].clone().unwrap_err().to_string().contains("template is damaged"));
    world.add("b");
    assert_eq!(world.creates(host.session).len(), 2, "the slot is free again");
}

#[test]
fn fault_14_a_delete_that_was_refused_is_sent_again_later_each_time() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(1);
    let cloud_id = ready(&mut world, &mut host, "a");
    world.delete(cloud_id);
    for (round, wait) in [(1, 1), (2, 2), (3, 4)] {
        assert_eq!(world.deletes(host.session), round);
        let command_id = world.sent.last().unwrap().1.command_id.clone();
        host.ack(
            &mut world,
            vec![wire::CommandAck { command_id, error: "busy".into(), ..Default::default() }],
        );
        assert_eq!(world.deletes(host.session), round, "not at once");
        world.pass(Duration::from_secs(wait));
    }
    assert_eq!(world.deletes(host.session), 4);
}

#[test]
fn fault_05_a_delete_on_an_offline_agent_is_kept_reported_and_delivered_once_it_reconnects() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(1);
    let cloud_id = ready(&mut world, &mut host, "a");
    host.lose(&mut world);
    let waiter = world.delete(cloud_id);
    world.pass(2 * MINUTE);
    assert!(matches!(&world.deleted[&waiter], Err(Refusal::Unavailable(t)) if t.contains("offline")));
    host.connect(&mut world);
    assert_eq!(world.deletes(host.session), 1);
    host.none(&mut world);
    let again = world.delete(cloud_id);
    assert_eq!(world.deleted[&again], Ok(()));
}

#[test]
fn a_tombstone_is_forgotten_in_time_and_a_stray_runner_is_removed() {
    let mut world = World::new(Policy { tombstones: 60 * MINUTE, ..Policy::default() });
    let mut host = world.agent(1);
    let cloud_id = ready(&mut world, &mut host, "a");
    world.delete(cloud_id);
    let was = host.runners.clone();
    host.none(&mut world);
    host.runners = was;
    host.sync(&mut world);
    assert_eq!(world.deletes(host.session), 2, "it ended, and must not return");
    host.sync(&mut world);
    assert_eq!(world.deletes(host.session), 2, "once is enough");
    host.none(&mut world);
    world.pass(90 * MINUTE);
    let late = world.delete(cloud_id);
    assert!(matches!(world.deleted[&late], Err(Refusal::NotFound(_))));
}

#[test]
fn an_unknown_runner_is_adopted_and_takes_the_callers_that_wait_for_its_name() {
    let mut world = World::new(Policy::default());
    let waiter = world.add("a");
    let id = AgentId::random();
    world.register(Some(id), 1, Some(wire::AgentInfo { protocol: 1, ..Default::default() }));
    let cloud_id = CloudId::random();
    let report = wire::Runner {
        runner_id: shoes_vz_model::RunnerId::random().to_string(),
        runner_name: "a".into(),
        cloud_id: cloud_id.to_string(),
        state: wire::RunnerState::Running.into(),
        ..Default::default()
    };
    let mut host = Host { runners: vec![report], ..Host::new(id) };
    host.connect(&mut world);
    assert_eq!(world.added[&waiter].clone().unwrap().cloud_id, cloud_id);
    assert_eq!(world.creates(host.session).len(), 0);
    world.pass(10 * MINUTE);
    assert_eq!(world.deletes(host.session), 0, "an adopted runner stays");
}

#[test]
fn runners_of_a_host_with_a_new_id_are_found_again() {
    let mut world = World::new(Policy::default());
    let mut old = world.agent(1);
    let cloud_id = ready(&mut world, &mut old, "a");
    old.lose(&mut world);
    let mut new = world.agent(1);
    new.runners = old.runners.clone();
    new.sync(&mut world);
    world.delete(cloud_id);
    assert_eq!(world.deletes(new.session), 1);
}

#[test]
fn the_newer_stream_of_an_agent_counts_and_the_older_one_is_closed() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(1);
    world.add("a");
    let old = host.session;
    host.connect(&mut world);
    assert_eq!(world.closed, [(old, Closed::Replaced)]);
    assert_eq!(world.creates(host.session).len(), 1, "not acknowledged, so sent again");
    world.on(Event::SessionLost { session: old, reason: "late".into() });
    host.all(&mut world, wire::RunnerState::Booting);
    assert_eq!(world.creates(host.session).len(), 1);
    assert_eq!(world.view("a").runner.unwrap().state(), wire::RunnerState::Booting);
}

#[test]
fn the_stream_of_an_agent_that_did_not_register_is_closed() {
    let mut world = World::new(Policy::default());
    let mut host = Host::new(AgentId::random());
    host.connect(&mut world);
    assert_eq!(world.closed, [(host.session, Closed::Unregistered)]);
}

#[test]
fn fault_11_a_caller_whose_answer_was_lost_leaves_no_runner_behind() {
    let mut world = World::new(Policy::default());
    let mut host = world.agent(1);
    let waiter = world.add("a");
    host.all(&mut world, wire::RunnerState::SshReady);
    let runner = world.added[&waiter].clone().unwrap().runner_id;
    world.on(Event::Undelivered { runner });
    world.pass(Duration::from_secs(29));
    assert_eq!(world.deletes(host.session), 0);
    world.pass(Duration::from_secs(2));
    assert_eq!(world.deletes(host.session), 1);
}

#[test]
fn a_go_agent_gets_one_command_for_each_message_and_its_successor_ends_its_runners() {
    let mut world = World::new(Policy::default());
    let id = world.register(None, 2, None);
    let mut host = Host::new(id);
    host.connect(&mut world);
    for name in ["a", "b"] {
        world.add(name);
    }
    assert_eq!(world.creates(host.session).len(), 0, "nothing is pushed");
    for tick in 1..=3 {
        host.sync(&mut world);
        assert_eq!(world.creates(host.session).len(), tick.min(2));
        assert_eq!(world.commands(host.session).count(), tick + 1);
    }
    host.all(&mut world, wire::RunnerState::SshReady);
    assert_eq!(world.added.values().filter(|a| a.is_ok()).count(), 2);
    host.lose(&mut world);
    assert!(world.view("a").runner.unwrap().end.is_none());
    world.register(None, 2, None);
    assert_eq!(world.end_of("a").kind(), wire::EndKind::VmDied);
}
