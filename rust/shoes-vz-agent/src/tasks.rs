//! Tasks that are never joined: none of them panics unnoticed.
//!
//! | what panics | effect |
//! |---|---|
//! | the task of a runner | the runner ends as FAILED, its VM is removed, its slot is freed ([`catch_panic`]) |
//! | a follower of a runner's guest | the same (`guest::first_panic`) |
//! | a step that is joined (creating a bundle, starting a VM process) | the step fails with the panic as its reason |
//! | anything else: a teardown, a hot VM, the address listener, the server's stream | the agent exits with an error ([`Tasks`]) |
//!
//! When the agent exits, launchd or systemd starts it again, and the next agent adopts the VMs, which keep running. An agent
//! that kept running without one of its parts would look healthy and do nothing.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt as _;
use shoes_vz_model::text;
use tokio::{sync::watch, task::JoinHandle};

/// The tasks that the agent cannot run without: the first one that fails ends it. Clones share one set.
#[derive(Debug, Clone)]
pub struct Tasks(Arc<watch::Sender<Option<String>>>);

impl Default for Tasks {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Tasks {
    /// Spawns `task`. If it panics, the agent ends.
    pub fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let tasks = self.clone();
        tokio::spawn(async move { tasks.supervise(name, task).await })
    }

    /// Awaits `task` here. If it panics, the agent ends.
    pub async fn supervise(&self, name: &'static str, task: impl Future<Output = ()>) {
        if let Err(reason) = catch_panic(task).await {
            self.fail(format!("{name} panicked: {reason}"));
        }
    }

    /// Ends the agent for this reason.
    pub(crate) fn fail(&self, reason: String) {
        // The first failure is the cause; the log has all of them.
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                *first = Some(reason.clone());
            }
            is_first
        });
        tracing::error!(reason, "task of the agent failed; the agent exits, and its VMs keep running");
    }

    /// Waits until a task has failed, and returns the reason.
    pub async fn failed(&self) -> String {
        let mut first = self.0.subscribe();
        match first.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // Cannot happen: `self` holds the sender.
            Err(_) => std::future::pending().await,
        }
    }

    pub fn failure(&self) -> Option<String> {
        self.0.borrow().clone()
    }
}

/// Awaits `future`. The error is the reason of its panic.
pub(crate) async fn catch_panic<T>(future: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(|panic| text::panic_reason(&*panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_task_that_panics_is_the_agents_failure_with_its_name() {
        let tasks = Tasks::default();
        tasks.spawn("a good task", async {}).await.unwrap();
        assert_eq!(tasks.failure(), None);
        let clone = tasks.clone();
        tasks.spawn("a bad task", async { panic!("the {} broke", "pump") }).await.unwrap();
        assert_eq!(clone.failed().await, "a bad task panicked: the pump broke");
        tasks.supervise("a later one", async { panic!("too") }).await;
        assert_eq!(tasks.failure().as_deref(), Some("a bad task panicked: the pump broke"));
    }
}
