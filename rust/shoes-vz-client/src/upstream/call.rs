//! The request ID and the time budget of one call.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Request;

/// Share of the budget kept back, so that the caller gets the reason before it times out; at most [`MARGIN_MAX`].
const MARGIN_SHARE: f64 = 0.1;
const MARGIN_MAX: Duration = Duration::from_millis(250);
/// gRPC allows eight digits; no call needs more than a year.
const BUDGET_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// One call, through all its attempts.
#[derive(Debug, Clone)]
pub struct Call {
    what: &'static str,
    request_id: String,
    since: Instant,
    budget: Duration,
    scope: Scope,
}

/// What the budget bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scope {
    /// The whole call; sent to the server as the deadline.
    Answer,
    /// Only until the stream is open.
    Opening,
}

impl Call {
    /// A call of the method `what` with `budget` from now on. A missing request ID is generated.
    pub fn new(what: &'static str, budget: Duration, request_id: Option<String>) -> Self {
        let request_id =
            request_id.filter(|id| !id.is_empty()).unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        Self { what, request_id, since: Instant::now(), budget: budget.min(BUDGET_MAX), scope: Scope::Answer }
    }

    /// Limits only the opening of the stream.
    pub fn stream(self) -> Self {
        Self { scope: Scope::Opening, ..self }
    }

    pub fn what(&self) -> &'static str {
        self.what
    }

    /// Sent as `x-request-id`; the logs of the server and the agent contain it too.
    pub fn request_id(&self) -> &str {
        &self.request_id
    }

    /// When the caller must get an answer: its deadline less the margin.
    pub(super) fn answer_by(&self) -> Instant {
        self.since + (self.budget - self.budget.mul_f64(MARGIN_SHARE).min(MARGIN_MAX))
    }

    pub(super) fn waited(&self) -> Duration {
        self.since.elapsed()
    }

    /// Adds the ID and the rest of the budget to a request.
    pub(super) fn mark<T>(&self, request: &mut Request<T>) {
        if let Ok(id) = self.request_id.parse() {
            request.metadata_mut().insert("x-request-id", id);
        }
        if self.scope == Scope::Answer {
            request.set_timeout(self.budget.saturating_sub(self.waited()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use shoes_vz_proto::convert::grpc_timeout;

    proptest! {
        #[test]
        fn what_tonic_writes_is_read_back_to_the_unit(millis in 1u64..100_000_000) {
            let mut request = Request::new(());
            request.set_timeout(Duration::from_millis(millis));
            let read = grpc_timeout(request.metadata()).unwrap();
            let off = Duration::from_millis(millis).saturating_sub(read);
            prop_assert!(off < Duration::from_secs(1), "{:?}", read);
        }
    }

    #[test]
    fn the_margin_is_a_share_of_the_budget_and_bounded() {
        let left = |secs| {
            let call = Call::new("AddInstance", Duration::from_secs_f64(secs), None);
            (call.answer_by() - call.since).as_secs_f64()
        };
        assert!((left(1.0) - 0.9).abs() < 1e-6);
        assert!((left(300.0) - 299.75).abs() < 1e-6);
        assert!(left(1e12) > 1e6, "an endless budget overflows");
    }

    #[test]
    fn a_callers_request_id_is_kept_and_a_missing_one_generated() {
        let id = |given: Option<&str>| {
            Call::new("x", Duration::ZERO, given.map(str::to_owned)).request_id().to_owned()
        };
        assert_eq!(id(Some("abc")), "abc");
        assert_eq!(id(None).len(), 36);
        assert_ne!(id(Some("")), "");
    }

    #[test]
    fn a_stream_sends_no_deadline() {
        let mut request = Request::new(());
        Call::new("WatchRunners", Duration::from_secs(1), None).stream().mark(&mut request);
        assert!(request.metadata().get("grpc-timeout").is_none());
        assert!(request.metadata().get("x-request-id").is_some());
    }
}
