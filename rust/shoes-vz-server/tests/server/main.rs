//! The server as its callers meet it.
// Helpers of tests are tests too, which clippy cannot see.
#![allow(clippy::unwrap_used)]

mod binary;
mod common;
mod cordon;
mod disk;
mod door;
mod grpc;
mod panics;
mod repeats;
