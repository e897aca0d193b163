//! ShoesService, which myshoes' plugin calls.

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
        event::{AddRequest, Refusal},
        runner::Added,
        values::Script,
    },
    log_limit::{LogLimit, SharedLogLimiter},
    metrics::{Call, CallStatus, Metrics},
    owner::Fleet,
};

use super::{
    auth::request_id,
    call::{Defaults, caller_timeout, status},
};

#[derive(Debug)]
pub(super) struct Shoes {
    fleet: Fleet,
    metrics: Arc<Metrics>,
    defaults: Defaults,
    log_limiter: SharedLogLimiter,
}

impl Shoes {
    pub(super) fn new(fleet: Fleet, metrics: Arc<Metrics>, defaults: Defaults) -> Self {
        Self { fleet, metrics, defaults, log_limiter: SharedLogLimiter::default() }
    }

    /// A caller may repeat a refused call without end, under one name or many, so each reason is logged once. Every call is
    /// counted, by `status`.
    fn log_refusal(&self, call: &'static str, about: &str, refusal: &Refusal) {
        let reason = refusal.to_string();
        let key = match about {
            "" => format!("{call} {reason}"),
            about => format!("{call} {}", reason.replace(about, "…")),
        };
        if let Some(suppressed) = self.log_limiter.admit(&key, LogLimit::Once) {
            tracing::warn!(about, reason, suppressed, "{call} refused");
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
        let metrics = CallMetrics::new(&self.metrics, Call::Add);
        let timeout = caller_timeout(request.metadata(), self.defaults.add_timeout);
        let request_id = request_id(&request);
        let request = request.into_inner();
        let name: String = request.runner_name.chars().take(80).collect();
        let added = match self.parse(request, request_id) {
            Ok(request) => self.fleet.add(request, timeout).await,
            Err(refusal) => Err(refusal),
        };
        metrics.finish(added.as_ref().err());
        match added {
            Ok(Added { runner_id, cloud_id, ip_address, resource_type }) => {
                Span::current().record("runner_id", tracing::field::display(runner_id));
                Span::current().record("cloud_id", tracing::field::display(cloud_id));
                if let Some(suppressed) = self.log_limiter.admit(&format!("added {cloud_id}"), LogLimit::Few)
                {
                    tracing::info!(suppressed, "AddInstance answered");
                }
                Ok(Response::new(AddInstanceResponse {
                    cloud_id: cloud_id.to_string(),
                    shoes_type: "shoes-vz".into(),
                    ip_address,
                    resource_type: resource_type.to_string(),
                }))
            }
            Err(refusal) => {
                self.log_refusal("AddInstance", &name, &refusal);
                Err(status(&refusal))
            }
        }
    }

    async fn delete_instance(
        &self,
        request: Request<DeleteInstanceRequest>,
    ) -> Result<Response<DeleteInstanceResponse>, Status> {
        let metrics = CallMetrics::new(&self.metrics, Call::Delete);
        let timeout = caller_timeout(request.metadata(), self.defaults.delete_timeout);
        let DeleteInstanceRequest { cloud_id, labels } = request.into_inner();
        let about: String = cloud_id.chars().take(80).collect();
        let deleted = match cloud_id.parse::<CloudId>() {
            Ok(cloud_id) => {
                Span::current().record("cloud_id", tracing::field::display(cloud_id));
                self.fleet.delete(cloud_id, timeout).await
            }
            // No cloud ID of shoes-vz has this form.
            Err(e) => Err(Refusal::NotFound(e.to_string())),
        };
        metrics.finish(deleted.as_ref().err());
        match deleted {
            Ok(()) => {
                if let Some(suppressed) = self.log_limiter.admit(&format!("deleted {about}"), LogLimit::Few) {
                    tracing::info!(?labels, suppressed, "DeleteInstance answered");
                }
                Ok(Response::new(DeleteInstanceResponse {}))
            }
            Err(refusal) => {
                self.log_refusal("DeleteInstance", &about, &refusal);
                Err(status(&refusal))
            }
        }
    }
}

/// Counts a call however it ends. A caller that disconnects drops the handler, which counts as cancelled.
struct CallMetrics {
    metrics: Arc<Metrics>,
    call: Call,
    began: Instant,
    status: CallStatus,
}

impl CallMetrics {
    fn new(metrics: &Arc<Metrics>, call: Call) -> Self {
        Self { metrics: Arc::clone(metrics), call, began: Instant::now(), status: CallStatus::Cancelled }
    }

    fn finish(mut self, refusal: Option<&Refusal>) {
        self.status = refusal.map_or(CallStatus::Success, CallStatus::of);
    }
}

impl Drop for CallMetrics {
    fn drop(&mut self) {
        self.metrics.call(self.call, self.status, self.began.elapsed());
    }
}
