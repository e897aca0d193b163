//! The clients of the server, each the program of a simulated host, and the last wave of calls.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::future::join_all;
use tokio::sync::watch;

use crate::{
    client::{self, Caller},
    plan::{self, Plan},
    world::World,
};

/// Deadline of each request that fills a slot at the end.
const LAST_WAVE_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Calls,
    LastWave,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Progress {
    pub(crate) done: usize,
    pub(crate) last_wave_done: bool,
}

/// Shared by the clients and the driver.
pub(crate) type Shared<T> = Arc<Mutex<T>>;

pub(crate) fn lock<T>(shared: &Shared<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

type Action = Pin<Box<dyn Future<Output = ()>>>;

/// What the host of the `n`th client does. The last host is also the operator's.
pub(crate) fn actions(plan: &Plan, n: usize, world: &Arc<World>) -> Vec<Action> {
    let (host, world) = (plan::client(n), || Arc::clone(world));
    let mut actions: Vec<Action> = Vec::new();
    for calls in plan.clients[n].iter().cloned() {
        actions.push(Box::pin(client::run(world(), host.clone(), calls)));
    }
    if n + 1 == plan.clients.len() {
        for (agent, at, lasts) in plan.cordons.iter().copied() {
            actions.push(Box::pin(client::cordon(world(), host.clone(), plan::agent(agent), at, lasts)));
        }
        for at in plan.interferences.iter().copied() {
            actions.push(Box::pin(client::interfere(world(), host.clone(), at)));
        }
    }
    actions
}

/// Runs the actions and counts those that have ended.
pub(crate) async fn act(actions: Vec<Action>, progress: Shared<Progress>) -> turmoil::Result {
    join_all(actions.into_iter().map(|action| async {
        action.await;
        lock(&progress).done += 1;
    }))
    .await;
    Ok(())
}

/// Once nothing is left: fills every slot at once, then deletes every runner there ever was, and an unknown one.
pub(crate) async fn last_wave(
    world: Arc<World>,
    slots: usize,
    mut phase: watch::Receiver<Phase>,
    progress: Shared<Progress>,
) -> turmoil::Result {
    phase.wait_for(|p| *p == Phase::LastWave).await?;
    let caller = Caller { world: Arc::clone(&world), host: plan::client(0) };
    let names: Vec<String> = (0..slots).map(|k| format!("last-{k}")).collect();
    let clouds = join_all(names.iter().map(|name| caller.once(name, LAST_WAVE_TIMEOUT))).await;
    for (name, cloud) in names.iter().zip(&clouds) {
        if let Err(e) = cloud {
            world.violated(format!(
                "no slot is lost: all {slots} are free, but {name} got none: {}",
                e.message()
            ));
        }
    }
    join_all(clouds.iter().flatten().map(|cloud| caller.delete(cloud))).await;
    for cloud in world.returned_cloud_ids() {
        caller.delete(&cloud).await;
    }
    let unknown = format!("shoes-vz-{}", uuid::Uuid::from_u128(1));
    match caller.delete_once(&unknown).await {
        Err(e) if e.code() == tonic::Code::NotFound => {}
        other => {
            world.violated(format!("DeleteInstance of an unknown ID does not answer NotFound: {other:?}"))
        }
    }
    lock(&progress).last_wave_done = true;
    Ok(())
}
