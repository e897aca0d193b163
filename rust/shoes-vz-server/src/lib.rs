//! The control plane of shoes-vz.
//!
//! A call comes in through [`edge`] (gRPC), becomes an event for the [`fleet`], whose decision is made durable by the
//! [`store`] before anyone hears of it. [`metrics`] and [`http`] tell what goes on,
//! [`repeats`] keeps the log from being flooded; [`settings`] and [`serve`] start and
//! end it all.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod edge;
pub mod fleet;
pub mod http;
pub mod metrics;
pub mod repeats;
pub mod serve;
pub mod settings;
pub mod store;
