//! The seam to Swift: every call that Rust can make to VZCore, and the only crate with `unsafe`.
//!
//! ```text
//!  Rust ── Machine::start ──▶ ffi ──▶ VZBridge (Swift) ──▶ VZCore ──▶ Virtualization.framework
//!   ▲                                                       │        (Linux: the stand-in of that name)
//!   └── UnboundedReceiver<Event> ◀── events::vz_event ◀─────┘
//! ```
//! Values only: machines are numbers, outcomes a code and a reason. Every call blocks until its deadline at most; use
//! `spawn_blocking`. Rust holds no Swift object, so none can be used after its end.
//!
//! Builds on macOS always contain VZCore, builds on Linux with the feature `swift`. Without it ([`available`]) every
//! call fails with [`Code::NotSupported`].

mod codes;
#[cfg_attr(not(vz), allow(dead_code))]
mod events;

#[cfg(vz)]
#[allow(
    clippy::not_unsafe_ptr_arg_deref,
    clippy::boxed_local,
    clippy::unnecessary_cast,
    clippy::undocumented_unsafe_blocks,
    reason = "what swift-bridge generates"
)]
mod ffi;
#[cfg(vz)]
mod machine;
// In tests this is compiled beside VZCore, so that CI needs no separate build to test it.
#[cfg(any(not(vz), test))]
#[cfg_attr(vz, allow(dead_code, unreachable_pub))]
mod unsupported;
#[cfg(not(vz))]
use unsupported as machine;

pub use codes::{Code, Failure, State};
pub use events::{Event, Live};
pub use machine::{
    Machine, available, cancel_install, clone_bundle, host, install, live, restore_image, run_main_loop,
};
