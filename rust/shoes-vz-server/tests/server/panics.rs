//! Panics inside the server.

use std::{ffi::OsString, sync::Arc};

use shoes_vz_server::{
    fleet::event::Write,
    serve::{self, ServeError},
    settings::Settings,
    store::{Loaded, Store, StoreError},
};
use tempfile::tempdir;
use tokio::time::timeout;
use tonic::Code;

use crate::common::{Server, TIMEOUT, answer};

/// Panics inside the owner task.
struct Panicking;

impl Store for Panicking {
    async fn commit(&self, _: Arc<Vec<Write>>) -> Result<(), StoreError> {
        panic!("a bug in the store")
    }

    async fn probe(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_panic_in_the_owner_task_ends_the_server_with_an_error_that_has_its_text() {
    let dir = tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let args = ["--grpc-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0", "--state-dir", state];
    let settings =
        Settings::read(std::iter::once("shoes-vz-server").chain(args).map(OsString::from), []).unwrap();
    let bound = serve::bind_over(settings, |_| Ok((Panicking, Loaded::default()))).await.unwrap();
    let server = Server::at(bound.grpc_addr(), bound.metrics_addr());
    let running = tokio::spawn(bound.run(std::future::pending()));
    let refused = answer(server.add("a")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    let ended = timeout(TIMEOUT, running).await.expect("it ends by itself").unwrap();
    let Err(error @ ServeError::Owner(_)) = ended else { panic!("it ended differently: {ended:?}") };
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(text.contains("ended unexpectedly") && text.contains("a bug in the store"), "{text}");
}
