//! `template warm`: a saved state for each slot, now, and not when the agent has time for it.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use anyhow::Context as _;
use shoes_vz_terminal::progress::{Progress, ProgressTarget};

use shoes_vz_process::units;

use crate::{
    agent::Agent,
    bundles::{self, Lock},
    commands::print,
    pool::HotPlan,
    run,
    saved_states::{self, StatesMode},
    settings::Settings,
    tasks::Tasks,
};

/// Saves them, tells how it goes, and returns once each slot has one or none could be had.
pub async fn run(mut settings: Settings) -> anyhow::Result<()> {
    let runners_path = settings.runners_path.clone();
    let _lock = Lock::take(&runners_path).context(
        "this command is for a host without a running agent; an agent saves states by itself (--saved-states auto)",
    )?;
    let there = bundles::scan(&runners_path)?.bundles.len();
    anyhow::ensure!(
        there == 0,
        "{there} VMs are below {runners_path:?}: start the agent, which adopts or removes them and saves states by itself"
    );
    settings.hot = HotPlan::none();
    settings.saved_states = StatesMode::Auto;
    let agent_id = run::agent_id(&settings.state_dir)?;
    saved_states::possible(settings.hypervisor, &settings.state_dir)
        .await
        .map_err(|reason| anyhow::anyhow!("no state can be saved on this host: {reason}"))?;
    let slots = settings.max_runners;
    let mut progress = Progress::new(ProgressTarget::of_stderr());
    progress
        .event(&format!("saving a state of template {:?} for each of {slots} slots", settings.template.name));
    let agent = run::agent(settings, agent_id, None, Tasks::default()).await?;
    let failed = tokio::select! {
        failed = until_done(&agent, slots, &mut progress) => failed,
        () = agent.pool.keep() => anyhow::bail!("the task that starts VMs ended"),
        fault = agent.host.tasks.failed() => anyhow::bail!("a task of the agent failed, which is a bug in shoes-vz: {fault}; please report this"),
    };
    // VMs of slots that are done are being removed.
    progress.now("removing", "the VMs whose states were saved");
    let mut changes = agent.pool.changes();
    while !agent.pool.is_empty() {
        changes.changed().await;
    }
    drop(progress);
    anyhow::ensure!(failed == 0, "{failed} of {slots} slots have no saved state; their guests boot instead");
    print(&format!("{slots} of {slots} slots have a saved state"))
}

async fn until_done(agent: &Arc<Agent>, slots: u32, progress: &mut Progress) -> usize {
    let began = Instant::now();
    let mut done = BTreeMap::new();
    for slot in 0..slots {
        // Looks whether it has one; nothing was tried yet that could have failed.
        let _ = agent.host.saved_states.needs(slot, &agent.host.default_spec(slot)).await;
    }
    loop {
        let mut changes = agent.pool.changes();
        for slot in 0..slots {
            let Some(standing) = agent.host.saved_states.standing(slot) else { continue };
            if done.contains_key(&slot) {
                continue;
            }
            let took = units::show_duration(began.elapsed());
            match &standing {
                Ok(()) => progress.event(&format!("slot {slot}: saved, and restored once (after {took})")),
                Err(reason) => progress.event(&format!("slot {slot}: no state could be saved: {reason}")),
            }
            done.insert(slot, standing.is_ok());
        }
        if done.len() == slots as usize {
            return done.values().filter(|ok| !**ok).count();
        }
        progress.now("saving", &format!("{} of {slots} slots done", done.len()));
        changes.changed().await;
    }
}
