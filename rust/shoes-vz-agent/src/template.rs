//! Making templates.

pub mod build;
pub mod install;
