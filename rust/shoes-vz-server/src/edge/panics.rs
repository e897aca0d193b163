//! A panic while one caller is served becomes that caller's INTERNAL error. It ends no other call, and is logged and
//! counted.

use std::{any::Any, future::Future, panic::AssertUnwindSafe, sync::Arc};

use futures::{FutureExt as _, Stream, StreamExt as _};
use tonic::Status;

use crate::metrics::{Metrics, PanicSite};

/// What the caller reads; the log has the details.
pub(crate) const TEXT: &str = "internal server error; see the server's log, and retry the call";

/// The future's output, or that it panicked. Nothing that it borrowed is used afterwards.
pub(crate) async fn caught<T>(
    metrics: &Metrics,
    site: PanicSite,
    future: impl Future<Output = T>,
) -> Result<T, Panicked> {
    AssertUnwindSafe(future).catch_unwind().await.map_err(|payload| note(metrics, site, &*payload))
}

/// A panic was caught, logged and counted.
#[derive(Debug)]
pub(crate) struct Panicked;

/// The stream, which ends with INTERNAL if it panics.
pub(super) fn guarded<T>(
    metrics: Arc<Metrics>,
    stream: impl Stream<Item = Result<T, Status>>,
) -> impl Stream<Item = Result<T, Status>> {
    AssertUnwindSafe(stream).catch_unwind().map(move |item| match item {
        Ok(item) => item,
        Err(payload) => {
            note(&metrics, PanicSite::Stream, &*payload);
            Err(Status::internal(TEXT))
        }
    })
}

fn note(metrics: &Metrics, site: PanicSite, payload: &(dyn Any + Send)) -> Panicked {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    tracing::error!(?site, panic = text.unwrap_or("no text"), "panic caught");
    metrics.panicked(site);
    Panicked
}

#[cfg(test)]
mod tests {
    use futures::stream;
    use tonic::Code;

    use super::*;

    #[tokio::test]
    async fn a_panic_in_a_stream_ends_it_with_internal_and_is_counted() {
        let metrics = Arc::new(Metrics::new().unwrap());
        let stream = stream::iter([1, 2, 3]).map(|n| {
            assert!(n < 2, "the second one");
            Ok(n)
        });
        let items: Vec<_> = guarded(Arc::clone(&metrics), stream).collect().await;
        let codes: Vec<_> = items.iter().map(|item| item.as_ref().map_err(Status::code)).collect();
        assert_eq!(codes, [Ok(&1), Err(Code::Internal)]);
        let text = String::from_utf8(metrics.render(&Default::default()).unwrap()).unwrap();
        assert!(text.contains("shoesvz_panics_total{where=\"stream\"} 1"), "{text}");
    }
}
