//! The seam to Swift: everything Rust can ask of VZCore, and the only crate with `unsafe`.
//!
//! ```text
//!  Rust ── Machine::start ──▶ ffi ──▶ VZBridge (Swift) ──▶ VZCore ──▶ Virtualization.framework
//!   ▲                                                       │        (Linux: the stand-in of that name)
//!   └── UnboundedReceiver<Event> ◀── events::vz_event ◀─────┘
//! ```
//! Values only: machines are numbers, outcomes a code and words. Every call blocks, for as long as its deadline and no
//! longer; call them by `spawn_blocking`. Nothing of Swift's is held on this side, so nothing can be used after its end.
//!
//! On macOS VZCore is always in. On Linux it is with the feature `swift`; without it ([`available`] says which) every
//! call answers [`Code::NotSupported`].

mod codes;
#[cfg_attr(not(vz), allow(dead_code))]
mod events;

#[cfg(vz)]
#[allow(
    clippy::not_unsafe_ptr_arg_deref,
    clippy::boxed_local,
    clippy::unnecessary_cast,
    clippy::undocumented_unsafe_blocks,
    missing_docs,
    reason = "what swift-bridge generates"
)]
mod ffi;
#[cfg(vz)]
mod machine;
// Tests look at what a build without VZCore answers in builds that have it too, which spares CI a build of its own.
#[cfg(any(not(vz), test))]
#[cfg_attr(vz, allow(dead_code, unreachable_pub))]
mod unsupported;
#[cfg(not(vz))]
use unsupported as machine;

pub use codes::{Code, Failure, State};
pub use events::Event;
pub use machine::{
    Machine, available, cancel_install, clone_bundle, host, install, live, restore_image, run_main_loop,
};

/// Machines on both sides of the seam, for leak tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live {
    /// Machines Swift holds.
    pub machines: i64,
    /// Listeners Rust holds.
    pub listeners: usize,
}
