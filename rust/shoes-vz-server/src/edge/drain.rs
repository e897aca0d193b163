//! DrainAgent's stream: the agent as it is, each change of it, and the end once it has no runners.

use std::sync::Arc;

use futures::{Stream, stream};
use shoes_vz_model::AgentId;
use shoes_vz_proto::fleet::AgentView;
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tonic::Status;

use crate::fleet::{
    owner::{Change, Fleet},
    types::Refusal,
};

use super::status;

/// From `first` on, which must be the agent's view after `changes` began.
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
            Ok((view, Left::Some)) => Some((Ok(view), Some((drain, None)))),
            Ok((view, Left::None)) => Some((Ok(view), None)),
            Err(refusal) => Some((Err(status(&refusal)), None)),
        }
    })
}

struct Drain {
    fleet: Fleet,
    changes: Receiver<Arc<Change>>,
    /// What was sent last.
    shown: Option<AgentView>,
}

/// Whether the agent has runners.
enum Left {
    Some,
    None,
}

impl Drain {
    /// The agent's next view that differs from the one shown.
    async fn next(&mut self) -> Result<AgentView, Refusal> {
        let hostname = self.shown.as_ref().and_then(|v| v.agent.as_ref()).map(|a| a.hostname.clone());
        let gone = || Refusal::Aborted(format!("{} is not known any more", hostname.unwrap_or_default()));
        let id = self.id();
        loop {
            let change = tokio::select! {
                // A server that stops has not drained the agent: the stream's end must not be read as that.
                biased;
                () = self.fleet.stopping().cancelled() => return Err(Refusal::Stopping),
                change = self.changes.recv() => change,
            };
            let view = match change.as_deref() {
                Ok(Change::Agent(view)) if id_of(view) == id => Some(AgentView::clone(view)),
                Ok(Change::AgentGone(other)) if Some(*other) == id => None,
                Ok(_) => continue,
                // Too many changes for a slow reader: it is shown how the agent is now.
                Err(RecvError::Lagged(_)) => match id {
                    Some(id) => self.fleet.look_at_agent(id).await?,
                    None => None,
                },
                Err(RecvError::Closed) => return Err(Refusal::Stopping),
            };
            match view {
                None => return Err(gone()),
                Some(view) if self.shown.as_ref() == Some(&view) => {}
                Some(view) => return Ok(view),
            }
        }
    }

    fn judge(&mut self, seen: Result<AgentView, Refusal>) -> Result<(AgentView, Left), Refusal> {
        let view = seen?;
        if view.cordon.is_none() {
            let hostname = view.agent.map(|a| a.hostname).unwrap_or_default();
            return Err(Refusal::Aborted(format!("{hostname} was uncordoned meanwhile; it is not drained")));
        }
        self.shown = Some(view.clone());
        let left = if view.runners == 0 { Left::None } else { Left::Some };
        Ok((view, left))
    }

    fn id(&self) -> Option<AgentId> {
        self.shown.as_ref().and_then(id_of)
    }
}

fn id_of(view: &AgentView) -> Option<AgentId> {
    view.agent.as_ref().and_then(|a| a.agent_id.parse().ok())
}
