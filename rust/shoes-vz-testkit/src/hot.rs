//! What must hold of hot VMs and saved states on every hypervisor: each a whole test, for a fleet of those options.

use std::{fs, io::Write as _, path::PathBuf, time::Duration};

use nix::sys::signal::Signal;
use shoes_vz_model::state::StartPath;
use shoes_vz_proto::convert::start_path_from_wire;
use shoes_vz_proto::{
    agent::EndKind,
    fleet::{AddInstanceResponse, ListAgentsRequest},
};
use shoes_vz_vm::{saved, spec::HypervisorKind};

use crate::{
    fleet::{Fleet, Options, PATIENCE, end_of},
    leftover,
    script::{Job, held},
    unique,
};

fn with(options: &Options, slots: u32, hot: &str, states: &str) -> Options {
    let mut options = options.clone();
    options.max_runners = slots;
    let more = ["--hot", hot, "--saved-states", states].map(String::from);
    options.agent_args.extend(more);
    options
}

/// Whether the tests' QEMU cannot save VMs (older than 8.2); then a line that no test captures says what is not tested.
pub fn qemu_cannot_save(test: &str) -> bool {
    let possible = saved::possible(HypervisorKind::Qemu, &std::env::temp_dir());
    if let Err(reason) = &possible {
        // Not by eprintln!, which shows in failed tests only.
        let said = writeln!(std::io::stderr(), "SKIPPED, as far as saved states go: {test}: {reason}");
        said.expect("stderr is there");
    }
    possible.is_err()
}

/// Adds a runner that stays, and insists on how its VM came to be ready.
async fn added(fleet: &Fleet, name: &str, wanted: &[StartPath]) -> (AddInstanceResponse, String) {
    let added = fleet.add(name, &held()).await.expect("it starts");
    let view = fleet.until(name, |v| v.runner.as_ref().is_some_and(|r| r.start_path != 0)).await;
    let runner = view.runner.expect("a runner");
    let came_by = start_path_from_wire(runner.start_path).expect("a path");
    assert!(wanted.contains(&came_by), "{name} came by {came_by:?}, not {wanted:?}\n{}", fleet.logs());
    (added, runner.runner_id)
}

async fn deleted(fleet: &Fleet, name: &str, added: &AddInstanceResponse) {
    fleet.delete(&added.cloud_id).await.expect("it is deleted");
    let end = end_of(&fleet.until(name, |v| v.runner.as_ref().is_some_and(|r| r.end.is_some())).await);
    assert_eq!(end.kind(), EndKind::Deleted, "{end:?}");
}

/// How often the agent booted a guest for this reason.
///
/// # Panics
/// When the server does not answer.
pub async fn fallbacks(fleet: &Fleet, reason: &str) -> u64 {
    let agents =
        fleet.fleet_client().list_agents(ListAgentsRequest {}).await.expect("ListAgents").into_inner();
    let all = agents.agents.iter().flat_map(|a| &a.restore_fallbacks);
    all.filter(|f| f.reason == reason).map(|f| f.count).sum()
}

/// A runner takes a hot VM over, does its job in it, and another VM takes its place.
///
/// # Panics
/// When it does not hold; so do all of these.
pub async fn a_runner_takes_a_hot_vm_over_and_another_takes_its_place(options: Options) {
    let mut fleet = Fleet::start_with(with(&options, 2, "1", "off")).await;
    fleet.until_hot(1).await;
    let job = Job::new("echo ran-on-a-hot-vm");
    let added = fleet.add("hot-1", &job.setup_script("hot-1")).await.expect("it starts");
    let view = fleet.until("hot-1", |v| v.runner.as_ref().is_some_and(|r| r.end.is_some())).await;
    assert_eq!(end_of(&view).kind(), EndKind::Finished);
    assert_eq!(start_path_from_wire(view.runner.expect("a runner").start_path), Some(StartPath::Hot));
    fleet.delete(&added.cloud_id).await.expect("it is deleted");
    fleet.until_hot(1).await;
    fleet.end_agent_and_hot_vms().await;
    fleet.finish().await;
}

/// Clones of saved states share nothing, neither with each other nor with those that had their slots before.
#[allow(clippy::missing_panics_doc)]
pub async fn clones_of_saved_states_share_nothing(options: Options, clones: u32, but: &[&str]) {
    let mut fleet = Fleet::server_only(with(&options, clones, "all", "use")).await;
    fleet.warm().await;
    fleet.start_agent().await;
    let mut guests = Vec::new();
    for round in 0..2 {
        fleet.until_hot(clones).await;
        let mut there = Vec::new();
        for n in 0..clones {
            let name = format!("clone-{round}-{n}");
            let (added, id) = added(&fleet, &name, &[StartPath::Hot]).await;
            guests.push((name.clone(), unique::traits_of(&fleet, &id).await));
            there.push((name, added));
        }
        let of_now = &guests[guests.len() - clones as usize..];
        assert_eq!(unique::shared(of_now, but), Vec::<String>::new());
        for (name, added) in there {
            deleted(&fleet, &name, &added).await;
        }
    }
    // A slot keeps its network address; nothing else of it stays the same.
    assert_eq!(unique::shared(&guests, &[but, &["mac"]].concat()), Vec::<String>::new());
    assert_eq!(fallbacks(&fleet, "missing").await, 0, "each came from a saved state");
    fleet.until_hot(clones).await;
    fleet.end_agent_and_hot_vms().await;
    fleet.finish().await;
}

/// A state that is missing, damaged or of another version is not used: the guest boots within the same call, it is
/// counted, and a new state is made in the background.
#[allow(clippy::missing_panics_doc)]
pub async fn a_state_that_cannot_be_used_costs_a_boot_and_is_made_anew(options: Options) {
    let mut fleet = Fleet::server_only(with(&options, 1, "none", "auto")).await;
    fleet.warm().await;
    fleet.start_agent().await;
    let state = fleet.runners_path().join(".saved-states/slot-0");
    let edit = |from: &'static str, to: &'static str| {
        move |state: PathBuf| {
            let path = state.join("SavedState.json");
            let text = fs::read_to_string(&path).expect("a manifest");
            assert!(text.contains(from), "{text}");
            fs::write(path, text.replace(from, to)).expect("it is changed");
        }
    };
    type Damage = Box<dyn Fn(PathBuf)>;
    let damages: Vec<(&str, Damage)> = vec![
        ("missing", Box::new(|state| fs::remove_dir_all(state).expect("it is removed"))),
        ("version", Box::new(edit("\"agent_version\": \"", "\"agent_version\": \"0."))),
        (
            "damaged",
            Box::new(|state| {
                fs::write(state.join("machine-state"), "nonsense").expect("it is changed");
            }),
        ),
    ];
    for (n, (reason, damage)) in damages.into_iter().enumerate() {
        let (name, before) = (format!("restored-{n}"), fallbacks(&fleet, reason).await);
        let (there, _) = added(&fleet, &name, &[StartPath::Restored]).await;
        // Nobody looks at a slot's state while it is in use.
        damage(state.clone());
        deleted(&fleet, &name, &there).await;
        let name = format!("booted-{n}");
        // The background may have begun already: then the runner gets that VM.
        let (there, _) = added(&fleet, &name, &[StartPath::Cold, StartPath::Hot]).await;
        assert!(fallbacks(&fleet, reason).await > before, "{reason} is counted\n{}", fleet.logs());
        deleted(&fleet, &name, &there).await;
        let proved = async {
            let manifest = state.join("SavedState.json");
            while !fs::read_to_string(&manifest).is_ok_and(|text| text.contains("\"proved\": true")) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, proved).await.is_err() {
            panic!("no new state was made\n{}", fleet.logs());
        }
        fleet.until_hot(0).await;
    }
    fleet.end_agent_and_hot_vms().await;
    fleet.finish().await;
}

/// An agent that is killed leaves its hot VMs, and the next one goes on with them.
#[allow(clippy::missing_panics_doc)]
pub async fn hot_vms_outlive_their_agent(options: Options) {
    let mut fleet = Fleet::start_with(with(&options, 1, "all", "off")).await;
    fleet.until_hot(1).await;
    let before = leftover::processes(&fleet.runners_path());
    fleet.end_agent(Signal::SIGKILL).await;
    fleet.start_agent().await;
    fleet.until_hot(1).await;
    assert_eq!(leftover::processes(&fleet.runners_path()), before, "nothing was started anew");
    let (there, _) = added(&fleet, "after", &[StartPath::Hot]).await;
    // Renamed under its VM, it is the runner's for every later agent too.
    fleet.end_agent(Signal::SIGKILL).await;
    fleet.start_agent().await;
    deleted(&fleet, "after", &there).await;
    fleet.until_hot(1).await;
    fleet.end_agent_and_hot_vms().await;
    fleet.finish().await;
}
