//! Labels and resource types that require templates and sizes.

use std::collections::BTreeMap;

use shoes_vz_model::{AgentId, ResourceType};
use shoes_vz_proto::agent as wire;

use super::{Host, Policy, Refusal, World};
use crate::fleet::{
    labels::Accepted,
    requirements::{RequirementTables, VmRequirements},
    values::VmSize,
};

fn requirements(template: &str, cpus: u32) -> VmRequirements {
    VmRequirements { template: template.into(), size: VmSize { cpus, memory_bytes: 7, disk_bytes: 0 } }
}

fn world() -> World {
    let labels = BTreeMap::from([
        ("macos-15".to_owned(), requirements("sequoia", 4)),
        ("macos-26".to_owned(), requirements("tahoe", 0)),
    ]);
    let resource_types = BTreeMap::from([(ResourceType::Nano, requirements("", 2))]);
    World::new(Policy {
        accepted_labels: Accepted::new(labels.keys()),
        requirement_tables: RequirementTables { resource_types, labels },
        ..Policy::default()
    })
}

fn host(world: &mut World, template: &str) -> Host {
    let template = wire::TemplateInfo { name: template.into(), ..Default::default() };
    let info = wire::AgentInfo { protocol: 1, templates: vec![template], ..Default::default() };
    let id: AgentId = world.uuid().parse().unwrap();
    world.register(Some(id), 2, Some(info));
    let mut host = Host::new(id);
    host.connect(world);
    host
}

#[test]
fn fault_25_a_labels_template_decides_which_agent_gets_the_runner_and_its_size_counts() {
    let mut world = world();
    let (tahoe, sequoia) = (host(&mut world, "tahoe"), host(&mut world, "sequoia"));
    world.add_labelled("a", &["self-hosted", "macOS-15"]);
    assert_eq!(world.creates(tahoe.session).len(), 0);
    let create = world.creates(sequoia.session).remove(0);
    assert_eq!((create.template.as_str(), create.cpus, create.memory_bytes), ("sequoia", 4, 7));
    world.add_labelled("b", &["macos-26"]);
    let create = world.creates(tahoe.session).remove(0);
    assert_eq!((create.template.as_str(), create.cpus), ("tahoe", 2), "the resource type is larger");
}

#[test]
fn a_runner_whose_template_no_agent_has_waits_for_one() {
    let mut world = world();
    let _tahoe = host(&mut world, "tahoe");
    let waiter = world.add_labelled("a", &["macos-15"]);
    assert_eq!(world.view("a").pending_reason, "host has no template named sequoia");
    assert!(!world.added.contains_key(&waiter));
    let sequoia = host(&mut world, "sequoia");
    assert_eq!(world.creates(sequoia.session).len(), 1);
}

#[test]
fn labels_that_require_different_templates_are_refused_for_good() {
    let mut world = world();
    let waiter = world.add_labelled("a", &["macos-15", "macos-26"]);
    let refusal = world.added[&waiter].clone().unwrap_err();
    assert!(
        matches!(&refusal, Refusal::Invalid(t) if t.contains("\"sequoia\"") && t.contains("\"tahoe\"")),
        "{refusal}"
    );
}
