//! Everybody who calls the server, as the software of simulated hosts: who does what when, and the last wave.

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
const LAST_PATIENCE: Duration = Duration::from_secs(60);

/// What the callers are to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Errands,
    LastWave,
}

/// What they have done.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Progress {
    pub(crate) done: usize,
    pub(crate) last_wave_done: bool,
}

/// Shared by the callers and the driver.
pub(crate) type Shared<T> = Arc<Mutex<T>>;

pub(crate) fn lock<T>(shared: &Shared<T>) -> std::sync::MutexGuard<'_, T> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

type Deed = Pin<Box<dyn Future<Output = ()>>>;

/// What the host of the `n`th client does. The last one is the operator's, too.
pub(crate) fn deeds(plan: &Plan, n: usize, world: &Arc<World>) -> Vec<Deed> {
    let (host, world) = (plan::client(n), || Arc::clone(world));
    let mut deeds: Vec<Deed> = Vec::new();
    for errand in plan.clients[n].iter().cloned() {
        deeds.push(Box::pin(client::run(world(), host.clone(), errand)));
    }
    if n + 1 == plan.clients.len() {
        for (agent, at, lasts) in plan.cordons.iter().copied() {
            deeds.push(Box::pin(client::cordon(world(), host.clone(), plan::agent(agent), at, lasts)));
        }
        for at in plan.meddling.iter().copied() {
            deeds.push(Box::pin(client::meddle(world(), host.clone(), at)));
        }
    }
    deeds
}

/// Does them, and counts each.
pub(crate) async fn act(deeds: Vec<Deed>, progress: Shared<Progress>) -> turmoil::Result {
    join_all(deeds.into_iter().map(|deed| async {
        deed.await;
        lock(&progress).done += 1;
    }))
    .await;
    Ok(())
}

/// Once nothing is left: fills every slot at once, then deletes all there ever was, and one that never was.
pub(crate) async fn last_wave(
    world: Arc<World>,
    slots: usize,
    mut phase: watch::Receiver<Phase>,
    progress: Shared<Progress>,
) -> turmoil::Result {
    phase.wait_for(|p| *p == Phase::LastWave).await?;
    let caller = Caller { world: Arc::clone(&world), host: plan::client(0) };
    let names: Vec<String> = (0..slots).map(|k| format!("last-{k}")).collect();
    let clouds = join_all(names.iter().map(|name| caller.once(name, LAST_PATIENCE))).await;
    for (name, cloud) in names.iter().zip(&clouds) {
        if let Err(e) = cloud {
            world.violated(format!(
                "no slot is lost: there are {slots}, all free, and {name} got none: {}",
                e.message()
            ));
        }
    }
    join_all(clouds.iter().flatten().map(|cloud| caller.delete(cloud))).await;
    for cloud in world.given() {
        caller.delete(&cloud).await;
    }
    let never = format!("shoes-vz-{}", uuid::Uuid::from_u128(1));
    match caller.delete_once(&never).await {
        Err(e) if e.code() == tonic::Code::NotFound => {}
        other => world.violated(format!("an id that never was is deleted: {other:?}")),
    }
    lock(&progress).last_wave_done = true;
    Ok(())
}
