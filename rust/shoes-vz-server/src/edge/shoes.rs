//! ShoesService: what myshoes' plugin calls.

use std::{sync::Arc, time::Instant};

use shoes_vz_model::{CloudId, ResourceType, RunnerName, request};
use shoes_vz_proto::fleet::{
    AddInstanceRequest, AddInstanceResponse, DeleteInstanceRequest, DeleteInstanceResponse,
    shoes_service_server::ShoesService,
};
use tonic::{Request, Response, Status};
use tracing::Span;

use crate::{
    fleet::{
        owner::Fleet,
        types::{AddRequest, Added, Refusal, Script},
    },
    metrics::{Call, Metrics, Outcome},
    repeats::{Say, SharedRepeats},
};

use super::{Defaults, gate::request_id, patience, status};

/// See the module.
#[derive(Debug)]
pub(super) struct Shoes {
    fleet: Fleet,
    metrics: Arc<Metrics>,
    defaults: Defaults,
    repeats: SharedRepeats,
}

impl Shoes {
    pub(super) fn new(fleet: Fleet, metrics: Arc<Metrics>, defaults: Defaults) -> Self {
        Self { fleet, metrics, defaults, repeats: SharedRepeats::default() }
    }

    /// A caller repeats what was refused for as long as it likes, under one name or many: each reason is said once. Every
    /// call is counted, by `status`.
    fn note_refused(&self, call: &'static str, about: &str, refusal: &Refusal) {
        let reason = refusal.to_string();
        let key = match about {
            "" => format!("{call} {reason}"),
            about => format!("{call} {}", reason.replace(about, "…")),
        };
        if let Some(repeats) = self.repeats.note(&key, Say::Once) {
            tracing::warn!(about, reason, repeats, "{call} refused");
        }
    }

    fn parse(&self, request: AddInstanceRequest, request_id: String) -> Result<AddRequest, Refusal> {
        let invalid = |e: &dyn std::fmt::Display| Refusal::Invalid(e.to_string());
        let name: RunnerName = request.runner_name.parse().map_err(|e| invalid(&e))?;
        request::check_script(request.setup_script.len()).map_err(|e| invalid(&e))?;
        request::check_labels(&request.labels).map_err(|e| invalid(&e))?;
        let resource_type: ResourceType = match request.resource_type.as_str() {
            "" => self.defaults.resource_type,
            text => text.parse().map_err(|e| invalid(&e))?,
        };
        Ok(AddRequest {
            name,
            script: Script::new(request.setup_script),
            resource_type,
            labels: request.labels,
            request_id,
        })
    }
}

#[tonic::async_trait]
impl ShoesService for Shoes {
    async fn add_instance(
        &self,
        request: Request<AddInstanceRequest>,
    ) -> Result<Response<AddInstanceResponse>, Status> {
        let counted = Counted::new(&self.metrics, Call::Add);
        let patience = patience(request.metadata(), self.defaults.add_patience);
        let request_id = request_id(&request);
        let request = request.into_inner();
        let name: String = request.runner_name.chars().take(80).collect();
        let added = match self.parse(request, request_id) {
            Ok(request) => self.fleet.add(request, patience).await,
            Err(refusal) => Err(refusal),
        };
        counted.over(added.as_ref().err());
        match added {
            Ok(Added { runner_id, cloud_id, ip_address, resource_type }) => {
                Span::current().record("runner_id", tracing::field::display(runner_id));
                Span::current().record("cloud_id", tracing::field::display(cloud_id));
                if let Some(repeats) = self.repeats.note(&format!("added {cloud_id}"), Say::AFewTimes) {
                    tracing::info!(repeats, "AddInstance answered");
                }
                Ok(Response::new(AddInstanceResponse {
                    cloud_id: cloud_id.to_string(),
                    shoes_type: "shoes-vz".into(),
                    ip_address,
                    resource_type: resource_type.to_string(),
                }))
            }
            Err(refusal) => {
                self.note_refused("AddInstance", &name, &refusal);
                Err(status(&refusal))
            }
        }
    }

    async fn delete_instance(
        &self,
        request: Request<DeleteInstanceRequest>,
    ) -> Result<Response<DeleteInstanceResponse>, Status> {
        let counted = Counted::new(&self.metrics, Call::Delete);
        let patience = patience(request.metadata(), self.defaults.delete_patience);
        let DeleteInstanceRequest { cloud_id, labels } = request.into_inner();
        let about: String = cloud_id.chars().take(80).collect();
        let deleted = match cloud_id.parse::<CloudId>() {
            Ok(cloud_id) => {
                Span::current().record("cloud_id", tracing::field::display(cloud_id));
                self.fleet.delete(cloud_id, patience).await
            }
            // No id of ours was ever like this.
            Err(e) => Err(Refusal::NotFound(e.to_string())),
        };
        counted.over(deleted.as_ref().err());
        match deleted {
            Ok(()) => {
                if let Some(repeats) = self.repeats.note(&format!("deleted {about}"), Say::AFewTimes) {
                    tracing::info!(?labels, repeats, "DeleteInstance answered");
                }
                Ok(Response::new(DeleteInstanceResponse {}))
            }
            Err(refusal) => {
                self.note_refused("DeleteInstance", &about, &refusal);
                Err(status(&refusal))
            }
        }
    }
}

/// Counts a call however it ends: also one whose caller went away, which drops the handler.
struct Counted {
    metrics: Arc<Metrics>,
    call: Call,
    began: Instant,
    outcome: Outcome,
}

impl Counted {
    fn new(metrics: &Arc<Metrics>, call: Call) -> Self {
        Self { metrics: Arc::clone(metrics), call, began: Instant::now(), outcome: Outcome::CallerGone }
    }

    fn over(mut self, refusal: Option<&Refusal>) {
        self.outcome = refusal.map_or(Outcome::Success, Outcome::of);
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.metrics.call(self.call, self.outcome, self.began.elapsed());
    }
}
