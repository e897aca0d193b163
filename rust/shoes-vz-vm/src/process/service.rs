//! `shoes.vz.vm.v1.VmService`: the owner's mailbox and status over `vm.sock`.

use std::{path::PathBuf, time::Duration};

use futures::stream::{self, BoxStream, StreamExt as _};
use shoes_vz_proto::vm::{
    PauseRequest, PauseResponse, ResumeRequest, ResumeResponse, SaveRequest, SaveResponse, StartRequest,
    StartResponse, StopRequest, StopResponse, VmStatus, WatchRequest, vm_service_server::VmService,
};
use tokio::sync::{oneshot, watch};
use tonic::{Request as Rpc, Response, Status};

use super::owner::{Action, Handle, Refusal, Reply, Request};

pub(super) struct Service {
    pub(super) owner: Handle,
}

impl Service {
    async fn ask(&self, request: impl FnOnce(Reply) -> Request) -> Result<(), Status> {
        let (reply, answer) = oneshot::channel();
        let ended = || {
            let end = self.owner.status.borrow().end.clone();
            let reason = end.map(|end| format!(": {}", end.reason)).unwrap_or_default();
            Status::failed_precondition(format!("the VM has ended{reason}"))
        };
        self.owner.requests.send(request(reply)).await.map_err(|_| ended())?;
        match answer.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(Refusal::State(reason))) => Err(Status::failed_precondition(reason)),
            Ok(Err(Refusal::Hypervisor(reason))) => Err(Status::aborted(reason)),
            Err(_) if self.owner.status.borrow().end.is_none() => Err(Status::internal(
                "the VM process did not finish the request, which is a bug in it; its log in the bundle says more",
            )),
            Err(_) => Err(ended()),
        }
    }
}

/// The present value, then each later one, up to the one with the VM's end.
fn statuses(receiver: watch::Receiver<VmStatus>) -> impl stream::Stream<Item = VmStatus> {
    stream::unfold((Some(receiver), true), |(receiver, first)| async move {
        let mut receiver = receiver?;
        if !first && receiver.changed().await.is_err() {
            return None;
        }
        let status = receiver.borrow_and_update().clone();
        let next = status.end.is_none().then_some(receiver);
        Some((status, (next, false)))
    })
}

#[tonic::async_trait]
impl VmService for Service {
    type WatchStream = BoxStream<'static, Result<VmStatus, Status>>;

    async fn watch(&self, _: Rpc<WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(statuses(self.owner.status.clone()).map(Ok).boxed()))
    }

    async fn start(&self, _: Rpc<StartRequest>) -> Result<Response<StartResponse>, Status> {
        self.ask(Request::Start).await?;
        Ok(Response::new(StartResponse {}))
    }

    async fn stop(&self, request: Rpc<StopRequest>) -> Result<Response<StopResponse>, Status> {
        let StopRequest { force, grace_seconds } = request.into_inner();
        let grace = (!force).then(|| Duration::from_secs(grace_seconds.into()));
        match self.ask(|reply| Request::Stop(grace, reply)).await {
            // The VM has ended, as asked.
            Err(_) if self.owner.status.borrow().end.is_some() => {}
            done => done?,
        }
        Ok(Response::new(StopResponse {}))
    }

    async fn pause(&self, _: Rpc<PauseRequest>) -> Result<Response<PauseResponse>, Status> {
        self.ask(|reply| Request::Machine(Action::Pause, reply)).await?;
        Ok(Response::new(PauseResponse {}))
    }

    async fn resume(&self, _: Rpc<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        self.ask(|reply| Request::Machine(Action::Resume, reply)).await?;
        Ok(Response::new(ResumeResponse {}))
    }

    async fn save(&self, request: Rpc<SaveRequest>) -> Result<Response<SaveResponse>, Status> {
        let path = PathBuf::from(request.into_inner().path);
        if path.as_os_str().is_empty() {
            return Err(Status::invalid_argument("the path to save the VM's state to is empty"));
        }
        self.ask(|reply| Request::Machine(Action::Save(path), reply)).await?;
        Ok(Response::new(SaveResponse {}))
    }
}
