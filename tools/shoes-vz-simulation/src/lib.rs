//! The server and agents of the product in one thread: over a simulated network, in virtual time, on hosts that fail, with
//! callers that disappear. One seed decides everything, so every run can be repeated.
//!
//! Real: the server's core, owner, store (SQLite) and gRPC; the agent's runners, their owners, its stream to the server,
//! its files. Simulated: network and time (turmoil), the VMs, their guests, SSH, crashes of processes, the wall clock.
//!
//! Invariants that hold at every moment:
//! - one VM for each name, and for each guest the script of its runner; no VM for a name whose job was seen and done;
//! - no VM without a row that the server stored before; no bundle removed under a live VM; no agent with more VMs than slots;
//! - a caller that gets a runner gets one whose guest answered SSH;
//! - a cordoned agent gets no runner that was requested later;
//! - a job whose caller keeps its runner is not ended;
//! - every call over an undisturbed connection is answered within its deadline;
//! - the invariants of the server ([`shoes_vz_server::fleet::core::Core::broken_invariant`]), after every turn.
//!
//! After the last fault: every call plan ends, no VM, bundle, row or caller is left, every slot can be filled at once, every
//! cloud ID ever returned can still be deleted, and an unknown one is not found.

mod callers;
mod client;
mod driver;
mod machines;
mod mutation;
mod net;
mod parts;
mod plan;
mod vm;
mod wire;
mod world;

pub use mutation::Mutation;
pub use world::Counts;

#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// The part of the product to break on purpose.
    pub mutation: Option<Mutation>,
    /// Whether [`Report::log`] is wanted.
    pub log: bool,
}

/// The result of one seed.
#[derive(Debug, Clone)]
pub struct Report {
    pub seed: u64,
    /// Broken invariants; empty on success.
    pub violations: Vec<String>,
    pub counts: Counts,
    /// A hash of the log; the same for every run of this seed.
    pub trace: u64,
    /// Everything that happened, one line for each event.
    pub log: Vec<String>,
}

/// Runs one seed. An error comes from this machine, not from the product.
pub fn run(seed: u64, options: Options) -> anyhow::Result<Report> {
    driver::run(seed, options)
}
