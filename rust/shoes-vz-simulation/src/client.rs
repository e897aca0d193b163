//! myshoes, as far as it concerns us: one connection for each call, a deadline on each, retries under the same name.

use std::{sync::Arc, time::Duration};

use shoes_vz_proto::fleet::{
    AddInstanceRequest, CordonAgentRequest, DeleteInstanceRequest, ListRunnersRequest, UncordonAgentRequest,
    fleet_service_client::FleetServiceClient, shoes_service_client::ShoesServiceClient,
};
use tokio::time::sleep;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    machines::within,
    net,
    plan::{Errand, SERVER, Then},
    world::World,
};

/// What a runner of this name is to run.
pub(crate) fn script(name: &str) -> String {
    format!("#!/bin/sh\n: the script of {name}\n")
}

/// One errand, to its end.
pub(crate) async fn run(world: Arc<World>, host: String, errand: Errand) {
    sleep(errand.at).await;
    let caller = Caller { world, host };
    if let Some(after) = errand.breaks_off {
        let added = caller.break_off(&errand.name, errand.patience, after).await;
        if errand.then == Then::GiveUp {
            if let Some(Ok(cloud)) = added {
                caller.delete(&cloud).await;
            }
            return;
        }
    }
    let Some(cloud) = caller.add(&errand.name, errand.patience).await else { return };
    match errand.then {
        Then::LeaveIt | Then::GiveUp => return,
        Then::DeleteAfter(time) => sleep(time).await,
        Then::DeleteWhenDone => caller.until_over(&cloud).await,
    }
    caller.delete(&cloud).await;
    if errand.then == Then::DeleteWhenDone {
        caller.delete(&cloud).await;
    }
    if errand.asks_again
        && let Some(cloud) = caller.add(&errand.name, errand.patience).await
    {
        caller.until_over(&cloud).await;
        caller.delete(&cloud).await;
    }
}

/// One client.
pub(crate) struct Caller {
    pub(crate) world: Arc<World>,
    pub(crate) host: String,
}

/// Longest between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// The deadline of each DeleteInstance.
const DELETE_PATIENCE: Duration = Duration::from_secs(20);
/// An operator's patience with the server.
const ORDER_PATIENCE: Duration = Duration::from_secs(10);
/// How often a caller asks again before it gives its job up.
const TRIES: u32 = 40;

impl Caller {
    fn channel(&self) -> Channel {
        let uri = format!("http://{SERVER}:{}", net::PORT);
        let endpoint = Endpoint::from_shared(uri).unwrap_or_else(|e| unreachable!("a constant address: {e}"));
        net::connect(&endpoint, &self.world, &self.host)
    }

    fn service(&self) -> ShoesServiceClient<Channel> {
        ShoesServiceClient::new(self.channel())
    }

    pub(crate) async fn once(&self, name: &str, patience: Duration) -> Result<String, Status> {
        let mut request = Request::new(AddInstanceRequest {
            runner_name: name.to_owned(),
            setup_script: script(name),
            resource_type: "nano".into(),
            labels: Vec::new(),
        });
        request.set_timeout(patience);
        let began = self.world.clock();
        self.world.asked(name);
        let mut service = self.service();
        let answer = within(patience + Duration::from_millis(100), service.add_instance(request)).await;
        let answer = answer.unwrap_or_else(|| Err(Status::cancelled("no answer")));
        let answered = !matches!(&answer, Err(e) if is_silence(e));
        self.world.call_over(&self.host, &format!("AddInstance of {name}"), began, patience, answered);
        match &answer {
            Ok(added) => {
                self.world.note(format_args!("{} has {name} as {}", self.host, added.get_ref().cloud_id))
            }
            Err(e) => {
                self.world.note(format_args!("{} has not {name}: {:?} {}", self.host, e.code(), e.message()))
            }
        }
        let cloud = answer?.into_inner().cloud_id;
        self.world.claimed(name, &cloud);
        Ok(cloud)
    }

    /// A plugin that is killed during its call, unless it is answered before.
    async fn break_off(
        &self,
        name: &str,
        patience: Duration,
        after: Duration,
    ) -> Option<Result<String, Status>> {
        let over = within(after, self.once(name, patience)).await;
        if over.is_none() {
            self.world.note(format_args!("{} breaks its call for {name} off", self.host));
        }
        over
    }

    /// Until there is one, or there will not be.
    pub(crate) async fn add(&self, name: &str, patience: Duration) -> Option<String> {
        let mut pause = Duration::from_millis(200);
        for _ in 0..TRIES {
            match self.once(name, patience).await {
                Ok(cloud) => return Some(cloud),
                // Its job is done, and it will have no other VM.
                Err(e) if e.code() == Code::InvalidArgument && self.world.is_done(name) => return None,
                Err(e) if e.code() == Code::InvalidArgument => {
                    self.world.violated(format!("{name} is said to be invalid: {}", e.message()));
                    return None;
                }
                Err(_) => {}
            }
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        self.world.violated(format!("{} never got {name} in {TRIES} tries", self.host));
        None
    }

    /// Until it is gone for sure.
    pub(crate) async fn delete(&self, cloud: &str) {
        self.world.delete_wanted(cloud);
        let mut pause = Duration::from_millis(200);
        for _ in 0..TRIES {
            match self.delete_once(cloud).await {
                Ok(()) => {
                    if self.world.live().iter().any(|vm| vm.named().cloud == cloud) {
                        self.world.violated(format!("{cloud} is said to be deleted, and its VM lives"));
                    }
                    return;
                }
                Err(e) if e.code() == Code::NotFound => {
                    self.world.violated(format!(
                        "{cloud} was given, and is said never to have been: {}",
                        e.message()
                    ));
                    return;
                }
                Err(e) => self.world.note(format_args!(
                    "{} cannot delete {cloud}: {:?} {}",
                    self.host,
                    e.code(),
                    e.message()
                )),
            }
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        self.world.violated(format!("{} could not delete {cloud} in {TRIES} tries", self.host));
    }

    pub(crate) async fn delete_once(&self, cloud: &str) -> Result<(), Status> {
        let mut request =
            Request::new(DeleteInstanceRequest { cloud_id: cloud.to_owned(), labels: Vec::new() });
        request.set_timeout(DELETE_PATIENCE);
        let began = self.world.clock();
        let mut service = self.service();
        let limit = DELETE_PATIENCE + Duration::from_millis(100);
        let answer = within(limit, service.delete_instance(request)).await;
        let answer = answer.unwrap_or_else(|| Err(Status::cancelled("no answer")));
        let answered = !matches!(&answer, Err(e) if is_silence(e));
        self.world.call_over(
            &self.host,
            &format!("DeleteInstance of {cloud}"),
            began,
            DELETE_PATIENCE,
            answered,
        );
        answer.map(drop)
    }

    /// Until the runner's VM is over.
    async fn until_over(&self, cloud: &str) {
        let Some(vm) = self.world.live().into_iter().find(|vm| vm.named().cloud == cloud) else { return };
        vm.ended().await;
    }
}

/// An operator takes `agent` out of service, and puts it back.
pub(crate) async fn cordon(world: Arc<World>, host: String, agent: String, at: Duration, lasts: Duration) {
    sleep(at).await;
    let caller = Caller { world, host };
    caller.order(&agent, Order::Cordon).await;
    sleep(lasts).await;
    caller.order(&agent, Order::Uncordon).await;
}

/// Somebody deletes a runner he sees, whatever it does and whoever waits for it.
pub(crate) async fn meddle(world: Arc<World>, host: String, at: Duration) {
    sleep(at).await;
    let caller = Caller { world, host };
    let mut service = FleetServiceClient::new(caller.channel());
    let request = ListRunnersRequest { include_ended: false };
    let Some(Ok(listed)) = within(ORDER_PATIENCE, service.list_runners(request)).await else { return };
    let runners = listed.into_inner().runners;
    if let Some(runner) = runners.get(caller.world.below(runners.len())) {
        caller.world.note(format_args!("{} is to be deleted, whoever has it", runner.cloud_id));
        caller.delete(&runner.cloud_id).await;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Cordon,
    Uncordon,
}

impl Caller {
    /// Until the server confirms it.
    async fn order(&self, agent: &str, order: Order) {
        // One whose answer was lost may have been taken in: it is over when the last try is.
        if order == Order::Uncordon {
            self.world.to_be_uncordoned(agent);
        }
        for _ in 0..TRIES {
            let before = self.world.uncordons(agent);
            let mut service = FleetServiceClient::new(self.channel());
            let named = agent.to_owned();
            let call = async {
                match order {
                    Order::Cordon => {
                        let request = CordonAgentRequest { agent: named, reason: "simulated".into() };
                        service.cordon_agent(request).await.map(drop)
                    }
                    Order::Uncordon => {
                        service.uncordon_agent(UncordonAgentRequest { agent: named }).await.map(drop)
                    }
                }
            };
            match within(ORDER_PATIENCE, call).await {
                Some(Ok(())) => {
                    self.world.note(format_args!("{agent}: {order:?} is confirmed"));
                    match order {
                        Order::Cordon => self.world.cordoned(agent, before),
                        Order::Uncordon => self.world.uncordon_is_over(agent),
                    }
                    return;
                }
                // Without its headers: one of them is the real time.
                Some(Err(status)) => self.world.note(format_args!(
                    "{agent}: {order:?} is not confirmed: {:?}: {}",
                    status.code(),
                    status.message()
                )),
                None => self.world.note(format_args!("{agent}: {order:?} is not answered")),
            }
            sleep(LONGEST_PAUSE).await;
        }
        self.world.violated(format!("{agent}: {order:?} was not confirmed in {TRIES} tries"));
    }
}

/// Our own clock's words, not the server's.
fn is_silence(status: &Status) -> bool {
    status.code() == Code::Cancelled
}
