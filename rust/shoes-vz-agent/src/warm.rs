//! `template warm`: a saved state for each slot, now, and not when the agent has time for it.

use std::{collections::BTreeMap, sync::Arc, time::Instant};

use anyhow::Context as _;
use shoes_vz_terminal::progress::{Place, Progress};

use shoes_vz_process::units;

use crate::{
    bundles::{self, Lock},
    commands::print,
    context::Context,
    hot::HotPlan,
    run,
    settings::Settings,
    states,
    tasks::Tasks,
};

/// Saves them, tells how it goes, and returns once each slot has one or none could be had.
pub async fn run(mut settings: Settings) -> anyhow::Result<()> {
    let runners_path = settings.runners_path.clone();
    let _lock = Lock::take(&runners_path).context(
        "an agent that runs saves states by itself (--saved-states auto); this is for when none does",
    )?;
    let there = bundles::scan(&runners_path)?.bundles.len();
    anyhow::ensure!(
        there == 0,
        "{there} VMs are below {runners_path:?}: start the agent, which adopts or removes them and saves states by itself"
    );
    settings.hot = HotPlan::states_only();
    let agent_id = run::agent_id(&settings.state_dir)?;
    states::possible(settings.hypervisor, &settings.state_dir)
        .await
        .map_err(|reason| anyhow::anyhow!("no state can be saved on this host: {reason}"))?;
    let slots = settings.max_runners;
    let mut progress = Progress::new(Place::of_stderr());
    progress
        .event(&format!("saving a state of template {:?} for each of {slots} slots", settings.template.name));
    let ctx = run::context(settings, agent_id, None, Tasks::default()).await?;
    let pool = ctx.pool.clone();
    let failed = tokio::select! {
        failed = until_done(&ctx, slots, &mut progress) => failed,
        () = pool.keep(ctx.clone()) => anyhow::bail!("the task that starts VMs ended"),
        fault = ctx.tasks.failed() => anyhow::bail!("a fault of the agent's own: {fault}. Please report it"),
    };
    // VMs of slots that are done are being removed.
    progress.now("removing", "the VMs the states were saved of");
    let mut changes = ctx.pool.changes();
    while !ctx.pool.is_empty() {
        changes.changed().await;
    }
    drop(progress);
    anyhow::ensure!(failed == 0, "{failed} of {slots} slots have no state; their guests boot instead");
    print(&format!("{slots} of {slots} slots have a saved state"))
}

async fn until_done(ctx: &Arc<Context>, slots: u32, progress: &mut Progress) -> usize {
    let began = Instant::now();
    let mut told = BTreeMap::new();
    for slot in 0..slots {
        // Looks whether it has one; nothing was tried yet that could have failed.
        let _ = ctx.states.needs(ctx, slot).await;
    }
    loop {
        let mut changes = ctx.pool.changes();
        for slot in 0..slots {
            let Some(standing) = ctx.states.standing(slot) else { continue };
            if told.contains_key(&slot) {
                continue;
            }
            let took = units::show_duration(began.elapsed());
            match &standing {
                Ok(()) => progress
                    .event(&format!("slot {slot}: saved, and restored once ({took} since the beginning)")),
                Err(reason) => progress.event(&format!("slot {slot}: no state could be saved: {reason}")),
            }
            told.insert(slot, standing.is_ok());
        }
        if told.len() == slots as usize {
            return told.values().filter(|ok| !**ok).count();
        }
        progress.now("saving", &format!("{} of {slots} slots done", told.len()));
        changes.changed().await;
    }
}
