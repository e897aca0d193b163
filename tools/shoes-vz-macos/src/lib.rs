//! Proofs of the macOS build that need no Mac.
//!
//! ```text
//! check-signature ─▶ [`signature`]  re-hashes a signed Mach-O and its bundle, compares entitlements and LC_BUILD_VERSION
//! check-api       ─▶ [`api`]        compares every Virtualization symbol used with facts from the SDK
//! ```

pub mod api;
pub mod signature;
