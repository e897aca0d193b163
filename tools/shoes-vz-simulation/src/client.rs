//! A simplified myshoes: one connection and one deadline for each call, and retries under the same name.

use std::{sync::Arc, time::Duration};

use shoes_vz_proto::fleet::{
    AddInstanceRequest, CordonAgentRequest, DeleteInstanceRequest, ListRunnersRequest, UncordonAgentRequest,
    fleet_service_client::FleetServiceClient, shoes_service_client::ShoesServiceClient,
};
use tokio::time::{sleep, timeout};
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};

use crate::{
    net,
    plan::{CallPlan, SERVER, Then},
    world::World,
};

/// The setup script of the runner with this name.
pub(crate) fn script(name: &str) -> String {
    format!("#!/bin/sh\n: the script of {name}\n")
}

/// Makes all calls of one plan.
pub(crate) async fn run(world: Arc<World>, host: String, calls: CallPlan) {
    sleep(calls.at).await;
    let caller = Caller { world, host };
    if let Some(after) = calls.cancels_after {
        let added = caller.add_and_cancel(&calls.name, calls.timeout, after).await;
        if calls.then == Then::GiveUp {
            if let Some(Ok(cloud)) = added {
                caller.delete(&cloud).await;
            }
            return;
        }
    }
    let Some(cloud) = caller.add(&calls.name, calls.timeout).await else { return };
    match calls.then {
        Then::LeaveIt | Then::GiveUp => return,
        Then::DeleteAfter(time) => sleep(time).await,
        Then::DeleteWhenDone => caller.until_ended(&cloud).await,
    }
    caller.delete(&cloud).await;
    if calls.then == Then::DeleteWhenDone {
        caller.delete(&cloud).await;
    }
    if calls.requests_again
        && let Some(cloud) = caller.add(&calls.name, calls.timeout).await
    {
        caller.until_ended(&cloud).await;
        caller.delete(&cloud).await;
    }
}

pub(crate) struct Caller {
    pub(crate) world: Arc<World>,
    pub(crate) host: String,
}

/// Between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// The deadline of each DeleteInstance.
const DELETE_TIMEOUT: Duration = Duration::from_secs(20);
/// For each call of an operator.
const OPERATOR_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a caller repeats a call before it gives up.
const ATTEMPTS: u32 = 40;

impl Caller {
    fn channel(&self) -> Channel {
        let uri = format!("http://{SERVER}:{}", net::PORT);
        let endpoint = Endpoint::from_shared(uri).unwrap_or_else(|e| unreachable!("a constant address: {e}"));
        net::connect(&endpoint, &self.world, &self.host)
    }

    fn service(&self) -> ShoesServiceClient<Channel> {
        ShoesServiceClient::new(self.channel())
    }

    pub(crate) async fn once(&self, name: &str, deadline: Duration) -> Result<String, Status> {
        let mut request = Request::new(AddInstanceRequest {
            runner_name: name.to_owned(),
            setup_script: script(name),
            resource_type: "nano".into(),
            labels: Vec::new(),
        });
        request.set_timeout(deadline);
        let began = self.world.clock();
        self.world.requested(name);
        let mut service = self.service();
        let answer = timeout(deadline + Duration::from_millis(100), service.add_instance(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::cancelled("no answer")));
        let answered = !matches!(&answer, Err(e) if is_unanswered(e));
        self.world.call_ended(&self.host, &format!("AddInstance of {name}"), began, deadline, answered);
        match &answer {
            Ok(added) => {
                self.world.note(format_args!("{} got {name} as {}", self.host, added.get_ref().cloud_id))
            }
            Err(e) => self.world.note(format_args!(
                "{} did not get {name}: {:?} {}",
                self.host,
                e.code(),
                e.message()
            )),
        }
        let cloud = answer?.into_inner().cloud_id;
        self.world.returned(name, &cloud);
        Ok(cloud)
    }

    /// As a plugin that is killed during its call, unless the answer arrives before.
    async fn add_and_cancel(
        &self,
        name: &str,
        deadline: Duration,
        after: Duration,
    ) -> Option<Result<String, Status>> {
        let answer = timeout(after, self.once(name, deadline)).await.ok();
        if answer.is_none() {
            self.world.note(format_args!("{} cancels its call for {name}", self.host));
        }
        answer
    }

    /// Repeats the call until it succeeds, or never can.
    pub(crate) async fn add(&self, name: &str, deadline: Duration) -> Option<String> {
        let mut pause = Duration::from_millis(200);
        for _ in 0..ATTEMPTS {
            match self.once(name, deadline).await {
                Ok(cloud) => return Some(cloud),
                // Its job is done, so it gets no other VM.
                Err(e) if e.code() == Code::InvalidArgument && self.world.is_done(name) => return None,
                Err(e) if e.code() == Code::InvalidArgument => {
                    self.world.violated(format!("{name} is refused as invalid: {}", e.message()));
                    return None;
                }
                Err(_) => {}
            }
            sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
        self.world.violated(format!("{} did not get {name} in {ATTEMPTS} attempts", self.host));
        None
    }

    /// Repeats the call until it succeeds.
    pub(crate) async fn delete(&self, cloud: &str) {
        self.world.delete_requested(cloud);
        let mut pause = Duration::from_millis(200);
        for _ in 0..ATTEMPTS {
            match self.delete_once(cloud).await {
                Ok(()) => {
                    if self.world.live().iter().any(|vm| vm.runner().cloud == cloud) {
                        self.world.violated(format!("{cloud} is confirmed as deleted, but its VM is alive"));
                    }
                    return;
                }
                Err(e) if e.code() == Code::NotFound => {
                    self.world
                        .violated(format!("DeleteInstance of {cloud} answers NotFound: {}", e.message()));
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
        self.world.violated(format!("{} could not delete {cloud} in {ATTEMPTS} attempts", self.host));
    }

    pub(crate) async fn delete_once(&self, cloud: &str) -> Result<(), Status> {
        let mut request =
            Request::new(DeleteInstanceRequest { cloud_id: cloud.to_owned(), labels: Vec::new() });
        request.set_timeout(DELETE_TIMEOUT);
        let began = self.world.clock();
        let mut service = self.service();
        let limit = DELETE_TIMEOUT + Duration::from_millis(100);
        let answer = timeout(limit, service.delete_instance(request)).await;
        let answer = answer.unwrap_or_else(|_| Err(Status::cancelled("no answer")));
        let answered = !matches!(&answer, Err(e) if is_unanswered(e));
        let what = format!("DeleteInstance of {cloud}");
        self.world.call_ended(&self.host, &what, began, DELETE_TIMEOUT, answered);
        answer.map(drop)
    }

    /// Waits for the end of the runner's VM.
    async fn until_ended(&self, cloud: &str) {
        let Some(vm) = self.world.live().into_iter().find(|vm| vm.runner().cloud == cloud) else { return };
        vm.ended().await;
    }
}

/// An operator cordons `agent`, and uncordons it after `lasts`.
pub(crate) async fn cordon(world: Arc<World>, host: String, agent: String, at: Duration, lasts: Duration) {
    sleep(at).await;
    let caller = Caller { world, host };
    caller.set_schedulable(&agent, CordonCall::Cordon).await;
    sleep(lasts).await;
    caller.set_schedulable(&agent, CordonCall::Uncordon).await;
}

/// An operator deletes an arbitrary runner, whatever its state.
pub(crate) async fn interfere(world: Arc<World>, host: String, at: Duration) {
    sleep(at).await;
    let caller = Caller { world, host };
    let mut service = FleetServiceClient::new(caller.channel());
    let request = ListRunnersRequest { include_ended: false };
    let Ok(Ok(listed)) = timeout(OPERATOR_TIMEOUT, service.list_runners(request)).await else { return };
    let runners = listed.into_inner().runners;
    if let Some(runner) = runners.get(caller.world.below(runners.len())) {
        caller.world.note(format_args!("an operator deletes {}", runner.cloud_id));
        caller.delete(&runner.cloud_id).await;
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CordonCall {
    Cordon,
    Uncordon,
}

impl Caller {
    /// Repeats `call` until the server confirms it.
    async fn set_schedulable(&self, agent: &str, call: CordonCall) {
        // An attempt whose answer was lost may have taken effect, so an uncordon lasts until the last attempt.
        if call == CordonCall::Uncordon {
            self.world.uncordon_requested(agent);
        }
        for _ in 0..ATTEMPTS {
            let before = self.world.uncordons(agent);
            let mut service = FleetServiceClient::new(self.channel());
            let named = agent.to_owned();
            let answer = async {
                match call {
                    CordonCall::Cordon => {
                        let request = CordonAgentRequest { agent: named, reason: "simulated".into() };
                        service.cordon_agent(request).await.map(drop)
                    }
                    CordonCall::Uncordon => {
                        service.uncordon_agent(UncordonAgentRequest { agent: named }).await.map(drop)
                    }
                }
            };
            match timeout(OPERATOR_TIMEOUT, answer).await {
                Ok(Ok(())) => {
                    self.world.note(format_args!("{agent}: {call:?} is confirmed"));
                    match call {
                        CordonCall::Cordon => self.world.cordoned(agent, before),
                        CordonCall::Uncordon => self.world.uncordon_confirmed(agent),
                    }
                    return;
                }
                // Without its headers, which contain the real time.
                Ok(Err(status)) => self.world.note(format_args!(
                    "{agent}: {call:?} is not confirmed: {:?}: {}",
                    status.code(),
                    status.message()
                )),
                Err(_) => self.world.note(format_args!("{agent}: {call:?} is not answered")),
            }
            sleep(LONGEST_PAUSE).await;
        }
        self.world.violated(format!("{agent}: {call:?} was not confirmed in {ATTEMPTS} attempts"));
    }
}

/// Whether the local timeout made this status, not the server.
fn is_unanswered(status: &Status) -> bool {
    status.code() == Code::Cancelled
}
