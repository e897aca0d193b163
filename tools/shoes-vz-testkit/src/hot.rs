//! Tests of hot VMs and saved states for every hypervisor; each is a complete test for a fleet with the given options.

use std::{fs, io::Write as _, path::PathBuf, time::Duration};

use nix::sys::signal::Signal;
use shoes_vz_model::state::StartPath;
use shoes_vz_proto::{
    agent::EndKind,
    fleet::{AddInstanceResponse, ListAgentsRequest},
};
use shoes_vz_vm::{saved, spec::HypervisorKind};

use crate::{
    fleet::{Fleet, Options, TIMEOUT},
    identity, leftover,
    script::{Job, sleeping},
};

fn with(options: &Options, slots: u32, hot: &str, states: &str) -> Options {
    let mut options = options.clone();
    options.max_runners = slots;
    let more = ["--hot", hot, "--saved-states", states].map(String::from);
    options.agent_args.extend(more);
    options
}

/// Whether QEMU cannot save VMs (older than 8.2); then it prints, past the capture of the test, what is not tested.
pub fn qemu_cannot_save(test: &str) -> bool {
    let possible = saved::possible(HypervisorKind::Qemu, &std::env::temp_dir());
    if let Err(reason) = &possible {
        // Not by eprintln!, whose output only failed tests show.
        let written = writeln!(std::io::stderr(), "SKIPPED (saved states): {test}: {reason}");
        written.expect("stderr is writable");
    }
    possible.is_err()
}

/// Adds a runner that keeps running, and asserts how its VM was started.
async fn add_started(fleet: &Fleet, name: &str, wanted: &[StartPath]) -> (AddInstanceResponse, String) {
    let added = fleet.add(name, &sleeping()).await.expect("it starts");
    let (view, path) = fleet.until_started(name).await;
    assert!(wanted.contains(&path), "{name} was started {path:?}, not {wanted:?}\n{}", fleet.logs());
    (added, view.runner.expect("a runner").runner_id)
}

async fn delete(fleet: &Fleet, name: &str, added: &AddInstanceResponse) {
    fleet.delete(&added.cloud_id).await.expect("it is deleted");
    let end = fleet.until_ended(name).await;
    assert_eq!(end.kind(), EndKind::Deleted, "{end:?}");
}

/// How often the agent booted a guest instead of restoring it, for this reason.
///
/// # Panics
/// When the server does not answer.
pub async fn fallbacks(fleet: &Fleet, reason: &str) -> u64 {
    let agents =
        fleet.fleet_client().list_agents(ListAgentsRequest {}).await.expect("ListAgents").into_inner();
    let all = agents.agents.iter().flat_map(|a| &a.restore_fallbacks);
    all.filter(|f| f.reason == reason).map(|f| f.count).sum()
}

/// # Panics
/// When it fails, like all tests here.
pub async fn a_runner_claims_a_hot_vm_and_another_one_replaces_it(options: Options) {
    let mut fleet = Fleet::start_with(with(&options, 2, "1", "off")).await;
    fleet.until_hot(1).await;
    let job = Job::new("echo ran-on-a-hot-vm");
    let added = fleet.add("hot-1", &job.setup_script("hot-1")).await.expect("it starts");
    assert_eq!(fleet.until_ended("hot-1").await.kind(), EndKind::Finished);
    assert_eq!(fleet.until_started("hot-1").await.1, StartPath::Hot);
    fleet.delete(&added.cloud_id).await.expect("it is deleted");
    fleet.until_hot(1).await;
    fleet.end_agent_and_hot_vms().await;
    fleet.finish().await;
}

/// Guests restored from saved states share no identity, neither with each other nor with their predecessors in the slots.
#[allow(clippy::missing_panics_doc)]
pub async fn clones_of_saved_states_share_nothing(options: Options, clones: u32, allowed: &[&str]) {
    let mut fleet = Fleet::server_only(with(&options, clones, "all", "use")).await;
    fleet.warm().await;
    fleet.start_agent().await;
    let mut guests = Vec::new();
    for round in 0..2 {
        fleet.until_hot(clones).await;
        let mut present = Vec::new();
        for n in 0..clones {
            let name = format!("clone-{round}-{n}");
            let (added, id) = add_started(&fleet, &name, &[StartPath::Hot]).await;
            guests.push((name.clone(), identity::traits_of(&fleet, &id).await));
            present.push((name, added));
        }
        let current = &guests[guests.len() - clones as usize..];
        assert_eq!(identity::shared_traits(current, allowed), Vec::<String>::new());
        for (name, added) in present {
            delete(&fleet, &name, &added).await;
        }
    }
    // Only the network address of a slot stays the same.
    assert_eq!(identity::shared_traits(&guests, &[allowed, &["mac"]].concat()), Vec::<String>::new());
    assert_eq!(fallbacks(&fleet, "missing").await, 0, "each came from a saved state");
    fleet.until_hot(clones).await;
    fleet.end_agent_and_hot_vms().await;
    fleet.finish().await;
}

/// When a state is missing, damaged or of another version, the guest boots within the same call, the fallback is counted,
/// and a new state is made in the background.
#[allow(clippy::missing_panics_doc)]
pub async fn an_unusable_state_costs_a_boot_and_is_replaced(options: Options) {
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
        let (added, _) = add_started(&fleet, &name, &[StartPath::Restored]).await;
        // The agent does not read the state of a slot that is in use.
        damage(state.clone());
        let manifest = state.join("SavedState.json");
        let damaged = fs::read_to_string(&manifest).ok();
        delete(&fleet, &name, &added).await;
        let name = format!("booted-{n}");
        // The new state may be in the making already: then the runner gets its VM.
        let (added, _) = add_started(&fleet, &name, &[StartPath::Cold, StartPath::Hot]).await;
        assert!(fallbacks(&fleet, reason).await > before, "{reason} is counted\n{}", fleet.logs());
        delete(&fleet, &name, &added).await;
        let proved = async {
            let is_new = |text: String| text.contains("\"proved\": true") && damaged.as_ref() != Some(&text);
            while !fs::read_to_string(&manifest).is_ok_and(is_new) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(TIMEOUT, proved).await.is_err() {
            panic!("no new state was made\n{}", fleet.logs());
        }
        fleet.until_hot(0).await;
    }
    fleet.end_agent_and_hot_vms().await;
    fleet.finish().await;
}

/// The hot VMs of a killed agent keep running, and the next agent adopts them.
#[allow(clippy::missing_panics_doc)]
pub async fn hot_vms_outlive_their_agent(options: Options) {
    let mut fleet = Fleet::start_with(with(&options, 1, "all", "off")).await;
    fleet.until_hot(1).await;
    let before = leftover::processes(&fleet.runners_path());
    fleet.end_agent(Signal::SIGKILL).await;
    fleet.start_agent().await;
    fleet.until_hot(1).await;
    assert_eq!(leftover::processes(&fleet.runners_path()), before, "no VM was started again");
    let (added, _) = add_started(&fleet, "after", &[StartPath::Hot]).await;
    // The renamed bundle belongs to the runner for every later agent.
    fleet.end_agent(Signal::SIGKILL).await;
    fleet.start_agent().await;
    delete(&fleet, "after", &added).await;
    fleet.until_hot(1).await;
    fleet.end_agent_and_hot_vms().await;
    fleet.finish().await;
}
