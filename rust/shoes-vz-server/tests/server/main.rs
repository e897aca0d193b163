//! The server as its callers see it.
// Clippy does not see that the helpers of tests are tests too.
#![allow(clippy::unwrap_used)]

mod access;
mod binary;
mod common;
mod cordon;
mod disk;
mod grpc;
mod log_limit;
mod panics;
