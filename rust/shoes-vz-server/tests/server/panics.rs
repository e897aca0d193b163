//! What happens when the server itself is wrong.

use std::{ffi::OsString, sync::Arc};

use shoes_vz_server::{
    fleet::types::Write,
    serve::{self, ServeError},
    settings::Settings,
    store::{Loaded, Store, StoreError},
};
use tempfile::tempdir;
use tokio::time::timeout;
use tonic::Code;

use crate::common::{PATIENCE, Server, answer};

/// Panics in the middle of the fleet's own task.
struct Panicking;

impl Store for Panicking {
    async fn commit(&self, _: Arc<Vec<Write>>) -> Result<(), StoreError> {
        panic!("a mistake in the store")
    }

    async fn probe(&self) -> Result<(), StoreError> {
        Ok(())
    }
}

#[tokio::test]
async fn a_panic_of_the_fleets_own_task_ends_the_server_with_an_error_that_has_its_text() {
    let dir = tempdir().unwrap();
    let state = dir.path().to_str().unwrap();
    let args = ["--grpc-addr", "127.0.0.1:0", "--metrics-addr", "127.0.0.1:0", "--state-dir", state];
    let settings =
        Settings::read(std::iter::once("shoes-vz-server").chain(args).map(OsString::from), []).unwrap();
    let bound = serve::bind_over(settings, |_| Ok((Panicking, Loaded::default()))).await.unwrap();
    let server = Server::at(bound.grpc_addr(), bound.metrics_addr());
    let running = tokio::spawn(bound.run(std::future::pending()));
    let told = answer(server.add("a")).await.unwrap_err();
    assert_eq!(told.code(), Code::Unavailable, "{told:?}");
    let ended = timeout(PATIENCE, running).await.expect("it ends by itself").unwrap();
    let Err(error @ ServeError::Owner(_)) = ended else { panic!("it ended otherwise: {ended:?}") };
    let text = format!("{:#}", anyhow::Error::from(error));
    assert!(text.contains("ended unexpectedly") && text.contains("a mistake in the store"), "{text}");
}
