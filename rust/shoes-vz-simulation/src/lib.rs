//! The product's own server and agents in one thread: over a simulated network, in virtual time, on hosts that fail, with
//! callers that go away. One seed decides everything, so every run can be repeated.
//!
//! Real: the server's core, owner, store (SQLite) and gRPC; the agent's runners, their owners, its stream to the server,
//! its files. Simulated: network and time (turmoil), the VMs, their guests, SSH, processes' deaths, the calendar.
//!
//! What must hold, always:
//! - one VM for each name, one script for each guest, and its own; none for a name whose job was seen and done;
//! - no VM without a row the server stored before; no bundle removed under a live VM; no agent with more VMs than slots;
//! - a caller that is told it has a runner has one whose guest answered SSH;
//! - a cordoned agent is given nothing that was asked for later;
//! - a job whose caller keeps its runner is not ended;
//! - every call whose way was not disturbed is answered within its deadline;
//! - the server's own invariants ([`shoes_vz_server::fleet::core::Core::broken_invariant`]), after every turn.
//!
//! And once the last fault is over: every errand ends, no VM, bundle, row or caller is left, every slot can be filled at
//! once, every cloud id ever given can still be deleted, and one that never was is not known.

mod callers;
mod client;
mod driver;
mod machines;
mod net;
mod parts;
mod plan;
mod sabotage;
mod vm;
mod world;

pub use sabotage::Sabotage;
pub use world::Counts;

/// How a seed is run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Broken on purpose.
    pub sabotage: Option<Sabotage>,
    /// Whether [`Report::log`] is wanted.
    pub log: bool,
}

/// How a seed went.
#[derive(Debug, Clone)]
pub struct Report {
    /// Which.
    pub seed: u64,
    /// What did not hold; nothing is what is wanted.
    pub violations: Vec<String>,
    /// What was done.
    pub counts: Counts,
    /// The same for every run of this seed.
    pub trace: u64,
    /// Everything that happened, one line each.
    pub log: Vec<String>,
}

/// Runs one seed. The error is one of this machine's, not of the product's.
pub fn run(seed: u64, options: Options) -> anyhow::Result<Report> {
    driver::run(seed, options)
}
