//! Creating templates.

pub mod build;
pub mod install;
