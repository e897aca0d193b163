//! FleetService: the state of the fleet, and which agents get new runners.

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt as _, stream};
use shoes_vz_model::{CloudId, RunnerName};
use shoes_vz_proto::{
    WATCH_MATCHING,
    fleet::{
        AgentView, CordonAgentRequest, CordonAgentResponse, DrainAgentRequest, ListAgentsRequest,
        ListAgentsResponse, ListRunnersRequest, ListRunnersResponse, RunnerView, UncordonAgentRequest,
        UncordonAgentResponse, WatchRunnersRequest, fleet_service_server::FleetService,
    },
};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tonic::{Request, Response, Status, metadata::MetadataValue};

use crate::{
    fleet::event::{CordonOrder, Refusal},
    metrics::Metrics,
    owner::{Change, Fleet, Watched},
};

use super::{call::status, drain, panics};

#[derive(Debug)]
pub(super) struct Operators {
    pub(super) fleet: Fleet,
    pub(super) metrics: Arc<Metrics>,
}

#[tonic::async_trait]
impl FleetService for Operators {
    type WatchRunnersStream = Pin<Box<dyn Stream<Item = Result<RunnerView, Status>> + Send>>;
    type DrainAgentStream = Pin<Box<dyn Stream<Item = Result<AgentView, Status>> + Send>>;

    async fn list_runners(
        &self,
        request: Request<ListRunnersRequest>,
    ) -> Result<Response<ListRunnersResponse>, Status> {
        let snapshot =
            self.fleet.snapshot(request.into_inner().include_ended).await.map_err(|e| status(&e))?;
        Ok(Response::new(ListRunnersResponse { runners: snapshot.runners }))
    }

    async fn watch_runners(
        &self,
        request: Request<WatchRunnersRequest>,
    ) -> Result<Response<Self::WatchRunnersStream>, Status> {
        let WatchRunnersRequest { cloud_id, runner_name } = request.into_inner();
        let bad = |e: shoes_vz_model::id::BadId| status(&Refusal::Invalid(e.to_string()));
        let watched = match (cloud_id.as_str(), runner_name.as_str()) {
            ("", "") => Watched::All,
            ("", name) => Watched::Name(RunnerName::recorded(name).map_err(bad)?),
            (id, "") => Watched::Cloud(id.parse::<CloudId>().map_err(bad)?),
            _ => return Err(Status::invalid_argument("watch by cloud_id or by runner_name, not by both")),
        };
        // Subscribe before reading, so that no change is lost between the two.
        let changes = self.fleet.changes();
        let mut present = self.fleet.view(watched.clone()).await.map_err(|e| status(&e))?;
        present.reverse();
        if let (Watched::Cloud(id), true) = (&watched, present.is_empty()) {
            return Err(Status::not_found(format!("{id} is not known")));
        }
        let matching = present.len();
        let watch = Watch { fleet: self.fleet.clone(), watched, changes, ready: present, finished: false };
        let stopping = self.fleet.stopping().clone();
        let views = stream::unfold(watch, Watch::next).take_until(stopping.cancelled_owned());
        let views = panics::guarded(Arc::clone(&self.metrics), views);
        let mut response: Response<Self::WatchRunnersStream> = Response::new(Box::pin(views));
        // A caller that watches for a runner that does not exist yet learns so at once.
        response.metadata_mut().insert(WATCH_MATCHING, MetadataValue::from(matching));
        Ok(response)
    }

    async fn list_agents(
        &self,
        _: Request<ListAgentsRequest>,
    ) -> Result<Response<ListAgentsResponse>, Status> {
        let snapshot = self.fleet.snapshot(false).await.map_err(|e| status(&e))?;
        Ok(Response::new(ListAgentsResponse { agents: snapshot.agents }))
    }

    async fn cordon_agent(
        &self,
        request: Request<CordonAgentRequest>,
    ) -> Result<Response<CordonAgentResponse>, Status> {
        let CordonAgentRequest { agent, reason } = request.into_inner();
        let view = self.fleet.cordon(agent, CordonOrder::Cordon(reason)).await.map_err(|e| status(&e))?;
        Ok(Response::new(CordonAgentResponse { agent: Some(view) }))
    }

    async fn uncordon_agent(
        &self,
        request: Request<UncordonAgentRequest>,
    ) -> Result<Response<UncordonAgentResponse>, Status> {
        let UncordonAgentRequest { agent } = request.into_inner();
        let view = self.fleet.cordon(agent, CordonOrder::Uncordon).await.map_err(|e| status(&e))?;
        Ok(Response::new(UncordonAgentResponse { agent: Some(view) }))
    }

    async fn drain_agent(
        &self,
        request: Request<DrainAgentRequest>,
    ) -> Result<Response<Self::DrainAgentStream>, Status> {
        let DrainAgentRequest { agent, reason } = request.into_inner();
        // Subscribe before cordoning, so that no change is lost between the two.
        let changes = self.fleet.changes();
        let view = self.fleet.cordon(agent, CordonOrder::Cordon(reason)).await.map_err(|e| status(&e))?;
        let views = drain::views(self.fleet.clone(), changes, view);
        Ok(Response::new(Box::pin(panics::guarded(Arc::clone(&self.metrics), views))))
    }
}

struct Watch {
    fleet: Fleet,
    watched: Watched,
    changes: Receiver<Arc<Change>>,
    /// Shown next, the last one first.
    ready: Vec<RunnerView>,
    /// The last view has been shown.
    finished: bool,
}

impl Watch {
    async fn next(mut self) -> Option<(Result<RunnerView, Status>, Self)> {
        loop {
            if self.finished {
                return None;
            }
            if let Some(view) = self.ready.pop() {
                let ended = view.runner.as_ref().is_some_and(|r| r.end.is_some());
                if ended && self.watched != Watched::All {
                    self.finished = true;
                }
                return Some((Ok(view), self));
            }
            match self.changes.recv().await {
                Ok(change) => match &*change {
                    Change::Runner(view) if self.matches(view) => self.ready.push(RunnerView::clone(view)),
                    Change::Runner(_) | Change::Agent(_) | Change::AgentForgotten(_) => {}
                },
                // The reader is too slow for the changes: show it the current views.
                Err(RecvError::Lagged(_)) => {
                    self.ready = self.fleet.view(self.watched.clone()).await.ok()?;
                    self.ready.reverse();
                }
                Err(RecvError::Closed) => return None,
            }
        }
    }

    fn matches(&self, view: &RunnerView) -> bool {
        match &self.watched {
            Watched::All => true,
            Watched::Cloud(id) => view.cloud_id == id.to_string(),
            Watched::Name(name) => view.runner.as_ref().is_some_and(|r| r.runner_name == name.as_str()),
        }
    }
}
