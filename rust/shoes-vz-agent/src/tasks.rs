//! Tasks that nobody joins: none of them panics unnoticed.
//!
//! | what panics | then |
//! |---|---|
//! | a runner's life | that runner ends as FAILED, its VM is removed, its slot is freed ([`caught`]) |
//! | a follower of a runner's guest | the same (`Following::lost`) |
//! | a step that is joined (making a bundle, starting a VM process) | the step fails with that reason |
//! | anything else: a teardown, a hot VM, the address listener, the server's stream | this process ends with an error ([`Tasks`]) |
//!
//! A process that ends is started again by launchd or systemd, and the next agent adopts the VMs, which go on meanwhile.
//! One that goes on without a part of it would look healthy and do nothing.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt as _;
use shoes_vz_model::text;
use tokio::{sync::watch, task::JoinHandle};

/// Tasks without which the agent is of no use; the first one that fails ends it. Clones are of one set.
#[derive(Debug, Clone)]
pub struct Tasks(Arc<watch::Sender<Option<String>>>);

impl Default for Tasks {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(None)))
    }
}

impl Tasks {
    /// Spawns `task`; should it panic, the agent ends.
    pub fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let tasks = self.clone();
        tokio::spawn(async move { tasks.watched(name, task).await })
    }

    /// Awaits `task` here; should it panic, the agent ends.
    pub async fn watched(&self, name: &'static str, task: impl Future<Output = ()>) {
        if let Err(message) = caught(task).await {
            self.fail(format!("{name} panicked: {message}"));
        }
    }

    /// The agent cannot go on, for this reason.
    pub(crate) fn fail(&self, reason: String) {
        // The first is the cause, and what is waited for; the log has all.
        self.0.send_if_modified(|first| {
            let is_first = first.is_none();
            if is_first {
                *first = Some(reason.clone());
            }
            is_first
        });
        tracing::error!(reason, "a part of the agent failed; the agent ends, its VMs go on");
    }

    /// Waits until one has failed.
    pub async fn failed(&self) -> String {
        let mut first = self.0.subscribe();
        match first.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            // Its sender is in `self`.
            Err(_) => std::future::pending().await,
        }
    }

    /// Why one has failed, if one has.
    pub fn failure(&self) -> Option<String> {
        self.0.borrow().clone()
    }
}

/// Awaits `future`; the error is the message of its panic.
pub(crate) async fn caught<T>(future: impl Future<Output = T>) -> Result<T, String> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(|panic| text::of_panic(&*panic))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_the_agents_failure_with_its_name_and_the_first_one_stays_it() {
        let tasks = Tasks::default();
        tasks.spawn("a good task", async {}).await.unwrap();
        assert_eq!(tasks.failure(), None);
        let clone = tasks.clone();
        tasks.spawn("a bad task", async { panic!("the {} broke", "seam") }).await.unwrap();
        assert_eq!(clone.failed().await, "a bad task panicked: the seam broke");
        tasks.watched("a later one", async { panic!("too") }).await;
        assert_eq!(tasks.failure().as_deref(), Some("a bad task panicked: the seam broke"));
    }
}
