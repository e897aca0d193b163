//! DrainAgent's stream: the agent's view, each change of it, and the end once the agent has no runners.

use std::sync::Arc;

use futures::{Stream, stream};
use shoes_vz_model::AgentId;
use shoes_vz_proto::fleet::AgentView;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tonic::Status;

use crate::{
    fleet::event::Refusal,
    owner::{Change, Fleet},
};

use super::call::status;

/// Streams from `first` on, which must be the agent's view after the subscription to `changes`.
pub(super) fn views(
    fleet: Fleet,
    changes: Receiver<Arc<Change>>,
    first: AgentView,
) -> impl Stream<Item = Result<AgentView, Status>> {
    let drain = Drain { fleet, changes, shown: None };
    stream::unfold(Some((drain, Some(first))), |state| async {
        let (mut drain, first) = state?;
        let seen = match first {
            Some(view) => Ok(view),
            None => drain.next().await,
        };
        match drain.judge(seen) {
            Ok(view) => {
                let rest = (view.runners > 0).then_some((drain, None));
                Some((Ok(view), rest))
            }
            Err(refusal) => Some((Err(status(&refusal)), None)),
        }
    })
}

struct Drain {
    fleet: Fleet,
    changes: Receiver<Arc<Change>>,
    /// The view that was sent last.
    shown: Option<AgentView>,
}

impl Drain {
    /// The agent's next view that differs from the one shown.
    async fn next(&mut self) -> Result<AgentView, Refusal> {
        let hostname = self.shown.as_ref().and_then(|v| v.agent.as_ref()).map(|a| a.hostname.clone());
        let forgotten =
            || Refusal::Aborted(format!("the agent {} is no longer known", hostname.unwrap_or_default()));
        let id = self.shown.as_ref().and_then(id_of);
        loop {
            let change = tokio::select! {
                // First, since the end of the stream would otherwise mean that the agent is drained.
                biased;
                () = self.fleet.stopping().cancelled() => return Err(Refusal::Stopping),
                change = self.changes.recv() => change,
            };
            let view = match change.as_deref() {
                Ok(Change::Agent(view)) if id_of(view) == id => Some(AgentView::clone(view)),
                Ok(Change::AgentForgotten(other)) if Some(*other) == id => None,
                Ok(_) => continue,
                // The reader is too slow for the changes: show it the agent's current view.
                Err(RecvError::Lagged(_)) => match id {
                    Some(id) => self.fleet.agent_view(id).await?,
                    None => None,
                },
                Err(RecvError::Closed) => return Err(Refusal::Stopping),
            };
            match view {
                None => return Err(forgotten()),
                Some(view) if self.shown.as_ref() == Some(&view) => {}
                Some(view) => return Ok(view),
            }
        }
    }

    fn judge(&mut self, seen: Result<AgentView, Refusal>) -> Result<AgentView, Refusal> {
        let view = seen?;
        if view.cordon.is_none() {
            let hostname = view.agent.map(|a| a.hostname).unwrap_or_default();
            return Err(Refusal::Aborted(format!(
                "the agent {hostname} was uncordoned meanwhile, so it is not drained"
            )));
        }
        self.shown = Some(view.clone());
        Ok(view)
    }
}

fn id_of(view: &AgentView) -> Option<AgentId> {
    view.agent.as_ref().and_then(|a| a.agent_id.parse().ok())
}
